"""A worker without a model, for tests of the scheduler: it checks what the cache would hold."""

import hashlib
from array import array
from functools import cache

import pytest
from pydantic import TypeAdapter

from folovllm.config.setup import EngineSetup
from folovllm.core.block_hash import ROOT_HASH, hash_root
from folovllm.core.kv_cache_manager import KVCacheManager
from folovllm.core.plan import StepPlan, StepResult
from folovllm.core.scheduler import Scheduler
from folovllm.request import Request, SequenceStatus
from folovllm.sampling_params import SamplingParams

GARBAGE = ("garbage",)
PLANS = TypeAdapter(StepPlan)


@cache
def chained_hash(tokens: tuple[int, ...], block_size: int, root: bytes = ROOT_HASH) -> bytes:
    if not tokens:
        return root
    parent = chained_hash(tokens[:-block_size], block_size, root)
    return hashlib.sha256(parent + array("q", tokens[-block_size:]).tobytes()).digest()


def make_setup(**options) -> EngineSetup:
    """What a scheduler reads of it, and nothing for the rest."""
    defaults = {
        "max_model_len": 64,
        "max_num_batched_tokens": 64,
        "max_num_seqs": 8,
        "enable_chunked_prefill": True,
        "enable_prefix_caching": True,
        "policy": "fcfs",
        "eos_token_id": None,
        "stop_token_ids": (),
        "block_size": 4,
        "num_blocks": 20,
        "num_host_blocks": 0,
    }
    names = EngineSetup.__dataclass_fields__.keys() - {"reasons"}
    return EngineSetup(**{**dict.fromkeys(names), **defaults, **options})


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
        setup = make_setup(
            max_num_seqs=max_num_seqs,
            enable_chunked_prefill=chunked,
            policy=policy,
            max_model_len=max_model_len,
            max_num_batched_tokens=budget,
            num_blocks=num_blocks,
            block_size=block_size,
            num_host_blocks=host_blocks,
            **options,
        )
        self.scheduler = Scheduler(setup, self.cache)
        self.device = [[GARBAGE] * block_size for _ in range(num_blocks)]
        self.host = [[GARBAGE] * block_size for _ in range(host_blocks)]
        self.requests: list[Request] = []
        self.outputs: dict = {}
        # What the worker keeps: the block tables of the sequences that it knows.
        self.tables: dict[str, list[int]] = {}

    def add(
        self, prompt, request_id=None, *, priority=0, arrival_time=0.0, cache_salt=None, **params
    ) -> Request:
        request = Request(
            request_id or f"r{len(self.requests)}",
            None,
            list(prompt),
            SamplingParams(**params),
            arrival_time=arrival_time,
            priority=priority,
            cache_salt=cache_salt,
        )
        self.scheduler.check(request)
        self.scheduler.add_request(request)
        self.requests.append(request)
        for seq in request.get_seqs():
            self.outputs[seq] = []
        return request

    def sequences(self):
        return [seq for request in self.requests for seq in request.get_seqs()]

    def schedule(self):
        """Plan a step, check the plan, and send it to the worker as text."""
        ran = {seq for seq in self.sequences() if seq.status is SequenceStatus.RUNNING}
        num_preemptions = self.scheduler.num_preemptions
        plan = self.scheduler.schedule()
        members = self.scheduler._members
        if self.scheduler.num_preemptions > num_preemptions:
            assert ran.issuperset(seq for seq, _ in members)
        assert bool(plan.scheduled) is self.scheduler.has_unfinished_requests()
        assert plan.num_tokens == sum(len(e.token_ids) for e in plan.scheduled) <= self.budget
        assert len({e.seq_id for e in plan.scheduled}) == len(plan.scheduled)
        assert self.scheduler.num_running <= self.max_num_seqs
        sources, targets = {s for s, _ in plan.copies}, [t for _, t in plan.copies]
        assert len(set(targets)) == len(targets)
        assert sources.isdisjoint(targets)
        assert not (plan.swap_out and plan.swap_in)
        for entry, (seq, samples) in zip(plan.scheduled, members, strict=True):
            assert seq.status is SequenceStatus.RUNNING
            assert (entry.seq_id, entry.start) == (seq.seq_id, seq.num_computed_tokens)
            assert entry.token_ids
            known = [*seq.get_token_ids(), *seq.draft_token_ids]
            end = entry.start + len(entry.token_ids)
            assert list(entry.token_ids) == known[entry.start : end]
            assert entry.num_drafts == max(0, end - seq.get_len())
            at_the_end = end >= seq.get_len()
            assert samples[:1] == ((seq,) if at_the_end else ())
            assert entry.samples == tuple(s.seq_id for s in samples)
            assert at_the_end or self.chunked
            assert all(s.status is SequenceStatus.WAITING for s in samples[1:])
        self.check_integrity()
        received = PLANS.validate_json(PLANS.dump_json(plan))
        assert received == plan
        self.follow(received)
        for seq, _ in members:
            assert self.tables[seq.seq_id] == seq.block_ids
        return plan

    def follow(self, plan):
        """Keep the block tables as the plan says."""
        for seq_id in plan.finished:
            self.tables.pop(seq_id, None)
        for new in plan.new:
            assert new.seq_id not in self.tables
            self.tables[new.seq_id] = []
        for entry in plan.scheduled:
            table = self.tables[entry.seq_id]
            assert entry.first_block <= len(table)
            table[entry.first_block :] = entry.block_ids
            assert all(sample in self.tables for sample in entry.samples)

    def members(self):
        """The entries' sequences while a plan is out, with their tokens, drafts included."""
        return [
            (seq, (*seq.get_token_ids(), *seq.draft_token_ids))
            for seq, _ in self.scheduler._members
        ]

    def sampled(self):
        """The sequences that get tokens from the plan that is out."""
        return [sample for _, samples in self.scheduler._members for sample in samples]

    def execute(self, plan):
        """Do the moves and writes of a plan, then read what attention would read."""
        for block_id in plan.clear:
            self.device[block_id] = [GARBAGE] * self.block_size
        for source, target in plan.swap_out:
            self.host[target] = self.device[source].copy()
        for source, target in reversed(plan.copies):  # in any order
            self.device[target] = self.device[source].copy()
        for source, target in plan.swap_in:
            self.device[target] = self.host[source].copy()
        size = self.block_size
        members = self.members()
        for entry, (_, tokens) in zip(plan.scheduled, members, strict=True):
            table = self.tables[entry.seq_id]
            for i in range(entry.start, entry.start + len(entry.token_ids)):
                assert table[i // size] != 0
                self.device[table[i // size]][i % size] = tokens[: i + 1]
        for entry, (_, tokens) in zip(plan.scheduled, members, strict=True):
            end = entry.start + len(entry.token_ids)
            self.check_content(self.device, self.tables[entry.seq_id], tokens, end)

    def update(self, plan, token_ids, **options):
        """Hand in a token, or a list of tokens, for each sample."""
        lists = [[each] if isinstance(each, int) else list(each) for each in token_ids]
        samples = self.sampled()
        for seq, ids in zip(samples, lists, strict=True):
            self.outputs[seq] += ids
        failed = self.scheduler.update(plan, StepResult(lists), **options)
        for seq in samples:  # what came behind the end does not count
            count = seq.get_output_len()
            if seq.is_finished():
                del self.outputs[seq][count:]
        self.check_everything()
        return failed

    def fail(self, plan):
        """Lose all that a plan was to write, and give up its requests."""
        for _, target in plan.swap_out:
            self.host[target] = [GARBAGE] * self.block_size
        for _, target in (*plan.copies, *plan.swap_in):
            self.device[target] = [GARBAGE] * self.block_size
        for entry in plan.scheduled:
            for i in range(entry.start, entry.start + len(entry.token_ids)):
                block_id = self.tables[entry.seq_id][i // self.block_size]
                self.device[block_id][i % self.block_size] = GARBAGE
        requests = list(dict.fromkeys(seq.request for seq, _ in self.scheduler._members))
        assert self.scheduler.fail(plan, "it broke") == requests
        assert all(r.is_finished() and r.error == "it broke" for r in requests)
        self.check_everything()

    def step(self, sample=lambda seq: 7, **options):
        plan = self.schedule()
        self.execute(plan)
        self.update(plan, [sample(seq) for seq in self.sampled()], **options)
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
        self.schedule()  # the worker hears of the last ends
        assert self.tables == {}
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
        roots = {hash_root(seq.extra_keys) for seq in self.sequences()}
        for block_hash, block_id in self.cache._device._by_hash.items():
            prefix = self.device[block_id][-1]
            assert prefix is not GARBAGE
            assert block_hash in {chained_hash(prefix, self.block_size, root) for root in roots}


@pytest.fixture(scope="session")
def world():
    return World


@pytest.fixture(scope="session")
def setup_of():
    return make_setup
