"""A worker without a model, for tests of the scheduler: it checks what the cache would hold."""

import hashlib
from array import array
from functools import cache

import pytest

from folovllm.config import SchedulerConfig
from folovllm.core.block_hash import ROOT_HASH
from folovllm.core.kv_cache_manager import KVCacheManager
from folovllm.core.scheduler import Scheduler
from folovllm.request import Request, SequenceStatus
from folovllm.sampling_params import SamplingParams

GARBAGE = ("garbage",)


@cache
def chained_hash(tokens: tuple[int, ...], block_size: int) -> bytes:
    if not tokens:
        return ROOT_HASH
    parent = chained_hash(tokens[:-block_size], block_size)
    return hashlib.sha256(parent + array("q", tokens[-block_size:]).tobytes()).digest()


class World:
    """A scheduler with its cache, and the memory that a worker would have for it.

    The key and value of a token depend on all tokens up to it, so what is kept for a position
    is this prefix itself. Blocks that were never written to, and those that a failed step may
    have written to, hold garbage.
    """

    def __init__(
        self,
        *,
        num_blocks=20,
        block_size=4,
        host_blocks=0,
        caching=True,
        max_model_len=64,
        budget=64,
        max_num_seqs=8,
        chunked=True,
        policy="fcfs",
        **options,
    ):
        self.block_size, self.budget, self.max_num_seqs = block_size, budget, max_num_seqs
        self.chunked = chunked
        self.cache = KVCacheManager(
            num_blocks, block_size, enable_prefix_caching=caching, num_host_blocks=host_blocks
        )
        config = SchedulerConfig(
            max_num_seqs=max_num_seqs, enable_chunked_prefill=chunked, policy=policy
        )
        self.scheduler = Scheduler(
            config,
            self.cache,
            max_model_len=max_model_len,
            max_num_batched_tokens=budget,
            **options,
        )
        self.device = [[GARBAGE] * block_size for _ in range(num_blocks)]
        self.host = [[GARBAGE] * block_size for _ in range(host_blocks)]
        self.requests: list[Request] = []
        self.outputs: dict = {}
        self.batch: list = []

    def add(self, prompt, request_id=None, *, priority=0, arrival_time=0.0, **params) -> Request:
        request = Request(
            request_id or f"r{len(self.requests)}",
            None,
            list(prompt),
            SamplingParams(**params),
            arrival_time=arrival_time,
            priority=priority,
        )
        self.scheduler.add_request(request)
        self.requests.append(request)
        for seq in request.get_seqs():
            self.outputs[seq] = []
        return request

    def sequences(self):
        return [seq for request in self.requests for seq in request.get_seqs()]

    def schedule(self):
        """Plan a step, check the plan and lay the batch out, as an engine does in one go."""
        ran = {seq for seq in self.sequences() if seq.status is SequenceStatus.RUNNING}
        num_preemptions = self.scheduler.num_preemptions
        plan = self.scheduler.schedule()
        if self.scheduler.num_preemptions > num_preemptions:
            assert ran.issuperset(entry.seq for entry in plan.scheduled)
        assert bool(plan.scheduled) is self.scheduler.has_unfinished_requests()
        assert plan.num_tokens == sum(e.num_tokens for e in plan.scheduled) <= self.budget
        assert len({e.seq for e in plan.scheduled}) == len(plan.scheduled)
        assert self.scheduler.num_running <= self.max_num_seqs
        sources, targets = {s for s, _ in plan.copies}, [t for _, t in plan.copies]
        assert len(set(targets)) == len(targets)
        assert sources.isdisjoint(targets)
        assert not (plan.swap_out and plan.swap_in)
        for entry in plan.scheduled:
            seq = entry.seq
            assert seq.status is SequenceStatus.RUNNING
            assert entry.start == seq.num_computed_tokens
            assert entry.num_tokens > 0
            at_the_end = entry.start + entry.num_tokens == seq.get_len()
            assert entry.samples[:1] == ((seq,) if at_the_end else ())
            assert at_the_end or self.chunked
            assert all(s.status is SequenceStatus.WAITING for s in entry.samples[1:])
        self.batch = [
            (entry, tuple(entry.seq.get_token_ids()), entry.block_ids.copy())
            for entry in plan.scheduled
        ]
        self.check_integrity()
        return plan

    def execute(self, plan):
        """Do the moves and writes of a plan, then read what attention would read."""
        for source, target in plan.swap_out:
            self.host[target] = self.device[source].copy()
        for source, target in reversed(plan.copies):  # in any order
            self.device[target] = self.device[source].copy()
        for source, target in plan.swap_in:
            self.device[target] = self.host[source].copy()
        size = self.block_size
        for entry, tokens, table in self.batch:
            for i in range(entry.start, entry.start + entry.num_tokens):
                assert table[i // size] != 0
                self.device[table[i // size]][i % size] = tokens[: i + 1]
        for entry, tokens, table in self.batch:
            self.check_content(self.device, table, tokens, entry.start + entry.num_tokens)

    def update(self, plan, token_ids):
        token_ids = list(token_ids)
        samples = [seq for entry in plan.scheduled for seq in entry.samples]
        before = {seq for seq in samples if seq.is_finished()}
        for seq, token_id in zip(samples, token_ids, strict=True):
            if seq not in before:
                self.outputs[seq].append(token_id)
        self.scheduler.update(plan, token_ids)
        self.check_everything()

    def fail(self, plan):
        """Lose all that a plan was to write, and give up its requests."""
        for _, target in plan.swap_out:
            self.host[target] = [GARBAGE] * self.block_size
        for _, target in (*plan.copies, *plan.swap_in):
            self.device[target] = [GARBAGE] * self.block_size
        for entry, _, table in self.batch:
            for i in range(entry.start, entry.start + entry.num_tokens):
                self.device[table[i // self.block_size]][i % self.block_size] = GARBAGE
        self.scheduler.fail(plan)
        live = [entry.seq for entry in plan.scheduled if not entry.seq.is_finished()]
        for request_id in {seq.request_id for seq in live}:
            assert self.scheduler.abort_request(request_id)
        self.check_everything()

    def step(self, sample=lambda seq: 7):
        plan = self.schedule()
        self.execute(plan)
        self.update(plan, [sample(s) for entry in plan.scheduled for s in entry.samples])
        return plan

    def run(self, sample=lambda seq: 7, limit=2000):
        """Go on until nothing is left to do; nothing may be left in the cache then."""
        steps = 0
        while self.scheduler.has_unfinished_requests():
            self.step(sample)
            steps += 1
            assert steps < limit, "it does not come to an end"
        self.check_everything()
        assert self.cache.usage == 0
        self.cache.check_integrity([])
        return steps

    def check_integrity(self):
        self.cache.check_integrity(self.sequences())

    def check_everything(self):
        """All that is owned or can be found holds what it should."""
        self.check_integrity()
        for seq in self.sequences():
            assert seq.data.output_token_ids == self.outputs[seq]
            if seq.is_finished():
                assert seq.block_ids == []
            swapped = seq.status is SequenceStatus.SWAPPED
            memory = self.host if swapped else self.device
            tokens = tuple(seq.get_token_ids())
            if seq.block_ids:
                self.check_content(memory, seq.block_ids, tokens, seq.num_computed_tokens)
        self.check_findable()

    def check_content(self, memory, table, tokens, count):
        for i in range(count):
            assert memory[table[i // self.block_size]][i % self.block_size] == tokens[: i + 1]

    def check_findable(self):
        for block_hash, block_id in self.cache._device._by_hash.items():
            prefix = self.device[block_id][-1]
            assert prefix is not GARBAGE
            assert chained_hash(prefix, self.block_size) == block_hash


@pytest.fixture(scope="session")
def world():
    return World
