"""A request and its sequences: the engine's own data structures.

Three levels. A `Request` is what the user asked: a prompt and how to sample. It has one
`Sequence` for each candidate output, the unit that is scheduled and that holds cache blocks. A
`SequenceData` is a sequence's tokens.

They are mutable, and each is the one record of what it stands for: whoever follows a request or
a sequence keeps what is needed for that in the record. Once a request is queued, only the thread
that steps the engine writes to it. Requests and sequences are told apart by identity, so they can
be members of sets; only what a user passes in is checked.
"""

import copy
import time
from collections.abc import Iterable
from dataclasses import InitVar, dataclass, field
from enum import Enum
from typing import Any

from folovllm.outputs import RequestMetrics
from folovllm.sampling_params import NO_BAD_WORDS, BadWords, SamplingParams, SamplingSpec
from folovllm.utils.checks import check_text, check_token_ids, check_type, refuse

_LONGEST_ID = 1024
"""Every sequence and every plan that names one repeats it."""


class _Status(Enum):
    def __init__(self, value: str) -> None:
        # Looked up for every sequence in every step, so found out once.
        self._finished = value.startswith("finished")

    def is_finished(self) -> bool:
        """Whether nothing more will be generated."""
        return self._finished


class SequenceStatus(_Status):
    """Where a sequence stands."""

    WAITING = "waiting"
    RUNNING = "running"
    SWAPPED = "swapped"
    """Its cache blocks are in host memory."""
    FINISHED_STOPPED = "finished_stopped"
    FINISHED_LENGTH_CAPPED = "finished_length_capped"
    FINISHED_ABORTED = "finished_aborted"
    FINISHED_IGNORED = "finished_ignored"
    """A `best_of` candidate that is not returned."""


class RequestStatus(_Status):
    """Where a request stands."""

    WAITING = "waiting"
    RUNNING = "running"
    SWAPPED = "swapped"
    FINISHED_STOPPED = "finished_stopped"
    FINISHED_LENGTH_CAPPED = "finished_length_capped"
    FINISHED_ABORTED = "finished_aborted"


@dataclass(slots=True)
class SequenceData:
    """The tokens of a sequence.

    Attributes:
        prompt_token_ids: the prompt's ids, a copy of what was passed; never empty.
        output_token_ids: the generated ids so far, a copy of what was passed.

    Raises:
        ValueError: the prompt is empty, or an id is no integer >= 0.
    """

    prompt_token_ids: list[int]
    output_token_ids: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Check and copy the ids."""
        self.prompt_token_ids = check_token_ids("prompt_token_ids", self.prompt_token_ids)
        self.output_token_ids = check_token_ids("output_token_ids", self.output_token_ids)
        if not self.prompt_token_ids:
            refuse("prompt_token_ids", self.prompt_token_ids, "a list of at least one token id")

    def get_len(self) -> int:
        """Return the number of tokens, prompt and output."""
        return len(self.prompt_token_ids) + len(self.output_token_ids)

    def get_prompt_len(self) -> int:
        """Return the number of prompt tokens."""
        return len(self.prompt_token_ids)

    def get_output_len(self) -> int:
        """Return the number of generated tokens."""
        return len(self.output_token_ids)

    def get_token_ids(self) -> list[int]:
        """Return all ids, prompt and output, in a new list: O(length)."""
        return self.prompt_token_ids + self.output_token_ids

    def get_last_token_id(self) -> int:
        """Return the newest id: the prompt's last while nothing is generated."""
        return (self.output_token_ids or self.prompt_token_ids)[-1]

    def add_token_id(self, token_id: int) -> None:
        """Append a generated token; its id comes from the sampler and is not checked."""
        self.output_token_ids.append(token_id)

    def get_slice(self, start: int, end: int) -> list[int]:
        """Return the ids at positions from `start` to `end - 1`: O(end - start)."""
        after = len(self.prompt_token_ids)
        if start >= after:
            return self.output_token_ids[start - after : end - after]
        if end <= after:
            return self.prompt_token_ids[start:end]
        return self.prompt_token_ids[start:] + self.output_token_ids[: end - after]

    def copy(self) -> "SequenceData":
        """Return the same tokens in lists of their own, which need no second check."""
        new = copy.copy(self)
        new.prompt_token_ids = self.prompt_token_ids.copy()
        new.output_token_ids = self.output_token_ids.copy()
        return new


