"""Closed batches: requests that are all there at once, and how long it takes until all are done.

Every way gets the same requests, in turn: in one round as they are listed, in the next the other
way round, so that what drifts falls on all of them.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any, TypeAlias

from folovllm.bench.floor import Floor
from folovllm.bench.results import OURS, BenchError, Measurement, Record, Say, back_and_forth
from folovllm.bench.workloads import (
    RandomSource,
    Source,
    Workload,
    nano_vllm,
    uniform,
)
from folovllm.config.bench import Range
from folovllm.sampling_params import SamplingParams

if TYPE_CHECKING:
    from folovllm.llm import LLM

Way: TypeAlias = Callable[[Workload], int]
"""Generates for all requests, greedily and to the length asked for; how many tokens that were."""


@dataclass(frozen=True, slots=True)
class Case:
    """A kind of requests.

    Attributes:
        name: for tables.
        text: in words.
        source: where they come from.
        count: how many at once.
    """

    name: str
    text: str
    source: Source
    count: int


@dataclass(slots=True)
class _CaseSamples:
    """What was measured of a case, one of each a round."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    floors: list[float] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)


def named_cases(vocab_size: int, seed: int) -> dict[str, Case]:
    """The requests that results are compared by, by name; `seed` is that of the token ids."""

    def case(name: str, text: str, lengths: Any, count: int, num_common: int = 0) -> Case:
        # A seed of its own: what one has asked another must not find in the cache.
        source = RandomSource(lengths, vocab_size, seed=f"{seed}-{name}", num_common=num_common)
        return Case(name, text, source, count)

    def fixed(tokens_in: int, tokens_out: int) -> Any:
        return uniform(Range(tokens_in, tokens_in), Range(tokens_out, tokens_out))

    batch = uniform(Range(16, 256), Range(16, 128))
    cases = (
        case("single", "1 request, 128 tokens in, 128 out", fixed(128, 128), 1),
        case("prefill", "1 request, 1024 tokens in, 1 out", fixed(1024, 1), 1),
        case("batch", "32 requests at once, 16-256 tokens in, 16-128 out", batch, 32),
        case(
            "prefix",
            "16 requests, 512 tokens in common and 32 of their own, 32 out, cold cache",
            fixed(544, 32),
            16,
            num_common=512,
        ),
        case("nano-vllm", "256 requests at once, 100-1024 tokens in and out", nano_vllm, 256),
    )
    return {case.name: case for case in cases}


DEFAULT_CASES = ("single", "prefill", "batch", "prefix")


def measure_throughput(
    cases: Sequence[Case],
    ways: Mapping[str, Way],
    *,
    rounds: int,
    floor: Floor | None,
    record: Record,
    say: Say,
    clock: Callable[[], float] = time.perf_counter,
) -> None:
    """Run all cases by all ways, and record what was measured when all rounds are done.

    What is interrupted leaves the rounds behind that each case has finished.

    Args:
        cases: each measured as often as there are rounds.
        ways: who does it, by name.
        rounds: how many.
        floor: of the way `OURS`; None without it.
        record: takes measurements.
        say: takes lines that tell how it is going.
        clock: in seconds.

    Raises:
        BenchError: something of it cannot be done.
    """
    taken = {case.name: _CaseSamples() for case in cases}
    try:
        turns = zip(back_and_forth(cases, rounds), back_and_forth(ways, rounds), strict=True)
        for number, (turn, order) in enumerate(turns, start=1):
            for case in turn:
                _run(case, ways, order, floor, taken[case.name], clock)
                samples = taken[case.name].seconds
                each = ", ".join(f"{way} {samples[way][-1]:.2f} s" for way in ways)
                say(f"throughput, round {number} of {rounds}, {case.name}: {each}")
    finally:
        for case in cases:
            if taken[case.name].outputs:
                _record(case, taken[case.name], record)


def _run(
    case: Case,
    ways: Mapping[str, Way],
    order: Sequence[str],
    floor: Floor | None,
    samples: _CaseSamples,
    clock: Callable[[], float],
) -> None:
    """One round of a case."""
    workload = case.source.draw(case.count)
    if floor is not None:
        floor.take()
    seconds = {}
    for way in order:
        start = clock()
        generated = ways[way](workload)
        seconds[way] = clock() - start
        if generated != workload.num_outputs:
            raise BenchError(
                f"{case.name}: {way} generated {generated} tokens, {workload.num_outputs} were "
                "asked for: what took a different time cannot be compared"
            )
    for way, value in seconds.items():
        samples.seconds.setdefault(way, []).append(value)
    least = None if floor is None else floor.take()
    if least is not None:
        samples.floors.append(least)
    samples.inputs.append(workload.num_inputs)
    samples.outputs.append(workload.num_outputs)


def _record(case: Case, samples: _CaseSamples, record: Record) -> None:
    parameters: dict[str, float | str] = {
        "workload": case.text,
        "requests": case.count,
        "input tokens": median(samples.inputs),
        "output tokens": median(samples.outputs),
    }
    for way, seconds in samples.seconds.items():
        floors = samples.floors if way == OURS and samples.floors else None
        record(
            Measurement(
                "throughput", case.name, way, "time", "s", "lower", seconds, floors,
                parameters=parameters,
            )
        )  # fmt: skip
        if max(samples.outputs) == case.count:  # one each: to wait for it is all there is
            continue
        rates = [count / each for count, each in zip(samples.outputs, seconds, strict=True)]
        most = floors and [n / least for n, least in zip(samples.outputs, floors, strict=True)]
        record(
            Measurement(
                "throughput", case.name, way, "output tokens", "tok/s", "higher", rates, most,
                parameters=parameters,
            )
        )  # fmt: skip


def our_way(llm: "LLM") -> Way:
    """Generate with this engine."""

    def generate(workload: Workload) -> int:
        params = [
            SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, detokenize=False)
            for count in workload.output_lens
        ]
        outputs = llm.generate(workload.prompts, params, use_tqdm=False)
        if failed := [output.error for output in outputs if output.error]:
            raise BenchError(f"{len(failed)} of {len(outputs)} requests failed: {failed[0]}")
        return sum(len(output.outputs[0].token_ids) for output in outputs)

    return generate


def check_lengths(cases: Sequence[Case], max_model_len: int) -> None:
    """Refuse requests that the model does not take.

    Args:
        cases: what is to be measured.
        max_model_len: most tokens of a sequence.

    Raises:
        BenchError: the message names the case and both lengths.
    """
    for case in cases:
        longest = case.source.longest(case.count)
        if longest > max_model_len:
            raise BenchError(
                f"{case.name}: sequences of up to {longest} tokens, prompt and output, and the "
                f"model takes {max_model_len} (max_model_len)"
            )
