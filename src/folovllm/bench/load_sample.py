"""One sample of the load benchmark: get a model ready once, in this process, and say what it took.

`folovllm.bench.load` starts it as a process of its own: `python -m folovllm.bench.load_sample`
with a `Task` as JSON. The last line of its standard output is a `Sample` as JSON. What a way does
not need is not imported: reading files takes no torch.
"""

import json
import mmap
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from folovllm.bench.page_cache import State, read_through, set_state
from folovllm.bench.results import BenchError
from folovllm.errors import FoloVLLMError
from folovllm.loading.checkpoint import Checkpoint, find_checkpoint

if TYPE_CHECKING:
    import torch

CONFIG_AND_TOKENIZER, READ, PLACED = "config and tokenizer", "weights read", "weights placed"
FIRST_FORWARD = "first forward"

PROMPT = [1]
"""One token: all the weights are needed, and little else is done with them."""

COPIED_AT_ONCE = 256 << 20


@dataclass(frozen=True, slots=True)
class Task:
    """What to do.

    Attributes:
        way: a key of `WAYS`.
        cache: the state of the page cache to begin in.
        dtype: of the model, as torch names it.
        folder: the model's.
        device: "cpu" or "cuda".
        threads: to compute with.
        options: of the engine, beyond model and data type.
    """

    way: str
    cache: State
    dtype: str
    folder: str
    device: str = "cpu"
    threads: int = 1
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sample:
    """What it took.

    Attributes:
        parts: seconds of each part; their sum is the time until the model was ready.
        peak_memory: the highest resident memory until then less that before, in bytes.
        resident_share: of the weights' pages, in the page cache before the clock started.
        imported: modules that were imported while it ran; importing is not loading.
        answer: log probability of the likeliest next token, to see that it is the same model.
    """

    parts: dict[str, float]
    peak_memory: int
    resident_share: float
    imported: int
    answer: float | None = None

    @property
    def seconds(self) -> float:
        """Until the model was ready."""
        return sum(self.parts.values())


Work: TypeAlias = Callable[[], tuple[dict[str, float], Callable[[], float] | None]]
"""What is timed: gives the seconds of its parts, and what asks the model for its answer."""


def main() -> int:
    """Do what the first argument says."""
    try:
        sample = take(Task(**json.loads(sys.argv[1])))
    except FoloVLLMError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write("\n" + json.dumps(asdict(sample)) + "\n")
    return 0


def take(task: Task) -> Sample:
    """Get ready, make the page cache what it is to be, and do the work.

    Raises:
        BenchError: the page cache cannot be brought into that state.
        ModelLoadError: the model cannot be loaded.
    """
    checkpoint = find_checkpoint(task.folder)
    work = WAYS[task.way](task, checkpoint)
    share = set_state(task.cache, checkpoint.folder, checkpoint.shards)
    known = set(sys.modules)
    reset_peak()
    before = memory("VmRSS")
    parts, answer = work()
    peak, imported = memory("VmHWM") - before, len(set(sys.modules) - known)
    return Sample(parts, peak, share, imported, answer() if answer else None)


def prepare_folovllm(task: Task, checkpoint: Checkpoint) -> Work:
    """An engine that has given its first token."""
    from folovllm.config import EngineConfig
    from folovllm.engine.llm_engine import LLMEngine
    from folovllm.sampling_params import SamplingParams

    import_model(task, checkpoint)
    import folovllm.loading.direct  # noqa: F401 - the loader imports it when it loads

    config = EngineConfig.from_options(model=task.folder, dtype=task.dtype, **task.options)

    def first_token(engine: LLMEngine, logprobs: int | None = None) -> Any:
        params = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True, logprobs=logprobs)
        engine.add_request("first", PROMPT, params)
        return engine.step()[0].outputs[0]

    def work() -> tuple[dict[str, float], Callable[[], float]]:
        start = time.perf_counter()
        engine = LLMEngine(config, task.device)
        loaded = time.perf_counter()
        first_token(engine)
        parts = dict(engine.load_seconds)
        parts[PLACED] += loaded - start - sum(parts.values())  # the engine around the model
        parts[FIRST_FORWARD] = time.perf_counter() - loaded
        return parts, lambda: float(first_token(engine, 1).cumulative_logprob)

    return work


