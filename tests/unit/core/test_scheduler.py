import pytest

from folovllm.core.plan import StepPlan, StepResult
from folovllm.outputs import Logprob
from folovllm.request import Request, RequestStatus, SequenceStatus
from folovllm.sampling_params import SamplingParams

RUNNING, WAITING, SWAPPED = (
    SequenceStatus.RUNNING,
    SequenceStatus.WAITING,
    SequenceStatus.SWAPPED,
)
STOPPED, CAPPED, ABORTED, IGNORED = (
    SequenceStatus.FINISHED_STOPPED,
    SequenceStatus.FINISHED_LENGTH_CAPPED,
    SequenceStatus.FINISHED_ABORTED,
    SequenceStatus.FINISHED_IGNORED,
)


def shares(plan) -> dict[str, int]:
    """How many tokens each sequence gets."""
    return {entry.seq_id: len(entry.token_ids) for entry in plan.scheduled}


def samples(plan) -> list[str]:
    return [seq_id for entry in plan.scheduled for seq_id in entry.samples]


class Text:
    """Finds a stop string in the tokens of the sequences named."""

    def __init__(self, *seq_ids):
        self.seq_ids = seq_ids
        self.read = []

    def read_token(self, seq, token_id, logprobs, is_end):
        self.read.append((seq.seq_id, token_id, is_end))
        return "stop" if seq.seq_id in self.seq_ids else None

    def read_prompt(self, seq, position, logprobs):
        self.read.append((seq.seq_id, position, logprobs))


