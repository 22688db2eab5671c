"""What comes back to the user: a `RequestOutput` with its `CompletionOutput`s."""

from dataclasses import dataclass
from typing import Literal

_REPR_PROMPT_CHARS = 50


@dataclass(slots=True)
class Logprob:
    """The log probability of one token at one position.

    Attributes:
        logprob: natural logarithm of its probability under the model, before any of the
            sampling parameters apply.
        rank: its place in the vocabulary at that position, 1 the most likely; None if unknown.
        decoded_token: its text; None without detokenizing.
    """

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass(slots=True)
class CompletionOutput:
    """One output of a request.

    Attributes:
        index: its place among the request's outputs.
        text: the generated text.
        token_ids: the generated ids.
        cumulative_logprob: sum of the log probabilities of `token_ids`; None if not computed.
        logprobs: for each generated token, the log probabilities by token id; None unless
            asked for by `SamplingParams.logprobs`.
        finish_reason: "stop" for end-of-sequence, a stop string or a stop id, "length" for a
            limit, "abort" when it was aborted; None while it is being generated.
        stop_reason: the stop string or stop id that ended it; None otherwise, and for
            end-of-sequence.
    """

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: Literal["stop", "length", "abort"] | None = None
    stop_reason: int | str | None = None

    def finished(self) -> bool:
        """Whether nothing more will be generated."""
        return self.finish_reason is not None


@dataclass(slots=True)
class RequestMetrics:
    """When what happened to a request.

    Times are of `time.perf_counter()`, in seconds: good to subtract, no time of day. What has
    not happened yet is None.

    Attributes:
        arrival_time: it was added to the engine.
        first_scheduled_time: it was first part of a step.
        first_token_time: its first token was there.
        last_token_time: its newest token was there.
        finished_time: nothing more will be generated.
        num_generation_tokens: tokens generated so far, of all its sequences.
        num_sequences: how many there are, all in progress at once.
        num_preemptions: how often one of its sequences lost its place for a while.
    """

    arrival_time: float
    first_scheduled_time: float | None = None
    first_token_time: float | None = None
    last_token_time: float | None = None
    finished_time: float | None = None
    num_generation_tokens: int = 0
    num_preemptions: int = 0
    num_sequences: int = 1

    @property
    def time_in_queue(self) -> float | None:
        """Seconds from its arrival until it was first scheduled."""
        return _between(self.arrival_time, self.first_scheduled_time)

    @property
    def time_to_first_token(self) -> float | None:
        """Seconds from its arrival until its first token."""
        return _between(self.arrival_time, self.first_token_time)

    @property
    def time_per_output_token(self) -> float | None:
        """Seconds from token to token in one sequence, on average; None before there are two."""
        decode = _between(self.first_token_time, self.last_token_time)
        more = self.num_generation_tokens - self.num_sequences
        return decode * self.num_sequences / more if decode is not None and more > 0 else None


def _between(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else end - start


@dataclass(slots=True, repr=False)
class RequestOutput:
    """All that is known so far of a request's outputs.

    Attributes:
        request_id: the request's id.
        prompt: the prompt's text; None where the user gave ids alone.
        prompt_token_ids: the prompt's ids.
        outputs: `SamplingParams.n` of them.
        finished: whether nothing more will be generated.
        metrics: the request's times; None where they were not measured.
        prompt_logprobs: for each prompt token, the log probabilities by token id, None for the
            first, which nothing predicts; None unless asked for by
            `SamplingParams.prompt_logprobs`.
        num_cached_tokens: prompt tokens whose keys and values came from the prefix cache; None
            if not known.
        error: why the engine gave the request up, its outputs' `finish_reason` being "abort";
            None unless something failed.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    metrics: RequestMetrics | None = None
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    num_cached_tokens: int | None = None
    error: str | None = None

    def __repr__(self) -> str:
        """Show the outputs and a prompt cut at 50 characters; its token ids would undo the cut."""
        prompt = self.prompt
        if prompt is not None and len(prompt) > _REPR_PROMPT_CHARS:
            prompt = f"{prompt[:_REPR_PROMPT_CHARS]}..."
        return (
            f"RequestOutput(request_id={self.request_id!r}, prompt={prompt!r}, "
            f"outputs={self.outputs!r}, finished={self.finished}, metrics={self.metrics!r}, "
            f"num_cached_tokens={self.num_cached_tokens}, error={self.error!r})"
        )
