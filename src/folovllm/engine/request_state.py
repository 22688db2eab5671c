"""What the output processor keeps of a request that is not finished, in the request's record."""

from collections.abc import Mapping, Sequence as List
from typing import Literal, TypeAlias

from folovllm.core.token_reader import Logprobs
from folovllm.outputs import CompletionOutput, RequestOutput
from folovllm.request import Request, Sequence, SequenceStatus
from folovllm.sampling_params import RequestOutputKind
from folovllm.text.detokenizer import Detokenizer
from folovllm.text.token_text import TokenText

FinishReason: TypeAlias = Literal["stop", "length", "abort"]

_FINISH_REASONS: Mapping[SequenceStatus, FinishReason] = {
    SequenceStatus.FINISHED_STOPPED: "stop",
    SequenceStatus.FINISHED_LENGTH_CAPPED: "length",
    SequenceStatus.FINISHED_ABORTED: "abort",
}


class SequenceState:
    """One sequence's text and log probabilities.

    Attributes:
        request: the state of its request.
        seq: the sequence.
    """

    __slots__ = ("_detokenizer", "_keep_stop", "_logprobs", "_metrics", "_sent", "request", "seq")

    def __init__(self, request: "RequestState", seq: Sequence) -> None:
        """Begin with no output."""
        params = seq.sampling_params
        text = request.text
        self.request = request
        self.seq = seq
        self._metrics = seq.request.metrics
        self._detokenizer = (
            None if text is None else Detokenizer(text, params, seq.data.prompt_token_ids)
        )
        self._keep_stop = params.include_stop_str_in_output
        self._logprobs: list[Logprobs] | None = None if params.logprobs is None else []
        self._sent = 0  # tokens that are in an output already, with DELTA

    @property
    def changed(self) -> bool:
        """Whether there is something of it that no output has had, with DELTA."""
        seq = self.seq
        aborted = seq.status is SequenceStatus.FINISHED_ABORTED
        return aborted or self._sent < seq.data.get_output_len()

    def add(self, token_id: int, logprobs: Logprobs | None, now: float, is_end: bool) -> str | None:
        """Take in the newest token; return the stop string that it completed, if any."""
        metrics = self._metrics
        metrics.num_generation_tokens += 1
        metrics.last_token_time = now
        if metrics.first_token_time is None:
            metrics.first_token_time = now
        if logprobs is not None and self._logprobs is not None:
            self.request.decode_logprobs(logprobs)
            self._logprobs.append(logprobs)
        # The token that ended it, end-of-sequence or a stop id, is no part of the text.
        if self._detokenizer is None or (is_end and not self._keep_stop):
            return None
        return self._detokenizer.push(token_id)

    def make_output(self, index: int, *, delta: bool) -> CompletionOutput:
        """Make an output of all so far, or of what came since the last one."""
        seq, detokenizer, start = self.seq, self._detokenizer, self._sent
        finished = seq.status.is_finished()
        text = ""
        if detokenizer is not None:
            text = (detokenizer.take if delta else detokenizer.text)(finished=finished)
        if delta:
            self._sent = seq.data.get_output_len()
        logprobs = self._logprobs
        return CompletionOutput(
            index=index,
            text=text,
            token_ids=seq.data.output_token_ids[start:],
            cumulative_logprob=None if logprobs is None else seq.cumulative_logprob,
            logprobs=None if logprobs is None else logprobs[start:],
            finish_reason=_FINISH_REASONS[seq.status] if finished else None,
            stop_reason=seq.stop_reason,
        )

    def make_failure(self, index: int, *, delta: bool) -> CompletionOutput:
        """Make the last output where `make_output` cannot: the tokens alone."""
        seq = self.seq
        return CompletionOutput(
            index=index,
            text="",
            token_ids=seq.data.output_token_ids[self._sent if delta else 0 :],
            finish_reason=_FINISH_REASONS.get(seq.status, "abort"),
            stop_reason=seq.stop_reason,
        )


class RequestState:
    """A request's text, the log probabilities of its prompt, and what its outputs hold.

    Attributes:
        request: the request.
        text: makes text of tokens; None without a tokenizer or with `detokenize=False`.
        streams: whether there are outputs before it is finished.
    """

    __slots__ = ("_delta", "_prompt_logprobs", "_selects", "request", "streams", "text")

    def __init__(self, request: Request, text: TokenText | None) -> None:
        """Begin with no output."""
        params = request.sampling_params
        self.request = request
        self.text = text if params.detokenize else None
        self._selects = params.best_of > params.n
        wants_all = params.output_kind is not RequestOutputKind.FINAL_ONLY
        self.streams = wants_all and not self._selects
        self._delta = self.streams and params.output_kind is RequestOutputKind.DELTA
        self._prompt_logprobs: list[Logprobs | None] | None = (
            None if params.prompt_logprobs is None else [None]
        )

    def add_prompt_logprobs(self, position: int, logprobs: List[Logprobs]) -> None:
        """Add those of the prompt's tokens from `position` on.

        After a preemption they come once more: each is taken once.
        """
        known = self._prompt_logprobs
        if known is not None:
            for new in logprobs[len(known) - position :]:
                self.decode_logprobs(new)
                known.append(new)

    def decode_logprobs(self, logprobs: Logprobs) -> None:
        """Fill in the tokens' text."""
        if self.text is not None:
            for token_id, logprob in logprobs.items():
                logprob.decoded_token = self.text.of(token_id)

    def make_output(self, *, finished: bool) -> RequestOutput:
        """Make an output of the kind that the request wants."""
        request, delta = self.request, self._delta
        seqs = list(request.sequences.values())
        returned = self._choose(seqs)
        prompt_logprobs = self._prompt_logprobs
        if delta:
            self._prompt_logprobs = None  # once, like everything else
        states: list[SequenceState] = [seq.output for seq in returned]
        return RequestOutput(
            request_id=request.request_id,
            prompt=request.prompt,
            prompt_token_ids=request.prompt_token_ids,
            outputs=[
                state.make_output(index, delta=delta)
                for index, state in enumerate(states)
                if not delta or state.changed
            ],
            finished=finished,
            metrics=request.metrics,
            prompt_logprobs=prompt_logprobs,
            num_cached_tokens=seqs[0].num_cached_tokens,
            error=request.error,
        )

    def make_failure(self) -> RequestOutput:
        """Make the last output of a request that is given up, whatever it was that failed."""
        request = self.request
        seqs = request.get_seqs()[: request.sampling_params.n]
        states: list[SequenceState] = [seq.output for seq in seqs]
        return RequestOutput(
            request_id=request.request_id,
            prompt=request.prompt,
            prompt_token_ids=request.prompt_token_ids,
            outputs=[s.make_failure(i, delta=self._delta) for i, s in enumerate(states)],
            finished=True,
            metrics=request.metrics,
            num_cached_tokens=seqs[0].num_cached_tokens,
            error=request.error,
        )

    def _choose(self, seqs: list[Sequence]) -> list[Sequence]:
        """The sequences to return: of `best_of` candidates the `n` most likely, in that order."""
        if not self._selects:
            return seqs
        ranked = sorted(seqs, key=lambda seq: seq.cumulative_logprob, reverse=True)
        return ranked[: self.request.sampling_params.n]
