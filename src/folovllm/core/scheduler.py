"""Who runs in the next step, and how many tokens of each."""

from collections.abc import Iterable, Sequence as Series
from typing import TYPE_CHECKING

from folovllm.core.kv_cache_manager import KVCacheManager
from folovllm.core.plan import ScheduledSequence, SchedulerOutput
from folovllm.core.request_queue import Key, RequestQueue
from folovllm.core.stopping import StopRules
from folovllm.errors import ConfigError
from folovllm.request import Request, RequestStatus, Sequence, SequenceStatus

if TYPE_CHECKING:
    from folovllm.config import SchedulerConfig

# What a request is called whose sequences stand differently: the first of these that one has.
_PRECEDENCE = (
    RequestStatus.RUNNING,
    RequestStatus.SWAPPED,
    RequestStatus.WAITING,
    RequestStatus.FINISHED_ABORTED,
    RequestStatus.FINISHED_STOPPED,
    RequestStatus.FINISHED_LENGTH_CAPPED,
)


class _Step:
    """What is left to give away in a step, and to whom the rest went."""

    def __init__(self, num_tokens: int) -> None:
        self.num_tokens_left = num_tokens
        self.num_forks = 0
        self.scheduled: list[ScheduledSequence] = []


class Scheduler:
    """Plans steps and takes in their results; the idea is vLLM's (`vllm/v1/core/sched`).

    There are no phases. Each sequence has computed tokens that catch up with its length, a
    prompt by many in a step and an output by one, and gets a token sampled when they have.
    `schedule` goes through the running sequences, then the swapped, then the waiting, each in
    one and the same order: of arrival, or of priority before arrival. Nobody overtakes.

    When blocks run out, the last of the running gives up its own, to be computed again or, if
    the host has room, to be swapped back in. Those that run are kept in order, so whoever gives
    way has not been scheduled in this step; and whoever is the first can always go on, because
    `add_request` refuses what does not fit the cache alone. So everybody's turn comes.

    A request's first sequence computes the prompt; at its end the others go on from its blocks,
    or, beyond `max_num_seqs`, wait as sequences of their own.

    Each plan is followed by its `update` or `fail` before the next. In between, requests may be
    added and aborted.

    Args:
        config: `max_num_seqs`, `enable_chunked_prefill` and `policy` are read.
        cache: the blocks.
        max_model_len: most tokens of a sequence.
        max_num_batched_tokens: most tokens of a step.
        eos_token_id: the tokenizer's end-of-sequence id.
        extra_eos_token_ids: the generation config's ids that end a sequence.

    Attributes:
        num_preemptions: how often a running sequence gave up its blocks.

    Raises:
        ConfigError: a whole prompt may not fit a step, and must not be split.
    """

    def __init__(
        self,
        config: "SchedulerConfig",
        cache: KVCacheManager,
        *,
        max_model_len: int,
        max_num_batched_tokens: int,
        eos_token_id: int | None = None,
        extra_eos_token_ids: Iterable[int] = (),
    ) -> None:
        """Make a scheduler with nothing to do."""
        if not config.enable_chunked_prefill and max_num_batched_tokens < max_model_len:
            raise ConfigError(
                f"max_num_batched_tokens: got {max_num_batched_tokens}; with "
                f"enable_chunked_prefill=False it must be at least max_model_len, "
                f"{max_model_len}, for the longest prompt to fit in a step"
            )
        self.num_preemptions = 0
        self._chunked = config.enable_chunked_prefill
        self._by_priority = config.policy == "priority"
        self._max_num_seqs = config.max_num_seqs
        self._max_num_tokens = max_num_batched_tokens
        self._max_model_len = max_model_len
        self._cache = cache
        self._stop_rules = StopRules(max_model_len, eos_token_id, extra_eos_token_ids)
        self._requests: dict[str, Request] = {}
        self._num_arrivals = 0
        self._keys: dict[Sequence, Key] = {}
        # The other sequences of a request, by its first one, as long as that is in the prompt.
        self._siblings: dict[Sequence, list[Sequence]] = {}
        # Since the last schedule(), by sequence: `finish` may yet say why they ended.
        self._ended: dict[Sequence, Request] = {}
        self._running, self._swapped, self._waiting = (
            RequestQueue(self._keys.__getitem__) for _ in range(3)
        )
        self._queues = {
            SequenceStatus.RUNNING: self._running,
            SequenceStatus.SWAPPED: self._swapped,
            SequenceStatus.WAITING: self._waiting,
        }

    @property
    def num_running(self) -> int:
        """The number of sequences that hold blocks and are computed."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """The number of sequences that wait, for the first time or again."""
        return len(self._waiting)

    @property
    def num_swapped(self) -> int:
        """The number of sequences whose blocks are in host memory."""
        return len(self._swapped)

    def has_unfinished_requests(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._requests)

    def get_num_unfinished_requests(self) -> int:
        """Return the number of requests that are not finished."""
        return len(self._requests)

    def add_request(self, request: Request) -> None:
        """Queue a new request.

        Raises:
            ValueError: its id is that of an unfinished one, or it could never be served: the
                prompt is too long for the model, or a sequence for the cache.
        """
        if request.request_id in self._requests:
            raise ValueError(
                f"request_id {request.request_id!r} is in use by an unfinished request"
            )
        self._check_fit(request)
        self._requests[request.request_id] = request
        self._num_arrivals += 1
        first, *others = request.sequences.values()
        for index, seq in enumerate((first, *others)):
            urgency = (request.priority, request.arrival_time) if self._by_priority else (0, 0.0)
            self._keys[seq] = (*urgency, self._num_arrivals, index)
        if others:
            self._siblings[first] = others
        self._waiting.add(first)

    def abort_request(self, request_id: str) -> bool:
        """End a request at any moment.

        Returns:
            Whether there was an unfinished one with this id.
        """
        request = self._requests.get(request_id)
        if request is None:
            return False
        for seq in request.sequences.values():
            # These have no blocks and are in no queue yet.
            for sibling in self._siblings.pop(seq, ()):
                sibling.status = SequenceStatus.FINISHED_ABORTED
            if not seq.is_finished():
                self._leave(seq)
                seq.status = SequenceStatus.FINISHED_ABORTED
        self._note_status(request)
        return True

    def schedule(self) -> SchedulerOutput:
        """Plan a step; with nothing to do, `scheduled` is empty."""
        self._ended.clear()
        self._cache.begin_step()
        step = _Step(self._max_num_tokens)
        num_preemptions = self.num_preemptions
        self._schedule_running(step)
        if self.num_preemptions == num_preemptions:
            self._resume_swapped(step)
            if not self._swapped:
                self._admit_waiting(step)
        num_tokens = self._max_num_tokens - step.num_tokens_left
        return SchedulerOutput(tuple(step.scheduled), num_tokens, *self._cache.take_moves())

    def update(self, plan: SchedulerOutput, token_ids: Series[int]) -> None:
        """Take in what a step computed.

        Sequences that were aborted or finished meanwhile are passed over.

        Args:
            plan: the newest plan.
            token_ids: a token for each of all entries' `samples`, in their order.

        Raises:
            ValueError: there are more or fewer tokens than samples.
        """
        for entry in plan.scheduled:
            if entry.seq.status is SequenceStatus.RUNNING:
                entry.seq.num_computed_tokens += entry.num_tokens
                if self._siblings and entry.samples:
                    self._start_siblings(entry)
        sampled = [seq for entry in plan.scheduled for seq in entry.samples]
        for seq, token_id in zip(sampled, token_ids, strict=True):
            if seq.status is SequenceStatus.RUNNING:
                seq.add_token_id(token_id)
                if end := self._stop_rules.check(seq):
                    self.finish(seq, *end)

    def finish(
        self, seq: Sequence, status: SequenceStatus, stop_reason: int | str | None = None
    ) -> None:
        """End a sequence, or say better why it ended in the newest update.

        The text may have a stop string in it that a token-level rule does not know of. What was
        aborted stays so.
        """
        if seq.status is SequenceStatus.FINISHED_ABORTED:
            return
        request = self._ended.get(seq) or self._requests[seq.request_id]
        if not seq.is_finished():
            self._leave(seq)
            for sibling in self._siblings.pop(seq, ()):
                self._waiting.add(sibling)
        seq.status, seq.stop_reason = status, stop_reason
        self._note_status(request)

    def fail(self, plan: SchedulerOutput) -> None:
        """Take in that a step failed: what it was to write is in no block.

        Nobody will find it in the prefix cache, and what it was to swap out is to be computed
        again. The caller aborts the requests of the plan's sequences.
        """
        self._cache.forget()
        lost = {host_id for _, host_id in plan.swap_out}
        for seq in [seq for seq in self._swapped if not lost.isdisjoint(seq.block_ids)]:
            self._swapped.remove(seq)
            self._restart(seq)

    def _check_fit(self, request: Request) -> None:
        length = len(request.prompt_token_ids)
        if length > self._max_model_len:
            raise ValueError(
                f"the prompt has {length} tokens; the model takes at most {self._max_model_len}"
            )
        max_tokens = request.sampling_params.max_tokens
        if max_tokens is None:
            most = self._max_model_len
        else:
            most = min(length + max_tokens, self._max_model_len)
        size, have = self._cache.block_size, self._cache.num_usable_blocks
        need = (most + size - 1) // size
        if need > have:
            raise ValueError(
                f"the request can have {most} tokens (prompt, and output up to max_tokens or "
                f"max_model_len), which need {need} blocks of {size}; the KV cache has {have}. "
                f"Lower max_tokens or max_model_len, or give the cache more memory"
            )

    def _schedule_running(self, step: _Step) -> None:
        # Who gives way is popped off the end of what is iterated, and so not come to.
        for seq in self._running:
            if not step.num_tokens_left:
                break
            num_tokens = min(seq.get_len() - seq.num_computed_tokens, step.num_tokens_left)
            if self._make_room(seq, num_tokens):
                self._schedule(step, seq, num_tokens)

    def _make_room(self, seq: Sequence, num_tokens: int) -> bool:
        """Get blocks for a running sequence; False if it had to give way itself."""
        while not self._cache.allocate(seq, num_tokens):
            last = self._running.pop_last()
            self._preempt(last)
            if last is seq:
                return False
        return True

    def _resume_swapped(self, step: _Step) -> None:
        while self._swapped and self._has_place(step):
            seq = self._swapped.first()
            num_tokens = min(seq.get_len() - seq.num_computed_tokens, step.num_tokens_left)
            if not self._cache.swap_in(seq, num_tokens):
                break
            self._run(self._swapped.pop_first())
            self._schedule(step, seq, num_tokens)

    def _admit_waiting(self, step: _Step) -> None:
        # Without a free block nobody can be admitted, and needs no search in the prefix cache.
        while self._waiting and self._has_place(step) and self._cache.has_free_blocks:
            seq = self._waiting.first()
            cached = self._cache.find_cached_blocks(seq)
            rest = seq.get_len() - len(cached) * self._cache.block_size
            num_tokens = min(rest, step.num_tokens_left)
            if num_tokens < rest and not self._chunked:
                break
            if not self._cache.admit(seq, cached, num_tokens):
                break
            self._run(self._waiting.pop_first())
            self._schedule(step, seq, num_tokens)

    def _has_place(self, step: _Step) -> bool:
        num_seqs = len(self._running) + step.num_forks
        return step.num_tokens_left > 0 and num_seqs < self._max_num_seqs

    def _run(self, seq: Sequence) -> None:
        seq.status = SequenceStatus.RUNNING
        self._running.add(seq)
        self._requests[seq.request_id].status = RequestStatus.RUNNING

    def _schedule(self, step: _Step, seq: Sequence, num_tokens: int) -> None:
        start = seq.num_computed_tokens
        samples: tuple[Sequence, ...] = ()
        if start + num_tokens == seq.get_len():
            samples = (seq,)
            if self._siblings and seq in self._siblings:
                places = self._max_num_seqs - len(self._running) - step.num_forks
                samples += tuple(self._siblings[seq][:places])
                step.num_forks += len(samples) - 1
        step.scheduled.append(ScheduledSequence(seq, start, num_tokens, samples, seq.block_ids))
        step.num_tokens_left -= num_tokens

    def _start_siblings(self, entry: ScheduledSequence) -> None:
        """At the end of a prompt: fork those that have a place, and queue the others."""
        for sibling in self._siblings.pop(entry.seq, ()):
            if sibling in entry.samples:
                self._cache.fork(entry.seq, sibling)
                self._run(sibling)
            else:
                self._waiting.add(sibling)

    def _preempt(self, seq: Sequence) -> None:
        """Take a sequence's blocks, which is out of its queue already."""
        self.num_preemptions += 1
        seq.num_preemptions += 1
        if self._cache.swap_out(seq):
            seq.status = SequenceStatus.SWAPPED
            self._swapped.add(seq)
            self._note_status(self._requests[seq.request_id])
        else:
            self._restart(seq)

    def _restart(self, seq: Sequence) -> None:
        """Let a sequence wait for all its tokens, the sampled ones too, to be computed again."""
        self._cache.free(seq)
        seq.num_computed_tokens = 0
        seq.status = SequenceStatus.WAITING
        self._waiting.add(seq)
        self._note_status(self._requests[seq.request_id])

    def _leave(self, seq: Sequence) -> None:
        self._queues[seq.status].remove(seq)
        self._cache.free(seq)

    def _note_status(self, request: Request) -> None:
        """Sum up a request's sequences, and forget it when all are finished."""
        values = {seq.status.value for seq in request.sequences.values()}
        request.status = next(status for status in _PRECEDENCE if status.value in values)
        if request.status.is_finished() and self._requests.get(request.request_id) is request:
            del self._requests[request.request_id]
            for seq in request.sequences.values():
                del self._keys[seq]
                self._ended[seq] = request
