"""Open arrival: requests that come when they come, however long the ones before them take.

Every time is counted from the moment at which a request was due, not from when it was taken:
while a server stands still, requests go on arriving, and their waiting is part of the answer.
(Who counts from sending asks only when there is an answer, and leaves out the worst: "coordinated
omission", Gil Tene, "How NOT to Measure Latency", 2013.)
"""

import random
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from folovllm.bench.results import BenchError
from folovllm.bench.workloads import Workload
from folovllm.outputs import RequestOutput
from folovllm.sampling_params import RequestOutputKind, SamplingParams


class Clock(Protocol):
    """Time, which a test plays."""

    def now(self) -> float:
        """Seconds since whenever."""

    def sleep(self, seconds: float) -> None:
        """Let time pass."""


class WallClock:
    """The real time."""

    def now(self) -> float:
        """See `Clock`."""
        return time.perf_counter()

    def sleep(self, seconds: float) -> None:
        """See `Clock`."""
        time.sleep(seconds)


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request, and when it is due.

    Attributes:
        due: in seconds from the start.
        prompt: token ids.
        num_outputs: tokens to be generated.
    """

    due: float
    prompt: list[int]
    num_outputs: int


@dataclass(slots=True)
class Outcome:
    """What became of a request; times are in seconds from the start.

    Attributes:
        due: when it should have arrived.
        first: when its first token was there.
        last: when its newest token was there.
        num_outputs: tokens so far.
        finished: whether that is all of them; what is cut off never is.
        error: why it failed.
    """

    due: float
    first: float | None = None
    last: float | None = None
    num_outputs: int = 0
    finished: bool = False
    error: str | None = None

    def count(self, tokens: int, now: float) -> None:
        """Note that there are more tokens."""
        if self.first is None:
            self.first = now
        self.last = now
        self.num_outputs += tokens

    @property
    def time_to_first_token(self) -> float | None:
        """From when it was due; None unless it finished."""
        return self.first - self.due if self.finished and self.first is not None else None

    @property
    def time_per_output_token(self) -> float | None:
        """From token to token on average; None unless it finished with two or more."""
        if not self.finished or self.first is None or self.last is None or self.num_outputs < 2:
            return None
        return (self.last - self.first) / (self.num_outputs - 1)

    @property
    def latency(self) -> float | None:
        """From when it was due until its last token; None unless it finished."""
        return self.last - self.due if self.finished and self.last is not None else None


class Target(Protocol):
    """What requests arrive at.

    Attributes:
        name: for tables.
    """

    name: str

    def run(self, arrivals: Sequence[Arrival]) -> list[Outcome]:
        """Let requests arrive, until all of them are finished or have failed.

        Args:
            arrivals: in the order in which they are due.
        """

    def check_alive(self) -> None:
        """Find out whether it goes on.

        Raises:
            BenchError: it does not; the message says why.
        """


def poisson(workload: Workload, rate: float, seed: int | str) -> list[Arrival]:
    """Let requests arrive independently of each other, the first one at once.

    Args:
        workload: the requests.
        rate: how many arrive in a second on average.
        seed: of the gaps.

    Raises:
        BenchError: the rate is no positive number.
    """
    if not 0 < rate < float("inf"):
        raise BenchError(f"a rate must be above 0 requests a second, got {rate:g}")
    rng = random.Random(seed)  # noqa: S311 - nothing to keep secret
    due, arrivals = 0.0, []
    for prompt, count in zip(workload.prompts, workload.output_lens, strict=True):
        arrivals.append(Arrival(due, prompt, count))
        due += rng.expovariate(rate)
    return arrivals


def at_once(workload: Workload) -> list[Arrival]:
    """Let all requests arrive at the start."""
    each = zip(workload.prompts, workload.output_lens, strict=True)
    return [Arrival(0.0, prompt, count) for prompt, count in each]


class Engine(Protocol):
    """What of `LLMEngine` is used here."""

    def add_request(self, request_id: str, prompt: list[int], params: SamplingParams) -> None:
        """See `LLMEngine`."""

    def step(self) -> list[RequestOutput]:
        """See `LLMEngine`."""

    def has_unfinished_requests(self) -> bool:
        """See `LLMEngine`."""


class EngineTarget:
    """An engine in this process.

    What comes due during a step waits for its end, as it would behind a server, too: it is part
    of the times that are measured.

    Args:
        engine: nobody else uses it meanwhile.
        clock: tells the time.
    """

    name = "folovllm"

    def __init__(self, engine: Engine, clock: Clock | None = None) -> None:
        """Keep the engine."""
        self._engine = engine
        self._clock = clock or WallClock()

    def run(self, arrivals: Sequence[Arrival]) -> list[Outcome]:
        """See `Target`."""
        outcomes = [Outcome(arrival.due) for arrival in arrivals]
        waiting = deque(enumerate(arrivals))
        start = self._clock.now()
        while waiting or self._engine.has_unfinished_requests():
            now = self._clock.now() - start
            if not self._engine.has_unfinished_requests() and waiting[0][1].due > now:
                self._clock.sleep(waiting[0][1].due - now)
                now = self._clock.now() - start
            for place, arrival in _take_due(waiting, now):
                self._add(place, arrival, outcomes[place])
            outputs = self._engine.step()
            now = self._clock.now() - start
            for output in outputs:
                _note(output, outcomes[int(output.request_id)], now)
        return outcomes

    def check_alive(self) -> None:
        """See `Target`: an engine that cannot go on has said so by an exception."""

    def _add(self, place: int, arrival: Arrival, outcome: Outcome) -> None:
        params = SamplingParams(
            temperature=0,
            max_tokens=arrival.num_outputs,
            ignore_eos=True,
            output_kind=RequestOutputKind.DELTA,
        )
        try:
            self._engine.add_request(str(place), arrival.prompt, params)
        except ValueError as error:
            outcome.error = str(error)


def _take_due(waiting: deque[tuple[int, Arrival]], now: float) -> Iterator[tuple[int, Arrival]]:
    while waiting and waiting[0][1].due <= now:
        yield waiting.popleft()


def _note(output: RequestOutput, outcome: Outcome, now: float) -> None:
    if output.error is not None:
        outcome.error = output.error
        return
    [completion] = output.outputs
    outcome.count(len(completion.token_ids), now)
    outcome.finished = output.finished
