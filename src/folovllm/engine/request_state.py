"""What the output processor knows of a request that is not finished."""

from collections.abc import Mapping, Sequence as List
from typing import Literal, TypeAlias

from folovllm.outputs import CompletionOutput, Logprob, RequestMetrics, RequestOutput
from folovllm.request import Request, Sequence, SequenceStatus
from folovllm.sampling_params import RequestOutputKind
from folovllm.text.detokenizer import Detokenizer
from folovllm.text.token_text import TokenText

Logprobs: TypeAlias = dict[int, Logprob]
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

    __slots__ = (
        "_cumulative_logprob",
        "_detokenizer",
        "_keep_stop",
        "_logprobs",
        "_sent",
        "request",
        "seq",
    )

    def __init__(self, request: "RequestState", seq: Sequence) -> None:
        """Begin with no output."""
        params = seq.sampling_params
        text = request.text
        self.request = request
        self.seq = seq
        self._detokenizer = (
            None if text is None else Detokenizer(text, params, seq.data.prompt_token_ids)
        )
        self._keep_stop = params.include_stop_str_in_output
        self._logprobs: list[Logprobs] | None = None if params.logprobs is None else []
        self._cumulative_logprob = 0.0
        self._sent = 0  # tokens that are in an output already, with DELTA

    @property
    def changed(self) -> bool:
        """Whether there is something of it that no output has had, with DELTA."""
        seq = self.seq
        aborted = seq.status is SequenceStatus.FINISHED_ABORTED
        return aborted or self._sent < seq.data.get_output_len()

    @property
    def cumulative_logprob(self) -> float:
        """The sum of what is known of the tokens' log probabilities."""
        return self._cumulative_logprob

    def add(self, token_id: int, logprobs: Logprobs | None, now: float) -> str | None:
        """Take in the newest token; return the stop string that it completed, if any."""
        self.request.count_token(now)
        if logprobs is not None:
            self._cumulative_logprob += logprobs[token_id].logprob
            if self._logprobs is not None:
                self.request.decode_logprobs(logprobs)
                self._logprobs.append(logprobs)
        if self._detokenizer is None:
            return None
        # The token that ended it, end-of-sequence or a stop id, is no part of the text.
        if self.seq.status is SequenceStatus.FINISHED_STOPPED and not self._keep_stop:
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
            cumulative_logprob=None if logprobs is None else self._cumulative_logprob,
            logprobs=None if logprobs is None else logprobs[start:],
            finish_reason=_FINISH_REASONS[seq.status] if finished else None,
            stop_reason=seq.stop_reason,
        )


class RequestState:
    """A request's sequences, the log probabilities of its prompt, and its times.

    Attributes:
        request: the request.
        text: makes text of tokens; None without a tokenizer or with `detokenize=False`.
        sequences: in the request's order.
        num_unfinished: how many of them are not known to be finished.
        streams: whether there are outputs before it is finished.
        metrics: its times so far.
    """

    def __init__(self, request: Request, text: TokenText | None, now: float) -> None:
        """Begin with no output; `now` is its arrival."""
        params = request.sampling_params
        self.request = request
        self.text = text if params.detokenize else None
        self.sequences = [SequenceState(self, seq) for seq in request.sequences.values()]
        self.num_unfinished = len(self.sequences)
        self._selects = params.best_of > params.n
        self.streams = params.output_kind is not RequestOutputKind.FINAL_ONLY and not self._selects
        self._delta = self.streams and params.output_kind is RequestOutputKind.DELTA
        self.metrics = RequestMetrics(arrival_time=now, num_sequences=params.best_of)
        self._prompt_logprobs: list[Logprobs | None] | None = (
            None if params.prompt_logprobs is None else [None]
        )

    def count_token(self, now: float) -> None:
        """Note that one of its sequences has a token more."""
        metrics = self.metrics
        metrics.num_generation_tokens += 1
        metrics.last_token_time = now
        if metrics.first_token_time is None:
            metrics.first_token_time = now

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

    def finish(self, now: float) -> None:
        """Note that nothing more is generated, and choose among the candidates."""
        self.num_unfinished = 0
        self.metrics.finished_time = now
        if self._selects:
            n = self.request.sampling_params.n
            ranked = sorted(self.sequences, key=lambda s: s.cumulative_logprob, reverse=True)
            self.sequences = ranked[:n]
            for state in ranked[n:]:
                state.seq.status = SequenceStatus.FINISHED_IGNORED

    def make_output(self, error: str | None = None) -> RequestOutput:
        """Make an output of the kind that the request wants."""
        request, delta = self.request, self._delta
        seqs = request.sequences.values()
        self.metrics.num_preemptions = sum(seq.num_preemptions for seq in seqs)
        prompt_logprobs = self._prompt_logprobs
        if delta:
            self._prompt_logprobs = None  # once, like everything else
        return RequestOutput(
            request_id=request.request_id,
            prompt=request.prompt,
            prompt_token_ids=request.prompt_token_ids,
            outputs=[
                state.make_output(index, delta=delta)
                for index, state in enumerate(self.sequences)
                if not delta or state.changed
            ],
            finished=not self.num_unfinished,
            metrics=self.metrics,
            prompt_logprobs=prompt_logprobs,
            num_cached_tokens=next(iter(seqs)).num_cached_tokens,
            error=error,
        )
