"""nano-vllm's benchmark, ours beside transformers', and both beside the limits of the device.

256 requests at once, 100 to 1024 tokens in and 100 to 1024 out, drawn with seed 0, at temperature
0.6 with end-of-sequence ignored, on the shape of Qwen3-0.6B with random weights; and one request
alone, 128 tokens in and 256 out.
"""

import gc
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    ContinuousBatchingConfig,
    GenerationConfig,
    PreTrainedTokenizerFast,
)

from folovllm import LLM, SamplingParams
from folovllm.bench.floor import Floor
from folovllm.bench.workloads import (
    Lengths,
    RandomSource,
    Workload,
    nano_vllm,
    uniform,
)
from folovllm.config.bench import Range
from folovllm.diagnostics.limits import DeviceLimits, measure_limits

TEMPERATURE = 0.6

QWEN3_600M = {
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 3072,
    "vocab_size": 151_936,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 40_960,
}


@dataclass(frozen=True)
class Case:
    """What is measured, and where.

    Attributes:
        shape: the model's, as Qwen3's configuration names it.
        device: where.
        dtype: of weights and cache.
        num_requests: at once.
        lengths: of their prompts and outputs.
        single: tokens in and out of the request that is alone.
        generate_requests: how many of the requests transformers' `generate` gets, in one batch:
            its cache holds each at the length of the longest, twice while it grows.
        max_model_len: of our engine.
        options: of our engine besides.
        batching: of transformers' continuous batching, which otherwise takes what is free.
        seconds: after which that is given up.
    """

    shape: dict[str, Any] = field(default_factory=lambda: QWEN3_600M)
    device: str = "cuda"
    dtype: str = "bfloat16"
    num_requests: int = 256
    lengths: Lengths = nano_vllm
    single: tuple[int, int] = (128, 256)
    generate_requests: int = 64
    max_model_len: int = 4096
    options: dict[str, Any] = field(default_factory=lambda: {"gpu_memory_utilization": 0.8})
    batching: dict[str, Any] = field(default_factory=dict)
    seconds: float = 80


@dataclass
class Timing:
    """How long a way took for a workload.

    Attributes:
        seconds: from the first request to the last token.
        tokens: that were wanted and generated.
        floor: the least time that the steps could have taken.
    """

    seconds: float
    tokens: int
    floor: float | None = None

    @property
    def rate(self) -> float:
        """Output tokens a second."""
        return self.tokens / self.seconds

    @property
    def share(self) -> float | None:
        """Of the floor in what was taken."""
        return None if self.floor is None else self.floor / self.seconds


@dataclass
class Result:
    """What was measured of a way; `note` says how it was set, or why there is nothing."""

    many: Timing | None = None
    single: Timing | None = None
    note: str = ""


@dataclass
class Measured:
    """What was measured: `results` by way."""

    limits: DeviceLimits
    results: dict[str, Result] = field(default_factory=dict)


Run = Callable[[Workload], int]
"""Generates; returns the tokens that were wanted and generated."""


def many(case: Case, seed: int = 0) -> Workload:
    """The requests that are there at once."""
    source = RandomSource(case.lengths, case.shape["vocab_size"], seed=f"many-{seed}")
    return source.draw(case.num_requests)


def single(case: Case, seed: int = 1) -> Workload:
    """One request."""
    lengths = uniform(*(Range(count, count) for count in case.single))
    return RandomSource(lengths, case.shape["vocab_size"], seed=f"single-{seed}").draw(1)


def write_model(case: Case, folder: Path) -> None:
    """Random weights of a shape, and a tokenizer that knows one word: only ids are used."""
    config = AutoConfig.for_model("qwen3", **case.shape)
    torch.manual_seed(0)
    with torch.device(case.device):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, case.dtype))
    model.save_pretrained(folder)
    backend = Tokenizer(models.WordLevel({"word": 0}, unk_token="word"))
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="word").save_pretrained(folder)


def measure(case: Case, say: Callable[[str], None], limits: DeviceLimits | None = None) -> Measured:
    """Measure all ways in turn, each on a device that is free of the others.

    A way that fails is reported as that: the others' figures are worth having.
    """
    device = torch.device(case.device)
    measured = Measured(limits or measure_limits(device, getattr(torch, case.dtype)))
    with tempfile.TemporaryDirectory() as folder:
        write_model(case, Path(folder))
        for way, run in WAYS.items():
            say(f"{way} ...")
            result = measured.results[way] = Result()
            try:
                run(case, folder, measured.limits, result)
            except Exception as error:  # noqa: BLE001 - of any library, and told
                result.note = f"failed: {type(error).__name__}: {str(error)[:200]}"
            _free(device)
            _share_floors(measured.results)
            say(describe(way, result))
    return measured


def ours(eager: bool) -> Callable[[Case, str, DeviceLimits, Result], None]:
    """Our engine, with captured graphs or without."""

    def run(case: Case, folder: str, limits: DeviceLimits, result: Result) -> None:
        llm = LLM(
            folder,
            device=case.device,
            dtype=case.dtype,
            max_model_len=case.max_model_len,
            max_num_seqs=case.num_requests,
            enforce_eager=eager,
            **case.options,
        )
        runner = llm.llm_engine.executor.runner
        graphs = "captured graphs" if runner.graphs is not None else "no graphs"
        result.note = f"{llm.llm_engine.setup.attention_backend} attention, {graphs}"

        def generate(workload: Workload) -> int:
            params = [
                SamplingParams(
                    temperature=TEMPERATURE, max_tokens=count, ignore_eos=True, detokenize=False
                )
                for count in workload.output_lens
            ]
            outputs = llm.generate(workload.prompts, params, use_tqdm=False)
            return sum(len(output.outputs[0].token_ids) for output in outputs)

        _measure_both(case, result, generate, Floor(llm.llm_engine, limits))

    return run


