"""A request and its sequences: the engine's own data structures.

Three levels. A `Request` is what the user asked: a prompt and how to sample. It has one
`Sequence` for each candidate output, the unit that is scheduled and that holds cache blocks. A
`SequenceData` is a sequence's tokens.

They are mutable and belong to the engine. Requests and sequences are told apart by identity, so
they can be members of sets; only what a user passes in is checked.
"""

import copy
import time
from dataclasses import dataclass, field
from enum import Enum

from folovllm.sampling_params import SamplingParams
from folovllm.utils.checks import check_token_ids, check_type, refuse


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
        num_computed_tokens: how many of its tokens, from the first on, have their keys and
            values in the cache; it catches up with the length, and 0 begins anew.
        num_cached_tokens: how many prompt tokens it found in the prefix cache when it was first
            scheduled; None before that.
        block_hashes: the chained hashes of its full blocks, as many as were needed so far.
        stop_reason: the stop string or stop id that ended it; None otherwise.
        num_preemptions: how often it lost its place for a while, counted by the scheduler.
    """

    seq_id: str
    request_id: str
    data: SequenceData
    sampling_params: SamplingParams
    status: SequenceStatus = SequenceStatus.WAITING
    block_ids: list[int] = field(default_factory=list)
    num_computed_tokens: int = 0
    num_cached_tokens: int | None = None
    block_hashes: list[bytes] = field(default_factory=list)
    stop_reason: int | str | None = None
    num_preemptions: int = 0

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
        new.num_preemptions = 0
        return new


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
        status: set by the scheduler: where the request stands in its queues and, in the end,
            why it left. `is_finished` does not look at it: the sequences are the truth.

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
    status: RequestStatus = RequestStatus.WAITING
    priority: int = 0

    def __post_init__(self) -> None:
        """Check the arguments and make the sequences."""
        check_type("request_id", self.request_id, str, "a string")
        if self.prompt is not None:
            check_type("prompt", self.prompt, str, "a string, or None with token ids alone")
        check_type("sampling_params", self.sampling_params, SamplingParams, "a SamplingParams")
        data = SequenceData(self.prompt_token_ids)
        self.prompt_token_ids = data.prompt_token_ids
        self.sequences = dict(self.sequences) or self._make_sequences(data)

    def _make_sequences(self, data: SequenceData) -> dict[str, Sequence]:
        sequences = {}
        for i in range(self.sampling_params.best_of):
            seq_id = f"{self.request_id}-{i}"
            sequences[seq_id] = Sequence(seq_id, self.request_id, data.copy(), self.sampling_params)
        return sequences

    def get_seqs(self, status: SequenceStatus | None = None) -> list[Sequence]:
        """Return the sequences in the order they were made: all, or those with `status`."""
        return [s for s in self.sequences.values() if status is None or s.status is status]

    def get_num_seqs(self, status: SequenceStatus | None = None) -> int:
        """Return the number of sequences: all, or those with `status`."""
        return len(self.get_seqs(status))

    def is_finished(self) -> bool:
        """Whether all sequences are finished."""
        return all(sequence.is_finished() for sequence in self.sequences.values())