def prepare_from_pretrained(task: Task, checkpoint: Checkpoint) -> Work:
    """A model of transformers' own that has run once, and its tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from folovllm.utils.timing import Phases

    import_model(task, checkpoint)
    there = {} if task.device == "cpu" else {"device_map": task.device}

    def logits(model: Any) -> "torch.Tensor":
        with torch.inference_mode():
            result: torch.Tensor = model(torch.tensor([PROMPT], device=model.device)).logits[0, -1]
        return result

    def work() -> tuple[dict[str, float], Callable[[], float]]:
        phases = Phases()
        config = AutoConfig.from_pretrained(task.folder)
        AutoTokenizer.from_pretrained(task.folder)
        phases.end(CONFIG_AND_TOKENIZER)
        model = AutoModelForCausalLM.from_pretrained(
            task.folder, config=config, dtype=getattr(torch, task.dtype), **there
        ).eval()
        phases.end(READ)  # places them as well: it does both at once
        int(logits(model).argmax())
        phases.end(FIRST_FORWARD)
        return phases.seconds, lambda: float(logits(model).float().log_softmax(-1).max())

    return work


def import_model(task: Task, checkpoint: Checkpoint) -> None:
    """Import what transformers imports only when it meets a model, and set the threads."""
    import torch
    import transformers

    torch.set_num_threads(task.threads)
    for name in (*(checkpoint.config.get("architectures") or ()), "PreTrainedTokenizerFast"):
        getattr(transformers, name, None)
    if task.device == "cuda":
        torch.zeros(1, device="cuda")  # CUDA's own start is not loading


def prepare_safetensors(task: Task, checkpoint: Checkpoint) -> Work:
    """Every tensor mapped by `safe_open`, and one byte of each of its pages read."""
    import torch
    from safetensors import safe_open

    torch.set_num_threads(task.threads)

    def work() -> tuple[dict[str, float], None]:
        start = time.perf_counter()
        for shard in checkpoint.shards:
            with safe_open(shard, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - no mapping
                    flat = file.get_tensor(name).reshape(-1).view(torch.uint8)
                    flat[:: mmap.PAGESIZE].sum()
        return {READ: time.perf_counter() - start}, None

    return work


def prepare_read(task: Task, checkpoint: Checkpoint) -> Work:  # noqa: ARG001 - as the others
    """The files read from begin to end: what the storage allows."""

    def work() -> tuple[dict[str, float], None]:
        start = time.perf_counter()
        read_through(checkpoint.shards)
        return {READ: time.perf_counter() - start}, None

    return work


def prepare_pinned_copy(task: Task, checkpoint: Checkpoint) -> Work:
    """As many bytes copied from pinned memory to the GPU: what the way there allows."""
    import torch

    buffer = torch.empty(COPIED_AT_ONCE, dtype=torch.uint8, pin_memory=True)
    size = weight_bytes(checkpoint, task.dtype)
    target = torch.empty(size, dtype=torch.uint8, device=task.device)

    def work() -> tuple[dict[str, float], None]:
        torch.cuda.synchronize()
        start = time.perf_counter()
        for part in target.split(COPIED_AT_ONCE):
            part.copy_(buffer[: len(part)], non_blocking=True)
        torch.cuda.synchronize()
        return {PLACED: time.perf_counter() - start}, None

    return work


WAYS: dict[str, Callable[[Task, Checkpoint], Work]] = {
    "folovllm": prepare_folovllm,
    "from_pretrained": prepare_from_pretrained,
    "safetensors": prepare_safetensors,
    "read": prepare_read,
    "pinned copy": prepare_pinned_copy,
}
"""How to get at the weights; the last one with a GPU only."""


def weight_bytes(checkpoint: Checkpoint, dtype: str) -> int:
    """What the weights take in a data type."""
    size = 4 if dtype == "float32" else 2
    return size * sum(prod(tensor.shape) for tensor in checkpoint.tensors.values())


def reset_peak() -> None:
    """Forget the peak of the imports, where the kernel allows it: VmHWM is that of what follows."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def memory(name: str) -> int:
    """Resident memory in bytes, as the kernel counts it: "VmRSS" now, "VmHWM" at its peak.

    Not `ru_maxrss`: that one may be the parent process's, which it starts from.

    Raises:
        BenchError: the kernel does not tell.
    """
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise BenchError(f"/proc/self/status does not tell {name}")


if __name__ == "__main__":
    sys.exit(main())