class TestBudget:
    def test_with_nothing_to_do_the_plan_is_empty(self, world):
        plan = world().schedule()
        assert (plan.scheduled, plan.num_tokens) == ((), 0)

    def test_a_prompt_then_token_by_token(self, world):
        w = world()
        w.add([1, 2, 3], max_tokens=3)
        assert [shares(w.step()) for _ in range(3)] == [{"r0-0": 3}, {"r0-0": 1}, {"r0-0": 1}]
        assert not w.scheduler.has_unfinished_requests()
        assert w.requests[0].get_seqs()[0].get_token_ids() == [1, 2, 3, 7, 7, 7]

    def test_a_long_prompt_takes_what_is_left(self, world):
        w = world(budget=8)
        w.add([1] * 3)
        w.add([2] * 12)
        plans = [w.step() for _ in range(3)]
        assert [shares(plan) for plan in plans] == [
            {"r0-0": 3, "r1-0": 5},
            {"r0-0": 1, "r1-0": 7},
            {"r0-0": 1, "r1-0": 1},
        ]
        assert [samples(plan) for plan in plans] == [["r0-0"], ["r0-0", "r1-0"], ["r0-0", "r1-0"]]

    @pytest.mark.parametrize("budget", range(1, 12))
    def test_chunks_of_every_size_compute_the_same(self, world, budget):
        w = world(budget=budget)
        w.add(range(11), max_tokens=2)
        assert w.run() == -(-11 // budget) + 1

    def test_without_chunks_nobody_overtakes_who_does_not_fit(self, world):
        w = world(chunked=False, budget=64, num_blocks=50)
        w.add([1] * 40)
        w.add([2] * 30)
        w.add([3] * 2)
        assert shares(w.step()) == {"r0-0": 40}
        assert shares(w.step()) == {"r0-0": 1, "r1-0": 30, "r2-0": 2}

    def test_no_more_sequences_than_places(self, world):
        w = world(max_num_seqs=2)
        for _ in range(3):
            w.add([1], max_tokens=2)
        assert shares(w.step()) == {"r0-0": 1, "r1-0": 1}
        assert (w.scheduler.num_running, w.scheduler.num_waiting) == (2, 1)
        w.step()
        assert shares(w.step()) == {"r2-0": 1}
        assert w.scheduler.has_unfinished_requests()


class TestAddRequest:
    @pytest.mark.parametrize(
        ("length", "max_tokens", "output"),
        [(8, 8, 8), (8, 9, 8), (1, None, 15), (15, 1, 1), (15, 2, 1), (16, None, 1), (16, 9, 1)],
    )
    @pytest.mark.parametrize("n", [1, 3])
    def test_an_output_ends_where_the_cache_is_full(self, world, length, max_tokens, output, n):
        w = world(num_blocks=5)
        request = w.add(range(length), max_tokens=max_tokens, n=n)
        w.run()
        assert [seq.get_output_len() for seq in request.get_seqs()] == [output] * n
        assert {seq.status for seq in request.get_seqs()} == {CAPPED}

    def test_a_prompt_that_can_never_fit_is_refused(self, world):
        w = world(num_blocks=5)
        refused = r"prompt has 17 tokens, which need 5 blocks of 4; the KV cache has 4"
        with pytest.raises(ValueError, match=refused):
            w.add(range(17), max_tokens=1)
        assert not w.scheduler.has_unfinished_requests()
        w.run()

    def test_the_models_length_bounds_what_a_request_can_need(self, world):
        w = world(num_blocks=5, max_model_len=16)
        w.add([1], max_tokens=None)
        w.run()
        assert w.requests[0].get_seqs()[0].get_len() == 16

    def test_a_prompt_beyond_the_model_is_refused(self, world):
        w = world(max_model_len=8)
        w.add([1] * 8)
        with pytest.raises(ValueError, match="prompt has 9 tokens; the model takes at most 8"):
            w.add([1] * 9)
        w.run()
        assert w.requests[0].get_seqs()[0].status is CAPPED


class TestStopping:
    def test_frees_what_is_finished(self, world):
        w = world(eos_token_id=2, stop_token_ids=(2, 3))
        eos, other, stop, length = (w.add([1], stop_token_ids=[9], max_tokens=2) for _ in range(4))
        plan = w.schedule()
        w.execute(plan)
        w.update(plan, [2, 3, 9, 5])
        ends = [(r.get_seqs()[0].status, r.get_seqs()[0].stop_reason) for r in w.requests]
        assert ends == [(STOPPED, None), (STOPPED, 3), (STOPPED, 9), (RUNNING, None)]
        assert [r.status for r in (eos, other, stop)] == [RequestStatus.FINISHED_STOPPED] * 3
        assert length.status is RequestStatus.RUNNING
        assert w.scheduler.num_running == 1
        w.run()
        assert length.status is RequestStatus.FINISHED_LENGTH_CAPPED

    def test_text_ends_a_sequence(self, world):
        w = world()
        request = w.add([1])
        w.step(reader=Text("r0-0"))
        [seq] = request.get_seqs()
        assert (seq.status, seq.stop_reason) == (STOPPED, "stop")
        assert request.status is RequestStatus.FINISHED_STOPPED
        w.run()

    def test_text_says_better_why_a_sequence_ended(self, world):
        w = world()
        request = w.add([1], max_tokens=1)
        w.step(reader=Text("r0-0"))
        [seq] = request.get_seqs()
        assert (seq.status, seq.stop_reason) == (STOPPED, "stop")
        assert not w.scheduler.has_unfinished_requests()

    def test_the_reader_hears_of_each_token_and_whether_it_is_the_end(self, world):
        w = world(eos_token_id=2)
        w.add([1], n=2)
        w.add([1], max_tokens=1)
        reader = Text()
        w.step(lambda seq: 2 if seq.seq_id == "r0-1" else 7, reader=reader)
        assert reader.read == [("r0-0", 7, False), ("r0-1", 2, True), ("r1-0", 7, False)]

    def test_keeps_nothing_of_a_request_that_ended(self, world):
        w = world()
        w.add([1], n=2, max_tokens=1)
        w.step()
        w.schedule()
        held = (w.scheduler._members, w.scheduler._finished, w.scheduler._requests)
        assert held == ([], [], set())

    @pytest.mark.parametrize("tokens", [[], [[7], [7]]])
    def test_a_wrong_number_of_tokens_is_refused(self, world, tokens):
        w = world()
        w.add([1])
        plan = w.schedule()
        with pytest.raises(ValueError, match=f"tokens for {len(tokens)} of 1 samples"):
            w.scheduler.update(plan, StepResult(tokens))

    def test_the_likeliest_candidates_are_kept(self, world):
        w = world()
        request = w.add([1], n=2, best_of=3, max_tokens=1)
        plan = w.schedule()
        logprobs = [[{5: Logprob(-3.0)}], [{6: Logprob(-1.0)}], [{7: Logprob(-2.0)}]]
        w.scheduler.update(plan, StepResult([[5], [6], [7]], logprobs))
        assert [s.status for s in request.get_seqs()] == [IGNORED, CAPPED, CAPPED]
        assert [s.cumulative_logprob for s in request.get_seqs()] == [-3.0, -1.0, -2.0]
        assert request.status is RequestStatus.FINISHED_LENGTH_CAPPED

    def test_log_probabilities_of_a_prompt_come_with_their_place(self, world):
        w = world(budget=2)
        w.add([1, 2, 3, 4], prompt_logprobs=0)
        reader, targets = Text(), []
        for _ in range(2):
            plan = w.schedule()
            targets.append(plan.scheduled[0].prompt_targets)
            given = {"r0-0": [{9: Logprob(0.0)}]}
            tokens = [[7] for _ in w.sampled()]
            w.scheduler.update(plan, StepResult(tokens, prompt_logprobs=given), reader)
        assert targets == [(2, 3), (4,)]
        places = [read[1] for read in reader.read if isinstance(read[2], list)]
        assert places == [1, 3]

    def test_a_request_is_called_after_its_sequences(self, world):
        w = world(eos_token_id=2)
        request = w.add([1], n=2, max_tokens=2)
        assert request.status is RequestStatus.WAITING
        w.step(lambda seq: 2 if seq.seq_id == "r0-0" else 7)
        assert request.status is RequestStatus.RUNNING
        w.run()
        assert request.status is RequestStatus.FINISHED_STOPPED


class TestFork:
    def test_the_prompt_is_computed_once(self, world):
        w = world()
        w.add(range(6), n=3, max_tokens=3)
        plan = w.step()
        assert shares(plan) == {"r0-0": 6}
        assert samples(plan) == ["r0-0", "r0-1", "r0-2"]
        plan = w.step()
        assert shares(plan) == {"r0-0": 1, "r0-1": 1, "r0-2": 1}
        assert len(plan.copies) == 2
        assert w.step().copies == ()

    def test_at_a_blocks_border_nothing_is_copied(self, world):
        w = world()
        w.add(range(8), n=3, max_tokens=3)
        w.step()
        assert w.step().copies == ()
        w.run()

    def test_only_at_the_end_of_the_prompt(self, world):
        w = world(budget=4)
        w.add(range(6), n=2)
        assert samples(w.step()) == []
        assert samples(w.step()) == ["r0-0", "r0-1"]
        w.run()

    def test_those_without_a_place_wait_and_find_the_prompt(self, world):
        w = world(max_num_seqs=2)
        w.add(range(9), n=4, max_tokens=2)
        late = w.add([5], max_tokens=1)
        assert samples(w.step()) == ["r0-0", "r0-1"]
        assert w.scheduler.num_waiting == 3
        assert samples(w.step()) == ["r0-0", "r0-1"]
        plan = w.step()
        assert shares(plan) == {"r0-2": 1, "r0-3": 1}
        assert [seq.num_cached_tokens for seq in w.requests[0].get_seqs()] == [0, 0, 8, 8]
        w.run()
        assert late.is_finished()

    def test_places_of_forks_are_not_given_away(self, world):
        w = world(max_num_seqs=4)
        w.add([1, 2], n=3)
        w.add([3], n=2)
        w.add([4])
        assert samples(w.step()) == ["r0-0", "r0-1", "r0-2", "r1-0"]
        assert w.scheduler.num_running == 4
        assert w.scheduler.num_waiting == 2
        assert samples(w.step()) == ["r0-0", "r0-1", "r0-2", "r1-0"]
        w.run()

    def test_forks_run_right_behind_the_first(self, world):
        w = world()
        w.add([1], n=2)
        w.add([2])
        w.step()
        assert samples(w.step()) == ["r0-0", "r0-1", "r1-0"]

    def test_the_first_may_end_with_its_first_token(self, world):
        w = world(eos_token_id=2)
        w.add(range(6), n=3, max_tokens=4)
        w.step(lambda seq: 2 if seq.seq_id == "r0-0" else 7)
        assert samples(w.step()) == ["r0-1", "r0-2"]
        w.run()

    def test_a_first_write_may_take_the_place_of_another_request(self, world):
        w = world(num_blocks=5, max_model_len=8)
        w.add(range(6), n=2, max_tokens=2)
        w.add(range(50, 55), max_tokens=2)
        w.step()
        # All four blocks are held; the copy needs one.
        plan = w.step()
        assert shares(plan) == {"r0-0": 1, "r0-1": 1}
        assert len(plan.copies) == 1
        assert w.requests[1].status is RequestStatus.WAITING
        w.run()

    def test_a_sibling_that_gives_way_makes_the_copy_needless(self, world):
        w = world(num_blocks=3, max_model_len=8)
        w.add(range(6), n=2, max_tokens=2)
        w.step()
        plan = w.step()
        assert (shares(plan), plan.copies) == ({"r0-0": 1}, ())
        assert [s.status for s in w.requests[0].get_seqs()] == [CAPPED, WAITING]
        w.run()


class TestPreemption:
    def fill(self, world, **options):
        """Two sequences that hold all blocks, and both need one more."""
        w = world(num_blocks=5, max_model_len=16, **options)
        for start in (0, 50):
            w.add(range(start, start + 8), max_tokens=4, priority=start == 0)
        w.step()
        return w, *(request.get_seqs()[0] for request in w.requests)

    def test_the_latest_arrival_gives_way(self, world):
        w, first, second = self.fill(world)
        assert shares(w.step()) == {"r0-0": 1}
        assert (first.status, second.status) == (RUNNING, WAITING)
        assert w.scheduler.num_preemptions == 1
        assert (first.num_preemptions, second.num_preemptions) == (0, 1)
        assert (second.block_ids, second.num_computed_tokens) == ([], 0)
        assert second.data.output_token_ids == [7]
        assert w.requests[1].status is RequestStatus.WAITING
        w.run()
        assert second.get_output_len() == 4

    def test_the_lowest_priority_gives_way(self, world):
        w, first, second = self.fill(world, policy="priority")
        assert shares(w.step()) == {"r1-0": 1}
        assert (first.status, second.status) == (WAITING, RUNNING)
        w.run()

    def test_computes_prompt_and_output_again_without_sampling_anew(self, world):
        w, _, second = self.fill(world, caching=False)
        w.step()
        w.scheduler.abort_request(w.requests[0])
        plan = w.step()
        assert (shares(plan), samples(plan)) == ({"r1-0": 9}, ["r1-0"])
        assert second.data.output_token_ids == [7, 7]
        w.run()

    def test_finds_its_own_blocks_again(self, world):
        w, _, second = self.fill(world)
        w.step()
        w.scheduler.abort_request(w.requests[0])
        # The first of its blocks; the second one went to the other request.
        assert shares(w.step()) == {"r1-0": 5}
        assert second.num_cached_tokens == 0
        w.run()

    def test_may_hit_the_one_that_needs_the_block(self, world):
        w = world(num_blocks=5, max_model_len=16)
        w.add(range(5), max_tokens=3)
        w.add(range(50, 58), max_tokens=4)
        w.step()
        assert shares(w.step()) == {"r0-0": 1}
        assert w.requests[1].status is RequestStatus.WAITING
        w.run()

    def test_nobody_is_admitted_in_a_step_that_preempts(self, world):
        w, _, _ = self.fill(world, policy="priority")
        w.add([3], max_tokens=1, priority=-1)
        # There would be a block for the new one.
        assert shares(w.step()) == {"r1-0": 1}
        assert w.cache.has_free_blocks
        assert shares(w.step()) == {"r1-0": 1, "r2-0": 1}
        w.run()

    def test_swaps_where_the_host_has_room(self, world):
        w, first, second = self.fill(world, host_blocks=3)
        plan = w.step()
        assert len(plan.swap_out) == 2
        assert (second.status, w.scheduler.num_swapped) == (SWAPPED, 1)
        assert w.requests[1].status is RequestStatus.SWAPPED
        assert second.num_computed_tokens == 8
        late = w.add([3], max_tokens=1)
        while second.status is SWAPPED:
            assert late.status is RequestStatus.WAITING
            plan = w.step()
        assert len(plan.swap_in) == 2
        assert shares(plan)["r1-0"] == 1
        assert first.is_finished()
        w.run()

    def test_computes_again_where_the_host_has_no_room(self, world):
        w, _, second = self.fill(world, host_blocks=2)
        assert w.step().swap_out == ()
        assert second.status is WAITING
        w.run()

    @pytest.mark.parametrize("host_blocks", [0, 30])
    @pytest.mark.parametrize("policy", ["fcfs", "priority"])
    def test_everybodys_turn_comes(self, world, host_blocks, policy):
        w = world(num_blocks=8, host_blocks=host_blocks, policy=policy, max_model_len=28)
        for i in range(8):
            w.add([i] * (3 * i + 1), max_tokens=None, n=2, priority=i % 3)
        w.run()
        assert w.scheduler.num_preemptions > 0
        assert all(seq.get_len() == 28 for seq in w.sequences())


class TestPolicy:
    def test_by_priority_then_by_arrival(self, world):
        w = world(policy="priority", max_num_seqs=1)
        for priority in (1, 0, 1, -1):
            w.add([1], priority=priority, max_tokens=1)
        assert [samples(w.step()) for _ in range(4)] == [["r3-0"], ["r1-0"], ["r0-0"], ["r2-0"]]

    def test_first_come_first_served_does_not_look_at_priorities(self, world):
        w = world(max_num_seqs=1)
        for priority in (1, 0):
            w.add([1], priority=priority, max_tokens=1)
        assert [samples(w.step()) for _ in range(2)] == [["r0-0"], ["r1-0"]]

    def test_runs_the_more_important_first(self, world):
        w = world(policy="priority", budget=2)
        w.add([1], priority=1)
        w.step()
        w.add([2] * 4, priority=0)
        assert shares(w.step()) == {"r0-0": 1, "r1-0": 1}
        assert shares(w.step()) == {"r1-0": 2}

    def test_arrival_is_no_matter_of_clocks(self, world):
        w = world()
        for clock in (5.0, 5.0, 1.0):
            w.add([1], arrival_time=clock)
        assert samples(w.step()) == ["r0-0", "r1-0", "r2-0"]


class TestAbort:
    def test_one_that_was_never_added(self, world):
        request = Request("r0", None, [1], SamplingParams())
        assert world().scheduler.abort_request(request) is False

    def test_while_it_waits(self, world):
        w = world(max_num_seqs=1)
        w.add([1])
        request = w.add([2], n=2)
        w.step()
        assert w.scheduler.abort_request(w.requests[1]) is True
        assert w.scheduler.abort_request(w.requests[1]) is False
        assert {seq.status for seq in request.get_seqs()} == {ABORTED}
        assert request.status is RequestStatus.FINISHED_ABORTED
        assert w.scheduler.num_waiting == 0
        w.run()

    def test_while_it_is_swapped(self, world):
        w, _, second = TestPreemption().fill(world, host_blocks=9)
        w.step()
        assert second.status is SWAPPED
        w.scheduler.abort_request(w.requests[1])
        assert (w.scheduler.num_swapped, second.block_ids) == (0, [])
        w.run()

    def test_the_worker_hears_of_it_and_may_meet_the_name_again(self, world):
        w = world()
        first = w.add([1, 2], "same", n=2)
        w.step()
        w.scheduler.abort_request(first)
        again = w.add([1, 2], "same", n=2, max_tokens=2)
        plan = w.step()
        assert plan.finished == ("same-0", "same-1")
        assert [new.seq_id for new in plan.new] == ["same-0", "same-1"]
        w.run()
        assert {seq.get_output_len() for seq in again.get_seqs()} == {2}

    def test_the_worker_does_not_hear_of_who_it_never_met(self, world):
        w = world()
        w.scheduler.abort_request(w.add([1]))
        assert w.schedule().is_empty

    def test_what_ended_before_keeps_its_reason(self, world):
        w = world(eos_token_id=2)
        request = w.add([1], n=2)
        w.step(lambda seq: 2 if seq.seq_id == "r0-0" else 7)
        w.scheduler.abort_request(w.requests[0])
        assert [seq.status for seq in request.get_seqs()] == [STOPPED, ABORTED]
        assert request.status is RequestStatus.FINISHED_ABORTED


class TestFail:
    def test_nobody_finds_what_was_not_computed(self, world):
        w = world()
        w.add(range(9))
        w.add(range(9))
        w.fail(w.schedule())
        assert not w.scheduler.has_unfinished_requests()
        w.add(range(9))
        assert shares(w.step()) == {"r2-0": 9}
        w.run()

    def test_the_worker_is_told_again_what_it_may_not_have_heard(self, world):
        w = world()
        w.scheduler.abort_request(w.add([1]))
        ended = w.add([1], max_tokens=1)
        w.step()
        assert ended.is_finished()
        w.add([2])
        plan = w.schedule()
        assert plan.finished == ("r1-0",)
        w.fail(plan)
        assert w.scheduler.schedule().finished == ("r1-0", "r2-0")

    def test_one_sequence_alone_and_its_blocks_are_cleared(self, world):
        w = world()
        request, other = w.add(range(5), n=2), w.add(range(50, 55), max_tokens=3)
        plan = w.schedule()
        w.execute(plan)
        result = StepResult([[7], [7], [7]], failed={"r0-1": "NaN"})
        w.outputs[other.get_seqs()[0]].append(7)
        w.outputs[request.get_seqs()[0]].append(7)
        assert w.scheduler.update(plan, result) == [request]
        assert request.error == "NaN"
        assert {seq.status for seq in request.get_seqs()} == {ABORTED}
        w.check_everything()
        assert w.step().clear == (1, 2)
        assert w.step().clear == ()
        w.run()

    def test_keeps_what_earlier_steps_computed(self, world):
        w = world(budget=4)
        w.add(range(9))
        w.step()
        w.fail(w.schedule())
        w.add(range(9))
        w.step()
        assert w.requests[1].get_seqs()[0].num_cached_tokens == 4

    def test_who_was_to_be_swapped_out_is_computed_again(self, world):
        w, first, second = TestPreemption().fill(world, host_blocks=9)
        plan = w.schedule()
        assert second.status is SWAPPED
        w.fail(plan)
        assert first.status is ABORTED
        assert (second.status, second.num_computed_tokens) == (WAITING, 0)
        w.run()
        assert second.status is CAPPED

    def test_who_was_swapped_out_before_stays(self, world):
        w, _, second = TestPreemption().fill(world, host_blocks=9)
        w.step()
        w.fail(w.schedule())
        assert second.status is SWAPPED
        w.run()


def test_equal_priorities_run_by_the_time_they_say_they_came(world):
    w = world(policy="priority", max_num_seqs=1)
    w.add([1, 2], "late", priority=1, arrival_time=20.0)
    w.add([3, 4], "early", priority=1, arrival_time=10.0)
    assert samples(w.step()) == ["early-0"]
    w.run()


class TestDrafts:
    def draft(self, w, *guesses):
        [seq] = w.requests[0].get_seqs()
        seq.draft_token_ids = list(guesses)
        return seq

    @pytest.mark.parametrize(
        ("tokens", "computed"), [([4], 7), ([8, 4], 8), ([8, 9, 4], 9), ([8, 9, 10, 4], 10)]
    )
    def test_what_was_guessed_rightly_is_computed(self, world, tokens, computed):
        w = world()
        w.add(range(6), max_tokens=9)
        w.step()
        seq = self.draft(w, 8, 9, 10)
        plan = w.schedule()
        [entry] = plan.scheduled
        assert (entry.token_ids, entry.num_drafts) == ((7, 8, 9, 10), 3)
        w.execute(plan)
        w.update(plan, [tokens])
        assert seq.num_computed_tokens == computed
        assert seq.data.output_token_ids == [7, *tokens]
        assert seq.draft_token_ids == []
        assert w.step().scheduled[0].token_ids == (4,)
        w.run()

    def test_only_blocks_of_accepted_drafts_are_found(self, world):
        w = world()
        w.add(range(3), max_tokens=12)
        w.step()
        self.draft(w, 8, 9, 10, 11)
        plan = w.schedule()
        w.execute(plan)
        assert len(w.cache._device._by_hash) == 1  # 0 1 2 7, which are known
        w.update(plan, [[8, 9, 4]])
        assert len(w.cache._device._by_hash) == 1
        self.draft(w, 10, 11)
        plan = w.schedule()
        w.execute(plan)
        w.update(plan, [[10, 11, 12]])
        assert len(w.cache._device._by_hash) == 2
        w.add([0, 1, 2, 7, 8, 9, 4, 10, 11])
        assert shares(w.schedule())["r1-0"] == 1

    def test_within_the_budget_and_the_models_length(self, world):
        w = world(budget=3, max_model_len=8)
        w.add(range(3), max_tokens=None)
        w.step()
        self.draft(w, 8, 9, 10, 11, 12, 13)
        assert shares(w.schedule()) == {"r0-0": 3}
        w = world(max_model_len=8)
        w.add(range(3), max_tokens=None)
        w.step()
        seq = self.draft(w, 8, 9, 10, 11, 12, 13)
        plan = w.schedule()
        assert shares(plan) == {"r0-0": 5}
        w.execute(plan)
        w.update(plan, [[8, 9, 10, 11, 12]])
        assert (seq.status, seq.get_len()) == (CAPPED, 8)
        w.run()

    def test_an_end_among_them_ends_the_sequence(self, world):
        w = world(eos_token_id=2)
        w.add(range(3, 8), max_tokens=9)
        w.step()
        seq = self.draft(w, 8, 2, 10)
        plan = w.schedule()
        w.execute(plan)
        w.update(plan, [[8, 2, 10, 11]])
        assert (seq.status, seq.data.output_token_ids) == (STOPPED, [7, 8, 2])
        w.run()


class TestSalt:
    def test_only_the_same_salt_finds_the_blocks(self, world):
        w = world()
        w.add(range(9), max_tokens=1)
        w.add(range(9), max_tokens=1, cache_salt="a")
        w.run(limit=3)
        for salt, found in ((None, 8), ("a", 8), ("b", 0)):
            request = w.add(range(9), max_tokens=1, cache_salt=salt)
            w.scheduler.schedule()
            assert request.get_seqs()[0].num_cached_tokens == found
            w.scheduler.fail(StepPlan(), "enough")
