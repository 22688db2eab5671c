"""Who runs in the next step, and how many tokens of each."""

from collections.abc import Sequence as Series
from itertools import repeat
from operator import attrgetter

from folovllm.config.setup import EngineSetup
from folovllm.core.kv_cache_manager import KVCacheManager
from folovllm.core.plan import ScheduledSequence, StepPlan, StepResult
from folovllm.core.request_queue import RequestQueue
from folovllm.core.step_builder import StepBuilder
from folovllm.core.stopping import End, StopRules
from folovllm.core.token_reader import Logprobs, NoReader, TokenReader
from folovllm.request import Request, Sequence, SequenceStatus


class Scheduler:
    """Plans steps and takes in their results; the idea is vLLM's (`vllm/v1/core/sched`).

    There are no phases. Each sequence has computed tokens that catch up with its length, a
    prompt by many in a step and an output by one (by more where drafts are checked), and gets
    tokens sampled when they have. `schedule` goes through the running sequences, then the
    swapped, then the waiting, each in one and the same order: of arrival, or of priority before
    arrival. Nobody overtakes.

    When blocks run out, the last of the running gives up its own, to be computed again or, if
    the host has room, to be swapped back in. Those that run are kept in order, so whoever gives
    way has not been scheduled in this step; and whoever is the first can always go on: `check`
    refuses a prompt that does not fit the cache alone, a sequence ends where it fills the cache
    (`EngineSetup.longest_sequence`), and when nobody else has blocks, none of its own is shared
    or needs a copy. So everybody's turn comes.

    A request's first sequence computes the prompt; at its end the others go on from its blocks,
    or, beyond `max_num_seqs`, wait as sequences of their own.

    Each plan is followed by its `update` or `fail` before anything else is called. The scheduler
    is the only one that writes a sequence's status; of `best_of` candidates it marks those that are
    not returned when the last one has ended.

    Args:
        setup: the limits, the policy and the ids that end a sequence. Without chunked prefill
            the tokens of a step are at least as many as those of the longest sequence.
        cache: the blocks.

    Attributes:
        num_preemptions: how often a running sequence gave up its blocks.
    """

    def __init__(self, setup: EngineSetup, cache: KVCacheManager) -> None:
        """Make a scheduler with nothing to do."""
        self.num_preemptions = 0
        self._setup = setup
        self._cache = cache
        self._longest = setup.longest_sequence
        self._stop_rules = StopRules(self._longest, setup.eos_token_id, setup.stop_token_ids)
        self._requests: set[Request] = set()
        self._num_arrivals = 0
        # Of the plan that is out: its entries' sequences with those that they are sampled for.
        self._members: list[tuple[Sequence, tuple[Sequence, ...]]] = []
        self._num_samples = 0
        self._finished: list[str] = []  # what the worker is to be told of
        self._unclean: set[int] = set()
        key = attrgetter("queue_key")
        self._running, self._swapped, self._waiting = (RequestQueue(key) for _ in range(3))
        self._queues = {
            SequenceStatus.RUNNING: self._running,
            SequenceStatus.SWAPPED: self._swapped,
            SequenceStatus.WAITING: self._waiting,
        }

    @property
    def num_running(self) -> int:
        """The number of sequences that are generated."""
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

    def check(self, request: Request) -> None:
        """Refuse a request that could never be served; any thread may ask.

        Its prompt has to fit. `max_tokens` is a limit and no demand: an output that the cache
        has no room for ends earlier, as one does that reaches `max_model_len`.

        Raises:
            ValueError: the prompt is too long for the model or for the cache.
        """
        length, limit = len(request.prompt_token_ids), self._setup.max_model_len
        if length > limit:
            raise ValueError(f"the prompt has {length} tokens; the model takes at most {limit}")
        if length > self._longest:
            size = self._cache.block_size
            raise ValueError(
                f"the prompt has {length} tokens, which need {-(-length // size)} blocks of "
                f"{size}; the KV cache has {self._cache.num_usable_blocks}. Shorten the prompt, or "
                "give the cache more memory (cpu_kvcache_space, gpu_memory_utilization)"
            )

    def add_request(self, request: Request) -> None:
        """Queue a new request, one that `check` does not refuse."""
        self._requests.add(request)
        self._num_arrivals += 1
        by_priority = self._setup.policy == "priority"
        urgency = (request.priority, request.arrival_time) if by_priority else (0, 0.0)
        first, *others = request.sequences.values()
        for index, seq in enumerate((first, *others)):
            seq.queue_key = (*urgency, self._num_arrivals, index)
        first.siblings = others
        self._waiting.add(first)

    def abort_request(self, request: Request) -> bool:
        """End a request between two steps.

        Returns:
            Whether it was there and unfinished.
        """
        if request not in self._requests:
            return False
        seqs = request.sequences.values()
        unqueued = {sibling for seq in seqs for sibling in seq.siblings}
        for seq in seqs:
            seq.siblings = []
            if not seq.is_finished():
                self._leave(seq, is_queued=seq not in unqueued)
                seq.status = SequenceStatus.FINISHED_ABORTED
        request.num_unfinished = 0
        self._requests.discard(request)
        return True

    def schedule(self) -> StepPlan:
        """Plan a step; with nothing to do, `scheduled` is empty."""
        # The one idea: give every sequence tokens until its computed tokens have caught up with
        # its length. A prompt, a piece of one, one more token, a prefix found in the cache, a
        # sequence that begins anew after it gave way: all differ only in how far they are behind.
        self._cache.begin_step()
        step = StepBuilder(self._setup.max_num_batched_tokens, self._setup.max_num_seqs)
        num_preemptions = self.num_preemptions
        self._schedule_running(step)
        if self.num_preemptions == num_preemptions:
            self._resume_swapped(step)
            if not self._swapped:
                self._admit_waiting(step)
        self._members, self._num_samples = step.members, step.num_samples
        return step.make_plan(self._finished, self._unclean, self._cache.take_moves())

    def update(
        self, plan: StepPlan, result: StepResult, reader: TokenReader | None = None
    ) -> list[Request]:
        """Take in what a step computed: append tokens, end sequences, free their blocks.

        Args:
            plan: the newest plan.
            result: what it came to.
            reader: reads the tokens, and finds stop strings in their text; None for none.

        Returns:
            The requests that ended since the worker could not sample for them, or the reader
            not read, with their `error`.

        Raises:
            ValueError: there are more or fewer tokens than samples.
        """
        reader = reader or NoReader()
        if len(result.token_ids) != self._num_samples:
            raise ValueError(
                f"got tokens for {len(result.token_ids)} of {self._num_samples} samples"
            )
        outcomes = zip(result.token_ids, result.logprobs or repeat(None), strict=False)
        failed: dict[Request, set[int]] = {}
        for entry, (seq, samples) in zip(plan.scheduled, self._members, strict=True):
            if entry.prompt_targets and entry.seq_id in result.prompt_logprobs:
                reader.read_prompt(seq, entry.start + 1, result.prompt_logprobs[entry.seq_id])
            seq.num_computed_tokens += len(entry.token_ids)
            if samples and seq.siblings:
                self._start_siblings(seq, samples)
            block_ids = seq.block_ids  # it may have ended before a sibling fails
            for sample, (token_ids, logprobs) in zip(samples, outcomes, strict=False):
                if sample.seq_id in result.failed:
                    sample.request.error = result.failed[sample.seq_id]
                    failed.setdefault(sample.request, set()).update(block_ids)
                else:
                    self._append(sample, token_ids, logprobs, entry, reader)
            if seq.request.error is not None:
                failed.setdefault(seq.request, set())
        self._members, self._num_samples = [], 0
        for request, spoilt in failed.items():
            self.abort_request(request)
            # What is not finite in the cache would spoil whoever found or got these blocks.
            self._unclean.update(self._cache.discard(spoilt))
        return list(failed)

    def fail(self, plan: StepPlan, reason: str) -> list[Request]:
        """Take in that a step failed: what it was to write is in no block.

        Nobody will find it in the prefix cache, and what it was to swap out is to be computed
        again. The worker is told again what it may not have come to.

        Returns:
            The requests of the step, which have ended with `reason` as their `error`.
        """
        self._finished[:0] = plan.finished
        self._unclean.update(plan.clear)
        self._cache.forget()
        lost = {host_id for _, host_id in plan.swap_out}
        for seq in [seq for seq in self._swapped if not lost.isdisjoint(seq.block_ids)]:
            self._swapped.remove(seq)
            self._restart(seq)
        requests = list(dict.fromkeys(seq.request for seq, _ in self._members))
        self._members, self._num_samples = [], 0
        for request in requests:
            request.error = reason
            self.abort_request(request)
        return requests

    def _schedule_running(self, step: StepBuilder) -> None:
        # Who gives way is popped off the end of what is iterated, and so not come to.
        for seq in self._running:
            if not step.num_tokens_left:
                break
            num_tokens = min(self._wanted(seq), step.num_tokens_left)
            if seq.draft_token_ids and not self._cache.allocate(seq, num_tokens):
                seq.draft_token_ids = []  # guesses are not worth the blocks of anybody
                num_tokens = min(self._wanted(seq), step.num_tokens_left)
            if self._make_room(seq, num_tokens):
                step.add(seq, num_tokens, len(self._running))

    def _wanted(self, seq: Sequence) -> int:
        """How many tokens are to be computed, drafts included, within the longest sequence."""
        length = seq.get_len()
        if seq.draft_token_ids and not seq.siblings:  # those are to begin at the prompt's end
            length = min(length + len(seq.draft_token_ids), self._longest)
        return length - seq.num_computed_tokens

    def _make_room(self, seq: Sequence, num_tokens: int) -> bool:
        """Get blocks for a running sequence; False if it had to give way itself."""
        while not self._cache.allocate(seq, num_tokens):
            last = self._running.pop_last()
            self._preempt(last)
            if last is seq:
                return False
        return True

    def _resume_swapped(self, step: StepBuilder) -> None:
        while self._swapped and self._has_place(step):
            seq = self._swapped.first()
            num_tokens = min(self._wanted(seq), step.num_tokens_left)
            if not self._cache.swap_in(seq, num_tokens):
                break
            self._run(self._swapped.pop_first(), step)
            step.add(seq, num_tokens, len(self._running))

    def _admit_waiting(self, step: StepBuilder) -> None:
        # Without a free block nobody can be admitted, and needs no search in the prefix cache.
        while self._waiting and self._has_place(step) and self._cache.has_free_blocks:
            seq = self._waiting.first()
            cached = self._cache.find_cached_blocks(seq)
            rest = seq.get_len() - len(cached) * self._cache.block_size
            num_tokens = min(rest, step.num_tokens_left)
            if num_tokens < rest and not self._setup.enable_chunked_prefill:
                break
            if not self._cache.admit(seq, cached, num_tokens):
                break
            self._run(self._waiting.pop_first(), step)
            step.add(seq, num_tokens, len(self._running))

    def _has_place(self, step: StepBuilder) -> bool:
        num_seqs = len(self._running) + step.num_forks
        return step.num_tokens_left > 0 and num_seqs < self._setup.max_num_seqs

    def _run(self, seq: Sequence, step: StepBuilder | None = None) -> None:
        seq.status = SequenceStatus.RUNNING
        self._running.add(seq)
        metrics = seq.request.metrics
        if step is not None and metrics.first_scheduled_time is None:
            metrics.first_scheduled_time = step.started

    def _append(
        self,
        seq: Sequence,
        token_ids: Series[int],
        logprobs: Series[Logprobs] | None,
        entry: ScheduledSequence,
        reader: TokenReader,
    ) -> None:
        """Give a sequence its tokens, up to the one that ends it."""
        end: End | None = None
        for place, token_id in enumerate(token_ids):
            known = None if logprobs is None else logprobs[place]
            if known is not None:
                seq.cumulative_logprob += known[token_id].logprob
            seq.data.output_token_ids.append(token_id)
            end = self._stop_rules.check(seq)
            is_end = end is not None and end[0] is SequenceStatus.FINISHED_STOPPED
            stop = reader.read_token(seq, token_id, known, is_end)
            if stop is not None:
                end = SequenceStatus.FINISHED_STOPPED, stop
            if seq.request.error is not None:
                end = None  # `update` ends the whole request
                break
            if end is not None:
                break
        if seq.draft_token_ids and seq.seq_id == entry.seq_id:
            self._settle_drafts(seq, entry, len(token_ids))
        if end is not None:
            self._finish(seq, end)

    def _settle_drafts(self, seq: Sequence, entry: ScheduledSequence, num_tokens: int) -> None:
        """Count as computed what was guessed rightly, one less than there are tokens; drop all."""
        computed = entry.start + len(entry.token_ids) - entry.num_drafts + num_tokens - 1
        seq.num_computed_tokens = min(computed, seq.get_len())
        seq.draft_token_ids = []
        self._cache.accept(seq, entry.start)

    def _finish(self, seq: Sequence, end: End) -> None:
        """End a sequence, and its request with the last of them."""
        self._leave(seq)
        seq.status, seq.stop_reason = end
        request = seq.request
        request.num_unfinished -= 1
        if not request.num_unfinished:
            self._requests.discard(request)
            _set_aside(request)

    def _start_siblings(self, seq: Sequence, samples: Series[Sequence]) -> None:
        """At the end of a prompt: fork those that have a place, and queue the others."""
        siblings, seq.siblings = seq.siblings, []
        for sibling in siblings:
            if sibling in samples:
                self._cache.fork(seq, sibling)
                self._run(sibling)
            else:
                self._waiting.add(sibling)

    def _preempt(self, seq: Sequence) -> None:
        """Take a sequence's blocks, which is out of its queue already."""
        self.num_preemptions += 1
        seq.num_preemptions += 1
        seq.request.metrics.num_preemptions += 1
        seq.draft_token_ids = []
        if self._cache.swap_out(seq):
            seq.status = SequenceStatus.SWAPPED
            self._swapped.add(seq)
        else:
            self._restart(seq)

    def _restart(self, seq: Sequence) -> None:
        """Let a sequence wait for all its tokens, the sampled ones too, to be computed again."""
        self._cache.free(seq)
        seq.num_computed_tokens = 0
        seq.status = SequenceStatus.WAITING
        self._waiting.add(seq)

    def _leave(self, seq: Sequence, *, is_queued: bool = True) -> None:
        """Take a sequence out of its queue and from its blocks; the worker forgets it."""
        if is_queued:
            self._queues[seq.status].remove(seq)
        self._cache.free(seq)
        if seq.is_planned:
            self._finished.append(seq.seq_id)


def _set_aside(request: Request) -> None:
    """Mark the candidates that are not returned: all but the `n` most likely of `best_of`."""
    n, seqs = request.sampling_params.n, request.get_seqs()
    if n < len(seqs):
        seqs.sort(key=lambda seq: seq.cumulative_logprob, reverse=True)
        for seq in seqs[n:]:
            seq.status = SequenceStatus.FINISHED_IGNORED
