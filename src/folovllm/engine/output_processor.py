"""From the tokens of a step to `RequestOutput`s."""

import time
from collections.abc import Callable, Mapping, Sequence as List
from typing import TYPE_CHECKING, Protocol

from folovllm.core.plan import SchedulerOutput
from folovllm.engine.request_state import RequestState, SequenceState
from folovllm.outputs import Logprob, RequestOutput
from folovllm.request import Request, Sequence, SequenceStatus
from folovllm.text.token_text import TokenText

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Logprobs = dict[int, Logprob]


class StepResult(Protocol):
    """What a step came to, as the model runner gives it.

    Attributes:
        token_ids: one for each of the plan's samples, in their order.
        logprobs: in the same order; None where none were asked for.
        prompt_logprobs: by sequence id, of the prompt tokens that the step predicted.
    """

    @property
    def token_ids(self) -> List[int]: ...  # noqa: D102  # above
    @property
    def logprobs(self) -> List[Logprobs | None] | None: ...  # noqa: D102
    @property
    def prompt_logprobs(self) -> Mapping[str, List[Logprobs]]: ...  # noqa: D102


class OutputProcessor:
    """Follows every unfinished request: its text, log probabilities and times.

    In each step, after the scheduler's update: `add`, then finish what it found a stop string
    in, then `make_outputs`. A request that was aborted meanwhile is unknown here and passed over.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase | None",
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Begin with no requests.

        Args:
            tokenizer: None leaves every text empty.
            clock: the time in seconds, for the metrics.
        """
        self._text = None if tokenizer is None else TokenText(tokenizer)
        self._clock = clock
        self._requests: dict[str, RequestState] = {}
        self._sequences: dict[str, SequenceState] = {}
        self._moved: list[SequenceState] = []

    def add_request(self, request: Request) -> None:
        """Follow a request from now on, which is its arrival in the metrics."""
        state = RequestState(request, self._text, self._clock())
        self._requests[request.request_id] = state
        for sequence in state.sequences:
            self._sequences[sequence.seq.seq_id] = sequence

    def add(
        self, plan: SchedulerOutput, result: StepResult, *, started: float | None = None
    ) -> list[tuple[Sequence, str]]:
        """Take in the tokens of a step, which the scheduler has appended by now.

        Args:
            plan: the step.
            result: what it came to.
            started: when it began, by the clock; None is now.

        Returns:
            The sequences in whose text a stop string is complete, each with that.
        """
        now = self._clock()
        if result.prompt_logprobs:
            self._add_prompt_logprobs(plan, result.prompt_logprobs)
        stopped: list[tuple[Sequence, str]] = []
        logprobs = result.logprobs
        i = -1
        for entry in plan.scheduled:
            self._mark_scheduled(entry.seq, now if started is None else started)
            for seq in entry.samples:
                i += 1
                state = self._sequences.get(seq.seq_id)
                if state is None or state.seq is not seq:  # aborted; its id may be in use again
                    continue
                self._moved.append(state)
                found = state.add(
                    result.token_ids[i], None if logprobs is None else logprobs[i], now
                )
                if found is not None:
                    stopped.append((seq, found))
        return stopped

    def make_outputs(self) -> list[RequestOutput]:
        """Return an output for each request that has something to show since the last call.

        With `FINAL_ONLY`, and where `best_of` leaves open which outputs are returned, that is
        the finished request alone. What is finished is forgotten.
        """
        moved: dict[RequestState, None] = {}
        for state in self._moved:
            request = state.request
            if state.seq.status.is_finished():
                request.num_unfinished -= 1
            if request.streams or not request.num_unfinished:
                moved[request] = None
        self._moved.clear()
        return [self._make_output(request) for request in moved]

    def abort(self, request_id: str, error: str | None = None) -> RequestOutput | None:
        """Forget a request.

        Args:
            request_id: its name.
            error: why, when it is the engine that gives it up.

        Returns:
            What there is of it, its unfinished outputs as "abort"; None if it is not known.
        """
        state = self._requests.get(request_id)
        if state is None:
            return None
        self._forget(state)
        for sequence in state.sequences:
            if not sequence.seq.is_finished():
                sequence.seq.status = SequenceStatus.FINISHED_ABORTED
        state.finish(self._clock())
        return state.make_output(error)

    def _make_output(self, state: RequestState) -> RequestOutput:
        if not state.num_unfinished:
            self._forget(state)
            state.finish(self._clock())
        return state.make_output()

    def _forget(self, state: RequestState) -> None:
        del self._requests[state.request.request_id]
        for sequence in state.sequences:
            del self._sequences[sequence.seq.seq_id]
        self._moved = [moved for moved in self._moved if moved.request is not state]

    def _mark_scheduled(self, seq: Sequence, started: float) -> None:
        state = self._requests.get(seq.request_id)
        if state is not None and state.metrics.first_scheduled_time is None:
            state.metrics.first_scheduled_time = started

    def _add_prompt_logprobs(
        self, plan: SchedulerOutput, logprobs: Mapping[str, List[Logprobs]]
    ) -> None:
        for entry in plan.scheduled:
            new = logprobs.get(entry.seq.seq_id)
            state = self._sequences.get(entry.seq.seq_id)
            if new is not None and state is not None and state.seq is entry.seq:
                state.request.add_prompt_logprobs(entry.start + 1, new)