@dataclass(slots=True, eq=False)
class Sequence:
    """One candidate output of a request.

    Attributes:
        seq_id: unique in the engine.
        request_id: the request that it belongs to.
        data: its tokens.
        sampling_params: the request's parameters, one object for all its sequences.
        status: set by the scheduler.
        block_ids: its cache blocks in the order of its tokens, set by the KV cache manager: of
            the device's pool, and of the host's while the status is SWAPPED.
        index: its place among the sequences of its request.
        num_computed_tokens: how many of its tokens, from the first on, have their keys and
            values in the cache; it catches up with the length, and 0 begins anew.
        num_cached_tokens: how many prompt tokens it found in the prefix cache when it was first
            scheduled; None before that.
        block_hashes: the chained hashes of its full blocks, as many as were needed so far.
        extra_keys: what besides the tokens must be the same for two sequences to share blocks.
        draft_token_ids: guesses of the tokens that come next, to be checked in the next step.
        is_planned: whether a plan has named it, so that the worker knows it.
        num_planned_blocks: how many of its blocks, from the first on, the worker knows.
        siblings: the sequences that go on from its blocks once the prompt is computed; they
            are in no queue before that.
        queue_key: where it stands in the scheduler's order.
        cumulative_logprob: the sum of what is known of its tokens' log probabilities.
        stop_reason: the stop string or stop id that ended it; None otherwise.
        num_preemptions: how often it lost its place for a while, counted by the scheduler.
        request: the request that it belongs to, which sets this.
        output: what the output processor keeps of it.
    """

    seq_id: str
    request_id: str
    data: SequenceData
    sampling_params: SamplingParams
    status: SequenceStatus = SequenceStatus.WAITING
    block_ids: list[int] = field(default_factory=list)
    index: int = 0
    num_computed_tokens: int = 0
    num_cached_tokens: int | None = None
    block_hashes: list[bytes] = field(default_factory=list)
    extra_keys: tuple[str, ...] = ()
    draft_token_ids: list[int] = field(default_factory=list)
    is_planned: bool = False
    num_planned_blocks: int = 0
    siblings: list["Sequence"] = field(default_factory=list)
    queue_key: tuple[int, float, int, int] = (0, 0.0, 0, 0)
    cumulative_logprob: float = 0.0
    stop_reason: int | str | None = None
    num_preemptions: int = 0
    request: "Request" = field(init=False, repr=False)
    output: Any = field(default=None, init=False, repr=False)

    def get_len(self) -> int:
        """Return the number of tokens, prompt and output."""
        return self.data.get_len()

    def get_prompt_len(self) -> int:
        """Return the number of prompt tokens."""
        return self.data.get_prompt_len()

    def get_output_len(self) -> int:
        """Return the number of generated tokens."""
        return self.data.get_output_len()

    def get_token_ids(self) -> list[int]:
        """Return all ids, prompt and output, in a new list: O(length)."""
        return self.data.get_token_ids()

    def get_last_token_id(self) -> int:
        """Return the newest id: the prompt's last while nothing is generated."""
        return self.data.get_last_token_id()

    def add_token_id(self, token_id: int) -> None:
        """Append a generated token."""
        self.data.add_token_id(token_id)

    def is_finished(self) -> bool:
        """Whether nothing more will be generated."""
        return self.status.is_finished()

    def fork(self, new_seq_id: str) -> "Sequence":
        """Return a sequence that goes on from here on its own.

        It has its own copies of the tokens, of `block_ids` and of their hashes, and the same
        request, parameters and status. The blocks themselves are then shared: counting their
        owners is the KV cache manager's part.
        """
        new = copy.copy(self)
        new.seq_id = new_seq_id
        new.data = self.data.copy()
        new.block_ids = self.block_ids.copy()
        new.block_hashes = self.block_hashes.copy()
        new.draft_token_ids, new.siblings, new.output = [], [], None
        new.is_planned, new.num_planned_blocks, new.num_preemptions = False, 0, 0
        return new


# What a request is called whose sequences stand differently: the first of these that one has.
_PRECEDENCE = (
    RequestStatus.RUNNING,
    RequestStatus.SWAPPED,
    RequestStatus.WAITING,
    RequestStatus.FINISHED_ABORTED,
    RequestStatus.FINISHED_STOPPED,
    RequestStatus.FINISHED_LENGTH_CAPPED,
)


