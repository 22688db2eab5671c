"""How fast text is generated, beside transformers' `generate` and beside the machine's limits.

Both sides have the same weights, threads, data type and prompts, and run in turn in one process.
The limits are measured in the same run: how fast memory is read, and how fast matrices are
multiplied. README.md says how to read it.
"""

import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from transformers import AutoModelForCausalLM

import folovllm
from benchmarks.sampling import CLOCK, hand_over
from folovllm import LLM, SamplingParams
from folovllm.bench.session import Say
from folovllm.diagnostics.limits import Limits, measure_limits

WAYS = ("folovllm", "transformers")


@dataclass(frozen=True)
class Workload:
    """Prompts, and how many tokens are to be generated for each.

    Attributes:
        prompts: token ids, made anew for each round: nothing is found in a cache.
        output_lens: for each prompt.
    """

    prompts: list[list[int]]
    output_lens: list[int]

    @property
    def num_outputs(self) -> int:
        """Tokens that are generated."""
        return sum(self.output_lens)


def random_ids(rng: random.Random, count: int) -> list[int]:
    """Token ids of no meaning; below 48,000 there is no special one in the default model."""
    return [rng.randrange(100, 48_000) for _ in range(count)]


def single(rng: random.Random) -> Workload:
    """One request, 128 tokens in, 128 out."""
    return Workload([random_ids(rng, 128)], [128])


def prefill(rng: random.Random) -> Workload:
    """One request, 1024 in, 1 out."""
    return Workload([random_ids(rng, 1024)], [1])


def batch(rng: random.Random) -> Workload:
    """32 requests at once, 16 to 256 in, 16 to 128 out."""
    lengths = random.Random(0)  # the same in each round: 5022 in and 2211 out would vary
    prompts = [random_ids(rng, lengths.randint(16, 256)) for _ in range(32)]
    return Workload(prompts, [lengths.randint(16, 128) for _ in range(32)])


def prefix(rng: random.Random) -> Workload:
    """16 requests with 512 tokens in common and 32 of their own, 32 out, cold cache."""
    common = random_ids(rng, 512)
    return Workload([common + random_ids(rng, 32) for _ in range(16)], [32] * 16)


WORKLOADS: dict[str, Callable[[random.Random], Workload]] = {
    "single": single,
    "prefill": prefill,
    "batch": batch,
    "prefix": prefix,
}


@dataclass
class Samples:
    """What was measured of one workload.

    Attributes:
        seconds: by way, one a round.
        floors: of our side's steps, in seconds, one a round.
        output_tokens: really generated, by way; the same in each round.
    """

    seconds: dict[str, list[float]] = field(default_factory=lambda: {way: [] for way in WAYS})
    floors: list[float] = field(default_factory=list)
    output_tokens: dict[str, int] = field(default_factory=dict)


