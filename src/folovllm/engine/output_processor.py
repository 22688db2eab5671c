"""From the tokens of a step to `RequestOutput`s."""

import logging
import time
from collections.abc import Callable, Iterable, Sequence as List
from typing import TYPE_CHECKING

from folovllm.core.token_reader import Logprobs
from folovllm.engine.failures import describe
from folovllm.engine.request_state import RequestState, SequenceState
from folovllm.outputs import RequestOutput
from folovllm.request import Request, Sequence
from folovllm.text.token_text import TokenText

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


logger = logging.getLogger(__name__)


def give_up(request: Request, what: str, error: BaseException | None) -> None:
    """Note why a request is to be ended: its `error`, and the log."""
    reason = f"{what}: {describe(error)}"
    logger.error("request %r was given up: %s", request.request_id, reason, exc_info=error)
    if request.error is None:
        request.error = reason


class OutputProcessor:
    """Follows every unfinished request: its text, log probabilities and times.

    It is the scheduler's `TokenReader`: in each step it reads the tokens while the scheduler
    appends them, and tells it of stop strings; then `make_outputs`. What it knows of a request
    stands in the request's own record.
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
        self._moved: dict[Request, None] = {}  # in this step, in order

    def prepare(self, request: Request) -> None:
        """Make what is kept of a request, in its record; any thread may do that for a new one."""
        request.output = RequestState(request, self._text)
        for seq in request.sequences.values():
            seq.output = SequenceState(request.output, seq)

    def read_token(
        self, seq: Sequence, token_id: int, logprobs: Logprobs | None, is_end: bool
    ) -> str | None:
        """Read a new token; return the stop string that it completes: `TokenReader`."""
        state: SequenceState = seq.output
        self._moved[seq.request] = None
        try:
            return state.add(token_id, logprobs, self._clock(), is_end)
        except Exception as error:  # noqa: BLE001 - of a tokenizer, of whatever class
            give_up(seq.request, "its text could not be made", error)
            return None

    def read_prompt(self, seq: Sequence, position: int, logprobs: List[Logprobs]) -> None:
        """Read log probabilities of a prompt from `position` on: `TokenReader`."""
        state: RequestState = seq.request.output
        try:
            state.add_prompt_logprobs(position, logprobs)
        except Exception as error:  # noqa: BLE001 - of a tokenizer, of whatever class
            give_up(seq.request, "the text of its prompt's tokens could not be made", error)

    def make_outputs(self, failed: Iterable[Request] = ()) -> list[tuple[Request, RequestOutput]]:
        """Return an output for each request that has something to show since the last call.

        With `FINAL_ONLY`, and where `best_of` leaves open which outputs are returned, that is
        the finished request alone.

        A request whose output cannot be made gets its last one, without text, and has its
        `error` set; the caller ends it.

        Args:
            failed: requests that ended by an error: they have an output in any case.
        """
        outputs = []
        for request in (*self._moved, *(each for each in failed if each not in self._moved)):
            state: RequestState = request.output
            finished = not request.num_unfinished
            if finished:
                request.metrics.finished_time = self._clock()
            if finished or state.streams:
                try:
                    output = state.make_output(finished=finished)
                except Exception as error:  # noqa: BLE001 - of a tokenizer, of whatever class
                    give_up(request, "its output could not be made", error)
                    output = self.make_failure(request)
                outputs.append((request, output))
        self._moved.clear()
        return outputs

    def make_failure(self, request: Request) -> RequestOutput:
        """Return the last output of a request that is given up: tokens, and no text."""
        state: RequestState = request.output
        request.metrics.finished_time = self._clock()
        return state.make_failure()