def _check_id(request_id: object) -> str:
    accepted = f"a string of at most {_LONGEST_ID} characters"
    name = check_text("request_id", request_id, accepted, may_be_empty=True)
    if len(name) > _LONGEST_ID:
        refuse("request_id", name, f"{accepted}; it has {len(name)}")
    return name


@dataclass(slots=True, eq=False)
class Request:
    """A prompt to complete, and the candidate outputs that are generated for it.

    Attributes:
        request_id: unique in the engine.
        prompt: the prompt's text; None where the user gave ids alone.
        prompt_token_ids: the prompt's ids, a copy of what was passed; never empty.
        sampling_params: how to sample.
        arrival_time: `time.time()` when the request came, in seconds, as in vLLM: a point in
            time to order and to log by, not to measure durations with.
        sequences: by `seq_id`. Unless any are given, `best_of` are made, named
            `{request_id}-{i}`, each with its own copy of the prompt's ids.
        priority: under the policy "priority", a lower value is scheduled earlier; else unused.
        bad_words: what `sampling_params.bad_words` are in token ids.
        eos_token_ids: the model's own ids that end an output.
        cache_salt: only requests with the same salt share blocks of the prefix cache; None is
            a salt as well.
        sampling: the parameters as the worker takes them, made of the above.
        metrics: its times, from when the record is made.
        num_unfinished: how many of its sequences are not finished, counted by the scheduler.
        error: why the engine gave it up; None unless something failed.
        output: what the output processor keeps of it.

    Raises:
        ValueError: the prompt has no ids, an id is no integer >= 0, or an argument is of the
            wrong type.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    sampling_params: SamplingParams
    arrival_time: float = field(default_factory=time.time)
    sequences: dict[str, Sequence] = field(default_factory=dict)
    priority: int = 0
    cache_salt: str | None = None
    bad_words: InitVar[BadWords] = NO_BAD_WORDS
    eos_token_ids: InitVar[Iterable[int]] = ()
    sampling: SamplingSpec = field(init=False, repr=False)
    metrics: RequestMetrics = field(init=False, repr=False)
    num_unfinished: int = field(init=False, repr=False)
    error: str | None = field(default=None, init=False)
    output: Any = field(default=None, init=False, repr=False)

    def __post_init__(self, bad_words: BadWords, eos_token_ids: Iterable[int]) -> None:
        """Check the arguments and make the sequences."""
        self.request_id = _check_id(self.request_id)
        if self.prompt is not None:
            check_type("prompt", self.prompt, str, "a string, or None with token ids alone")
        check_type("sampling_params", self.sampling_params, SamplingParams, "a SamplingParams")
        data = SequenceData(self.prompt_token_ids)
        self.prompt_token_ids = data.prompt_token_ids
        self.sequences = dict(self.sequences) or self._make_sequences(data)
        for sequence in self.sequences.values():
            sequence.request = self
        self.sampling = SamplingSpec.of(self.sampling_params, bad_words, eos_token_ids)
        self.num_unfinished = len(self.sequences)
        self.metrics = RequestMetrics(time.perf_counter(), num_sequences=len(self.sequences))

    def _make_sequences(self, data: SequenceData) -> dict[str, Sequence]:
        keys = () if self.cache_salt is None else (f"salt {self.cache_salt}",)
        names = [f"{self.request_id}-{i}" for i in range(self.sampling_params.best_of)]
        return {
            name: Sequence(
                name, self.request_id, data.copy(), self.sampling_params, index=i, extra_keys=keys
            )
            for i, name in enumerate(names)
        }

    @property
    def status(self) -> RequestStatus:
        """Where the request stands and, in the end, why it left: derived from its sequences."""
        values = {sequence.status.value for sequence in self.sequences.values()}
        return next(status for status in _PRECEDENCE if status.value in values)

    def get_seqs(self, status: SequenceStatus | None = None) -> list[Sequence]:
        """Return the sequences in the order they were made: all, or those with `status`."""
        return [s for s in self.sequences.values() if status is None or s.status is status]

    def get_num_seqs(self, status: SequenceStatus | None = None) -> int:
        """Return the number of sequences: all, or those with `status`."""
        return len(self.get_seqs(status))

    def is_finished(self) -> bool:
        """Whether all sequences are finished."""
        return all(sequence.is_finished() for sequence in self.sequences.values())