class Floor:
    """Adds up the least time that the steps of an engine could take.

    A step reads the weights and the keys and values of its sequences once, and multiplies: it
    takes at least the longer of the two. Embeddings are not multiplied; the tokens whose logits
    are needed are, by the vocabulary.
    """

    def __init__(self, llm: LLM, limits: Limits) -> None:
        """Watch the engine's steps."""
        runner = llm.llm_engine.runner
        model: Any = runner.model.model
        head = model.config.vocab_size * model.config.hidden_size
        embedding = 0 if model.config.tie_word_embeddings else head
        weights = model_parameters(llm) - head - embedding
        self.seconds = 0.0
        itemsize = runner.model.dtype.itemsize
        kv_bytes = sum(layer.numbers for layer in runner.model.layers) * itemsize
        execute = runner.execute

        def watch(plan: Any) -> Any:
            context = sum(entry.start + entry.num_tokens for entry in plan.scheduled)
            rows = sum(bool(entry.samples) for entry in plan.scheduled)
            read = (weights + head * bool(rows)) * itemsize + context * kv_bytes
            products = 2 * (plan.num_tokens * weights + rows * head)
            self.seconds += max(read / limits.bandwidth, products / limits.rate)
            return execute(plan)

        runner.execute = watch  # type: ignore[method-assign]

    def take(self) -> float:
        """The seconds since it was last asked."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


def model_parameters(llm: LLM) -> int:
    """Parameters of the model as it was loaded: packing hides those of linear layers."""
    path = llm.llm_engine.config.model_config.model
    with torch.device("meta"):
        from transformers import AutoConfig

        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path))
    return int(model.num_parameters())


@pytest.fixture(scope="session")
def model_path() -> str:
    """FOLOVLLM_MODEL, else the default model."""
    return os.environ.get("FOLOVLLM_MODEL") or str(folovllm.ensure_demo_model())


@pytest.fixture(scope="session")
def dtype() -> torch.dtype:
    """FOLOVLLM_DTYPE, else float32."""
    return getattr(torch, os.environ.get("FOLOVLLM_DTYPE", "float32"))


@pytest.fixture(scope="session")
def samples(
    model_path: str, dtype: torch.dtype, rounds: int, threads: int, summary: list[str], say: Say
) -> dict[str, Samples]:
    """All workloads, one sample of each way in turn, as often as there are rounds."""
    torch.set_num_threads(threads)
    theirs: Any = AutoModelForCausalLM.from_pretrained(model_path, dtype=dtype).eval()
    llm = LLM(model_path, dtype=str(dtype).removeprefix("torch."), device="cpu")
    limits = measure_limits(torch.device("cpu"), dtype)
    floor = Floor(llm, limits)
    ways: dict[str, Callable[[Workload], int]] = {
        "folovllm": lambda workload: run_ours(llm, workload),
        "transformers": lambda workload: run_theirs(theirs, workload),
    }
    for run in ways.values():  # the first run takes memory and makes threads
        run(Workload([random_ids(random.Random(1), 64)], [8]))
    taken = {name: Samples() for name in WORKLOADS}
    rng = random.Random(os.getpid())
    for number in range(1, rounds + 1):
        say(f"round {number} of {rounds}, load average {os.getloadavg()[0]:.2f}")
        for name, make in WORKLOADS.items():
            workload = make(rng)
            floor.take()
            for way in WAYS if number % 2 else reversed(WAYS):
                start = time.perf_counter()
                taken[name].output_tokens[way] = ways[way](workload)
                taken[name].seconds[way].append(time.perf_counter() - start)
            taken[name].floors.append(floor.take())
    summary += summarize(taken, limits, f"{Path(model_path).name}, {threads} threads")
    return taken


def run_ours(llm: LLM, workload: Workload) -> int:
    """Generate; the number of tokens."""
    params = [
        SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, detokenize=False)
        for count in workload.output_lens
    ]
    outputs = llm.generate(workload.prompts, params, use_tqdm=False)
    return sum(len(output.outputs[0].token_ids) for output in outputs)


@torch.inference_mode()
def run_theirs(model: Any, workload: Workload) -> int:
    """Generate with all prompts in one batch, padded on the left; the number of tokens wanted.

    The batch goes on until its longest output is done: the tokens that the others get meanwhile
    nobody asked for, and they are not counted.
    """
    longest = max(map(len, workload.prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in workload.prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in workload.prompts])
    new = max(workload.output_lens)
    output = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=new,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
    )
    assert output.shape[1] == longest + new
    return workload.num_outputs


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", WORKLOADS)
@pytest.mark.benchmark(timer=CLOCK)
def test_generate(
    benchmark: BenchmarkFixture, samples: dict[str, Samples], threads: int, name: str, way: str
) -> None:
    """Greedy, end-of-sequence ignored, random prompts."""
    taken = samples[name]
    assert taken.output_tokens["folovllm"] == taken.output_tokens["transformers"]
    benchmark.group = f"{name}: {WORKLOADS[name].__doc__}"
    benchmark.extra_info |= {
        "threads": threads,
        "output_tokens": taken.output_tokens[way],
        "floor_seconds": taken.floors if way == "folovllm" else None,
    }
    hand_over(benchmark, taken.seconds[way])


def summarize(taken: dict[str, Samples], limits: Limits, what: str) -> list[str]:
    """The table that answers the question: floor, ours, theirs, share and ratio."""
    columns = "{:<9}{:>9}{:>11}{:>14}{:>17}{:>8}  {}".format
    machine = (
        f"Generation: {what}; limits {limits.bandwidth / 1e9:.0f} GB/s, "
        f"{limits.rate / 1e9:.0f} GFLOP/s"
    )
    heads = ("medians", "floor", "FoloVLLM", "transformers", "out tok/s", "share", "ratio")
    lines = ["", machine, columns(*heads)]
    for name, samples in taken.items():
        ours, theirs = (samples.seconds[way] for way in WAYS)
        ratios = sorted(b / a for a, b in zip(ours, theirs, strict=True))
        share = median(f / a for f, a in zip(samples.floors, ours, strict=True))
        lines.append(
            columns(
                name,
                f"{median(samples.floors):.2f} s",
                f"{median(ours):.2f} s",
                f"{median(theirs):.2f} s",
                f"{samples.output_tokens['folovllm'] / median(ours):.1f}",
                f"{share:.0%}",
                f"{median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f}) times as fast",
            )
        )
    return lines
