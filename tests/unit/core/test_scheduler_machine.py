"""The scheduler under requests, aborts and failures in any order, in caches that are too small."""

import random
from functools import partial

from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from folovllm.request import RequestStatus, SequenceStatus

EOS = 0

# Of two kinds of tokens, so that many begin alike.
PROMPTS = st.lists(st.integers(1, 2), min_size=1, max_size=14) | st.integers(1, 14).map(
    lambda length: [1] * length
)
REQUESTS = st.fixed_dictionaries(
    {
        "prompt": PROMPTS,
        "max_tokens": st.sampled_from([1, 3, 10, None]),
        "n": st.sampled_from([1, 2, 4]),
        "priority": st.integers(0, 2),
        "prompt_logprobs": st.sampled_from([None, None, None, 0]),
    }
)


class Steps(RuleBasedStateMachine):
    def __init__(self, world):
        super().__init__()
        self.make_world = world
        self.plan = None

    @initialize(data=st.data(), seed=st.integers(0, 2**32))
    def start(self, data, seed):
        def draw(low, high):
            return data.draw(st.integers(low, high))

        self.random = random.Random(seed)
        self.max_model_len = draw(8, 24)
        block_size = draw(1, 4)
        # The longest sequence fits with room beyond, or the cache is full before its end.
        blocks_of_longest = -(-self.max_model_len // block_size)
        num_blocks = max(blocks_of_longest + draw(-8, 8), 2)
        self.longest = min(self.max_model_len, (num_blocks - 1) * block_size)
        chunked = data.draw(st.booleans())
        self.world = self.make_world(
            num_blocks=num_blocks,
            block_size=block_size,
            host_blocks=data.draw(st.sampled_from([0, 6, 16])),
            caching=data.draw(st.booleans()),
            max_model_len=self.max_model_len,
            budget=draw(1, 16) if chunked else draw(self.max_model_len, self.max_model_len + 9),
            max_num_seqs=draw(1, 8),
            chunked=chunked,
            policy=data.draw(st.sampled_from(["fcfs", "priority"])),
            eos_token_id=EOS,
        )
        self.scheduler = self.world.scheduler

    @precondition(lambda self: not self.plan)
    @rule(data=st.data(), count=st.integers(1, 5))
    def add(self, data, count):
        for _ in range(count):
            self.add_one(**data.draw(REQUESTS))

    def add_one(self, prompt, max_tokens, **options):
        try:
            self.world.add(prompt, max_tokens=max_tokens, **options)
        except ValueError:
            assert len(prompt) > self.longest
        else:
            assert len(prompt) <= self.longest

    def sample(self, seq):
        """A token; after drafts as many more as happen to be right."""
        accepted = []
        if seq.num_computed_tokens < seq.get_len():  # of a plan that is out: it may have drafts
            [drafts] = [e for e in self.plan.scheduled if seq.seq_id in e.samples]
            count = drafts.num_drafts if drafts.seq_id == seq.seq_id else 0
            accepted = seq.draft_token_ids[: self.random.randint(0, count)]
        return [*accepted, EOS if self.random.random() < 0.05 else self.random.randint(1, 2)]

    def read_token(self, seq, token_id, logprobs, is_end):
        """Find a stop string now and then."""
        return "stop" if self.random.random() < 0.03 else None

    @precondition(lambda self: not self.plan)
    @rule(count=st.integers(1, 5))
    def draft(self, count):
        for seq in self.scheduler._running:
            seq.draft_token_ids = [self.random.randint(1, 2) for _ in range(count)]

    @precondition(lambda self: not self.plan)
    @rule()
    def schedule(self):
        self.plan = self.world.schedule()

    @precondition(lambda self: self.plan)
    @rule()
    def update(self):
        self.world.execute(self.plan)
        tokens = [self.sample(seq) for seq in self.world.sampled()]
        self.world.update(self.plan, tokens, reader=self)
        self.plan = None

    @precondition(lambda self: self.plan and self.plan.scheduled)
    @rule()
    def fail(self):
        self.world.fail(self.plan)
        self.plan = None

    @rule(count=st.integers(1, 12))
    def run_on(self, count):
        for _ in range(count):
            if not self.plan:
                self.schedule()
            self.update()

    @precondition(lambda self: self.world.requests and not self.plan)
    @rule(data=st.data())
    def abort(self, data):
        request = data.draw(st.sampled_from(self.world.requests))
        live = [seq for seq in request.get_seqs() if not seq.is_finished()]
        assert self.scheduler.abort_request(request) is bool(live)
        assert all(seq.status is SequenceStatus.FINISHED_ABORTED for seq in live)
        assert request.is_finished()
        self.world.check_integrity()

    def teardown(self):
        if not hasattr(self, "world"):
            return
        if self.plan:
            self.update()
        steps = 0
        while self.scheduler.has_unfinished_requests():
            self.schedule()
            self.update()
            steps += 1
            assert steps < 2000, "it does not come to an end"
        self.world.run()
        assert self.scheduler.num_running == self.scheduler.num_waiting == 0
        assert self.scheduler.num_swapped == 0
        for request in self.world.requests:
            assert request.is_finished()
            assert request.status in {RequestStatus(s.status.value) for s in request.get_seqs()}
            for seq in request.get_seqs():
                self.check_length(seq)

    def check_length(self, seq):
        """A sequence that was cut used up its tokens, the model's length or the whole cache."""
        length, count = seq.get_len(), seq.get_output_len()
        assert length <= max(self.longest, seq.get_prompt_len() + 1)
        if seq.status is SequenceStatus.FINISHED_LENGTH_CAPPED:
            assert count == seq.sampling_params.max_tokens or length >= self.longest


def test_any_order(world):
    run_state_machine_as_test(
        partial(Steps, world),
        settings=settings(
            max_examples=150,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
