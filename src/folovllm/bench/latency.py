"""How long one waits: for the first token by prompt length, for the next by batch and context."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from folovllm.bench.floor import Floor
from folovllm.bench.results import OURS, BenchError, Measurement, Record, Say, back_and_forth
from folovllm.bench.tables import summarise
from folovllm.bench.workloads import RandomSource, uniform
from folovllm.config.bench import Range
from folovllm.sampling_params import RequestOutputKind, SamplingParams

if TYPE_CHECKING:
    from folovllm.engine.llm_engine import LLMEngine

_PARAMS = SamplingParams(
    temperature=0, ignore_eos=True, detokenize=False, output_kind=RequestOutputKind.DELTA
)


@dataclass(frozen=True, slots=True)
class LatencyPlan:
    """What is measured.

    Attributes:
        prompts: lengths by which to wait for the first token, in tokens.
        batches: how many sequences to decode together, each after `context` tokens.
        contexts: lengths after which to decode one sequence alone.
        context: of the batches.
        steps: decoding steps of each round: as many samples.
        rounds: how often each length of prompt is measured.
        decode_rounds: how often each batch and context is.
    """

    prompts: tuple[int, ...] = (16, 128, 512, 1024)
    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    contexts: tuple[int, ...] = (512, 1024)
    context: int = 128
    steps: int = 20
    rounds: int = 5
    decode_rounds: int = 2

    @property
    def points(self) -> list[tuple[int, int]]:
        """Batch and context of each case in which to wait for the next token."""
        batches = [(batch, self.context) for batch in self.batches]
        return list(dict.fromkeys(batches + [(1, context) for context in self.contexts]))

    def fit(self, max_model_len: int, max_num_seqs: int) -> "LatencyPlan":
        """Leave out what the engine does not take.

        Raises:
            BenchError: nothing is left of one of them.
        """
        room = max_model_len - self.steps - 1
        prompts = tuple(length for length in self.prompts if length < max_model_len)
        batches = tuple(size for size in self.batches if size <= max_num_seqs)
        # Those whose prompts come first go on while the others' are computed.
        context = min(self.context, room - max(batches, default=0))
        if not prompts or not batches or context < 1:
            raise BenchError(
                f"nothing to measure: prompts of {_listed(self.prompts)} tokens and batches of "
                f"{_listed(self.batches)} sequences that grow by {self.steps} tokens, and the "
                f"engine takes {max_model_len} tokens (max_model_len) and {max_num_seqs} sequences "
                "(max_num_seqs)"
            )
        contexts = tuple(length for length in self.contexts if length <= room)
        return replace(self, prompts=prompts, batches=batches, contexts=contexts, context=context)


@dataclass(slots=True)
class _Samples:
    seconds: list[float] = field(default_factory=list)
    floors: list[float] = field(default_factory=list)

    def add(self, seconds: float, floor: float | None) -> None:
        self.seconds.append(seconds)
        if floor is not None:
            self.floors.append(floor)


class LatencyBench:
    """Measures an engine that nobody else uses meanwhile.

    Args:
        engine: what is measured.
        floor: watches that engine.
        seed: of the prompts.
        record: takes measurements.
        say: takes lines that tell how it is going.
        clock: in seconds.
    """

    def __init__(
        self,
        engine: "LLMEngine",
        floor: Floor,
        *,
        seed: int,
        record: Record,
        say: Say,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Begin."""
        self._engine = engine
        self._floor = floor
        self._seed = seed
        self._num_draws = 0
        self._record = record
        self._say = say
        self._clock = clock

    def run(self, plan: LatencyPlan) -> None:
        """Measure all of a plan that the engine takes.

        Raises:
            BenchError: a step failed, or nothing can be measured.
        """
        engine = self._engine
        length, count = engine.setup.longest_sequence, engine.setup.max_num_seqs
        asked, plan = plan, plan.fit(length, count)
        if plan != asked:
            self._say(
                f"latency: the engine takes {length} tokens a sequence and {count} sequences; what "
                "is beyond is left out"
            )
        self._decode(1, plan.prompts[0], 1, _Samples())  # the first run takes memory
        self._measure_first_tokens(plan)
        self._measure_next_tokens(plan)

    def _measure_first_tokens(self, plan: LatencyPlan) -> None:
        taken = {length: _Samples() for length in plan.prompts}
        try:
            for turn in back_and_forth(taken, plan.rounds):
                for length in turn:
                    self._prefill(length, taken[length])
        finally:
            for length, samples in taken.items():
                case = f"prompt of {length} tokens"
                self._keep(case, "time to first token", samples, {"prompt": length})

    def _measure_next_tokens(self, plan: LatencyPlan) -> None:
        taken = {point: _Samples() for point in plan.points}
        try:
            for turn in back_and_forth(taken, plan.decode_rounds):
                for point in turn:
                    self._decode(*point, plan.steps, taken[point])
        finally:
            for (batch, context), samples in taken.items():
                parameters: dict[str, float | str] = {"batch": batch, "context": context}
                case = f"batch of {batch}, context of {context}"
                self._keep(case, "time per output token", samples, parameters)

    def _prefill(self, length: int, samples: _Samples) -> None:
        """A prompt's first token, from when it is handed over."""
        self._floor.take()
        start = self._clock()
        self._add(1, length, max_tokens=1)
        while self._engine.has_unfinished_requests():
            self._step()
        samples.add(self._clock() - start, self._floor.take())

    def _decode(self, batch: int, context: int, steps: int, samples: _Samples) -> None:
        """Steps in which each sequence of a batch gets a token: a step is the time between two."""
        ids = self._add(batch, context, max_tokens=None)
        waiting = set(ids)
        for _ in range(batch * context):  # a token of a prompt is computed in each step at least
            moved = self._step()
            waiting -= moved
            if not waiting:
                break
        _check_room(len(moved), batch, context)
        self._floor.take()
        for _ in range(steps):
            start = self._clock()
            moved = self._step()
            samples.add(self._clock() - start, self._floor.take())
            _check_room(len(moved), batch, context)
        self._engine.abort_request(ids)

    def _add(self, count: int, length: int, max_tokens: int | None) -> list[str]:
        self._num_draws += 1
        lengths = uniform(Range(length, length), Range(1, 1))
        seed = f"{self._seed}-latency-{self._num_draws}"
        vocab_size = self._engine.setup.vocab_size
        prompts = RandomSource(lengths, vocab_size, seed=seed).draw(count).prompts
        ids = [f"{seed}-{place}" for place in range(count)]
        for request_id, prompt in zip(ids, prompts, strict=True):
            self._engine.add_request(request_id, prompt, replace(_PARAMS, max_tokens=max_tokens))
        return ids

    def _step(self) -> set[str]:
        """A step; the ids of the requests that got a token."""
        outputs = self._engine.step()
        if failed := [output.error for output in outputs if output.error]:
            raise BenchError(f"a step failed: {failed[0]}")
        return {output.request_id for output in outputs}

    def _keep(
        self, case: str, metric: str, samples: _Samples, parameters: dict[str, float | str]
    ) -> None:
        if not samples.seconds:  # interrupted before
            return
        floors = samples.floors or None
        measurement = Measurement(
            "latency", case, OURS, metric, "s", "lower", samples.seconds, floors,
            parameters=parameters,
        )  # fmt: skip
        self._record(measurement)
        self._say(f"latency, {case}: {metric} {summarise(samples.seconds)}")


def _check_room(moved: int, batch: int, context: int) -> None:
    if moved != batch:
        raise BenchError(
            f"{moved} of {batch} sequences of {context} tokens run at once: max_model_len or the "
            "cache is too small for all of them (cpu_kvcache_space, gpu_memory_utilization)"
        )


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