def generate_batch(case: Case, folder: str, limits: DeviceLimits, result: Result) -> None:  # noqa: ARG001
    """Transformers' continuous batching."""
    model, result.note = _load_theirs(case, folder), "continuous batching"
    options = GenerationConfig(
        do_sample=True, temperature=TEMPERATURE, top_k=0, top_p=1.0, eos_token_id=-1, pad_token_id=0
    )

    try:
        _measure_both(case, result, lambda work: _serve(case, model, options, work))
    finally:
        model.destroy_cached_continuous_batching_manager()


def generate(case: Case, folder: str, limits: DeviceLimits, result: Result) -> None:  # noqa: ARG001
    """Transformers' `generate`, padded on the left, all until the longest output is done."""
    model = _load_theirs(case, folder)
    result.note = f"{model.config._attn_implementation}, the first {case.generate_requests}"

    def run(workload: Workload) -> int:
        count = case.generate_requests
        prompts, output_lens = workload.prompts[:count], workload.output_lens[:count]
        longest = max(map(len, prompts))
        ids = [[0] * (longest - len(p)) + p for p in prompts]
        mask = [[0] * (longest - len(p)) + [1] * len(p) for p in prompts]
        with torch.inference_mode():
            model.generate(
                torch.tensor(ids, device=case.device),
                attention_mask=torch.tensor(mask, device=case.device),
                max_new_tokens=max(output_lens),
                do_sample=True,
                temperature=TEMPERATURE,
                top_k=0,
                top_p=1.0,
                pad_token_id=0,
                eos_token_id=None,
            )
        return sum(output_lens)

    _measure_both(case, result, run)


WAYS: dict[str, Callable[[Case, str, DeviceLimits, Result], None]] = {
    "folovllm": ours(eager=False),
    "folovllm eager": ours(eager=True),
    "transformers generate_batch": generate_batch,
    "transformers generate": generate,
}


def _measure_both(case: Case, result: Result, run: Run, floor: Floor | None = None) -> None:
    """The single request, then the many; before each the same kind once, to have it compiled."""
    for name, make in (("single", single), ("many", many)):
        warm = make(case, seed=2)
        run(Workload(warm.prompts, [min(8, count) for count in warm.output_lens]))
        workload = make(case)
        if floor is not None:
            floor.take()
        start = time.perf_counter()
        tokens = run(workload)
        seconds = time.perf_counter() - start
        setattr(result, name, Timing(seconds, tokens, None if floor is None else floor.take()))


def _share_floors(results: dict[str, Result]) -> None:
    """Measure the others against the same floor where they had the same requests."""
    best = results["folovllm"]
    for result in results.values():
        for name in ("single", "many"):
            reference, timing = getattr(best, name), getattr(result, name)
            if reference and timing and timing.floor is None and timing.tokens == reference.tokens:
                timing.floor = reference.floor


def _load_theirs(case: Case, folder: str) -> Any:
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, case.dtype), attn_implementation="sdpa"
    )
    return model.eval().to(case.device)


def _serve(case: Case, model: Any, options: GenerationConfig, workload: Workload) -> int:
    """All requests through a manager of continuous batching, each with its own output length."""
    deadline = time.perf_counter() + case.seconds
    left, tokens = len(workload.prompts), 0
    config = ContinuousBatchingConfig(allow_block_sharing=False, **case.batching)
    # The manager is kept for the next call, so that what it captures and compiles is not timed.
    with model.continuous_batching_context_manager(
        generation_config=options,
        continuous_batching_config=config,
        block=True,
        timeout=5,
        persistent_manager=True,
    ) as manager:
        for prompt, count in zip(workload.prompts, workload.output_lens, strict=True):
            manager.add_request(prompt, max_new_tokens=count)
        while left:
            result = manager.get_result(timeout=1)
            if result is not None and result.is_finished():
                if result.error is not None:
                    raise RuntimeError(result.error)
                left, tokens = left - 1, tokens + len(result.generated_tokens)
            elif result is None and not manager.is_running():
                raise RuntimeError("its thread ended")
            if time.perf_counter() > deadline:
                raise TimeoutError(f"{left} requests were not done after {case.seconds:.0f} s")
    return tokens


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


ROW = "{:<28}{:>10}{:>11}{:>7}{:>11}{:>11}{:>7}  {}".format
HEAD = ROW("", "many", "out tok/s", "share", "single", "out tok/s", "share", "")


def describe(way: str, result: Result) -> str:
    """A way's row of the table."""
    return ROW(way, *_cells(result.many), *_cells(result.single), result.note)


def _cells(timing: Timing | None) -> list[str]:
    if timing is None:
        return ["-"] * 3
    share = "-" if timing.share is None else f"{timing.share:.0%}"
    return [f"{timing.seconds:.2f} s", f"{timing.rate:.0f}", share]


def summarize(case: Case, measured: Measured) -> list[str]:
    """The table, and what it was measured on."""
    where = torch.cuda.get_device_name() if case.device == "cuda" else case.device
    limits = measured.limits
    workload = many(case)
    size = f"{sum(map(len, workload.prompts))} tokens in, {workload.num_outputs} out"
    alone = f"single: {case.single[0]} in, {case.single[1]} out"
    speeds = f"{limits.bandwidth / 1e9:.0f} GB/s, {limits.rate / 1e12:.1f} TFLOP/s"
    heads = [
        f"{case.num_requests} requests, {size}; {alone}; {case.dtype}, temperature {TEMPERATURE}",
        f"{where}, torch {torch.__version__}, transformers {transformers.__version__}; {speeds}",
    ]
    rows = [describe(way, result) for way, result in measured.results.items()]
    return ["", *heads, HEAD, *rows]
