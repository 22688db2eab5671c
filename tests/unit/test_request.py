import time

import numpy as np
import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from folovllm.outputs import CompletionOutput, Logprob, RequestMetrics, RequestOutput
from folovllm.request import Request, RequestStatus, Sequence, SequenceData, SequenceStatus
from folovllm.sampling_params import SamplingParams

STATUSES = {
    "WAITING": False,
    "RUNNING": False,
    "SWAPPED": False,
    "FINISHED_STOPPED": True,
    "FINISHED_LENGTH_CAPPED": True,
    "FINISHED_ABORTED": True,
    "FINISHED_IGNORED": True,
}


def make_sequence(prompt: list[int] | None = None) -> Sequence:
    return Sequence("r-0", "r", SequenceData(prompt or [1, 2, 3]), SamplingParams())


def make_request(best_of: int = 1, **values) -> Request:
    return Request("r", "text", [1, 2, 3], SamplingParams(best_of=best_of), **values)


class TestSequenceData:
    def test_lengths_and_ids_before_anything_is_generated(self):
        data = SequenceData([7, 8, 9])
        assert (data.get_len(), data.get_prompt_len(), data.get_output_len()) == (3, 3, 0)
        assert data.get_token_ids() == [7, 8, 9]
        assert data.get_last_token_id() == 9

    def test_lengths_and_ids_with_output(self):
        data = SequenceData([7, 8], output_token_ids=[5])
        data.add_token_id(0)  # an id that is false
        assert (data.get_len(), data.get_prompt_len(), data.get_output_len()) == (4, 2, 2)
        assert data.get_token_ids() == [7, 8, 5, 0]
        assert data.get_last_token_id() == 0
        assert data.output_token_ids == [5, 0]

    def test_shares_no_list_with_anyone(self):
        prompt, output = [1], [2]
        data = SequenceData(prompt, output)
        prompt.append(9)
        output.append(9)
        data.get_token_ids().append(9)
        assert data == SequenceData([1], [2])
        assert SequenceData([1]).output_token_ids is not SequenceData([1]).output_token_ids

    def test_numpy_ids_become_ints(self):
        data = SequenceData(np.array([1, 2]))
        assert data.prompt_token_ids == [1, 2]
        assert {type(i) for i in data.prompt_token_ids} == {int}

    @pytest.mark.parametrize("field", ["prompt_token_ids", "output_token_ids"])
    @pytest.mark.parametrize(
        ("ids", "place", "item"),
        [
            ([1, -1], "[1]", "-1"),
            ([1.0], "[0]", "1.0"),
            (["1"], "[0]", "'1'"),
            ([True], "[0]", "True"),
            ([None], "[0]", "None"),
            ([[1]], "[0]", "[1]"),
            ("12", "", "'12'"),
            (5, "", "5"),
            (None, "", "None"),
        ],
    )
    def test_wrong_ids_are_refused(self, field, ids, place, item):
        with pytest.raises(ValueError, match="must be ") as error:
            SequenceData(**{"prompt_token_ids": [1], field: ids})
        assert str(error.value).startswith(f"{field}{place} must be ")
        assert str(error.value).endswith(f"got {item}")

    def test_an_empty_prompt_is_refused(self):
        with pytest.raises(ValueError, match=r"prompt_token_ids must be .*at least one.* got \[\]"):
            SequenceData([])


class TestStatus:
    @pytest.mark.parametrize(("name", "finished"), STATUSES.items())
    def test_sequence_status(self, name, finished):
        status = SequenceStatus[name]
        assert status.value == name.lower()
        assert status.is_finished() is finished
        assert SequenceStatus(name.lower()) is status

    def test_sequence_status_has_no_others(self):
        assert [status.name for status in SequenceStatus] == list(STATUSES)

    def test_request_status_is_the_same_but_for_ignored(self):
        expected = {name: done for name, done in STATUSES.items() if name != "FINISHED_IGNORED"}
        assert {status.name: status.is_finished() for status in RequestStatus} == expected
        assert all(status.value == status.name.lower() for status in RequestStatus)


class TestSequence:
    def test_defaults(self):
        sequence = make_sequence()
        assert sequence.status is SequenceStatus.WAITING
        assert sequence.block_ids == []
        assert sequence.block_ids is not make_sequence().block_ids

    def test_hands_the_calls_on_to_its_data(self):
        sequence = make_sequence([4, 5])
        assert sequence.get_last_token_id() == 5
        sequence.add_token_id(6)
        assert (sequence.get_len(), sequence.get_prompt_len()) == (3, 2)
        assert sequence.get_output_len() == 1
        assert sequence.get_token_ids() == sequence.data.get_token_ids() == [4, 5, 6]
        assert sequence.get_last_token_id() == 6

    @pytest.mark.parametrize("status", SequenceStatus)
    def test_is_finished_follows_the_status(self, status):
        sequence = make_sequence()
        sequence.status = status
        assert sequence.is_finished() is status.is_finished()

    @pytest.mark.parametrize("status", SequenceStatus)
    def test_fork_keeps_request_params_and_status(self, status):
        parent = make_sequence()
        parent.status = status
        child = parent.fork("r-1")
        assert (child.seq_id, child.request_id, child.status) == ("r-1", "r", status)
        assert child.sampling_params is parent.sampling_params
        assert parent.seq_id == "r-0"

    def test_fork_has_its_own_tokens_and_blocks(self):
        parent = make_sequence([1])
        parent.add_token_id(2)
        parent.block_ids.append(10)
        child = parent.fork("r-1")
        child.add_token_id(3)
        child.block_ids.append(11)
        child.data.prompt_token_ids[0] = 99
        parent.add_token_id(4)
        assert (parent.get_token_ids(), parent.block_ids) == ([1, 2, 4], [10])
        assert (child.get_token_ids(), child.block_ids) == ([99, 2, 3], [10, 11])

    def test_is_told_apart_by_identity(self):
        first, second = make_sequence(), make_sequence()
        assert first != second
        assert len({first, second, first}) == 2


class ForkedSequences(RuleBasedStateMachine):
    """Appends and forks in any order, against plain lists."""

    sequences = Bundle("sequences")

    def __init__(self) -> None:
        super().__init__()
        self.model: dict[Sequence, tuple[list[int], list[int], list[int]]] = {}

    @rule(target=sequences, prompt=st.lists(st.integers(0, 9), min_size=1, max_size=4))
    def start(self, prompt):
        sequence = Sequence("0", "r", SequenceData(prompt), SamplingParams())
        self.model[sequence] = (prompt, [], [])
        return sequence

    @rule(sequence=sequences, token_id=st.integers(0, 9))
    def append(self, sequence, token_id):
        sequence.add_token_id(token_id)
        self.model[sequence][1].append(token_id)

    @rule(sequence=sequences, block_id=st.integers(1, 9))
    def take_block(self, sequence, block_id):
        sequence.block_ids.append(block_id)
        self.model[sequence][2].append(block_id)

    @rule(target=sequences, sequence=sequences)
    def fork(self, sequence):
        child = sequence.fork(str(len(self.model)))
        prompt, output, blocks = self.model[sequence]
        self.model[child] = (prompt.copy(), output.copy(), blocks.copy())
        return child

    @invariant()
    def matches_the_lists(self):
        for sequence, (prompt, output, blocks) in self.model.items():
            assert sequence.get_token_ids() == prompt + output
            assert sequence.get_len() == len(prompt) + len(output)
            assert sequence.get_prompt_len() == len(prompt)
            assert sequence.get_output_len() == len(output)
            assert sequence.get_last_token_id() == (prompt + output)[-1]
            assert sequence.block_ids == blocks


ForkedSequences.TestCase.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)
TestForkedSequences = ForkedSequences.TestCase


class TestRequest:
    def test_makes_best_of_sequences(self):
        request = make_request(best_of=3)
        assert list(request.sequences) == ["r-0", "r-1", "r-2"]
        for seq_id, sequence in request.sequences.items():
            assert (sequence.seq_id, sequence.request_id) == (seq_id, "r")
            assert sequence.get_token_ids() == [1, 2, 3]
            assert sequence.sampling_params is request.sampling_params
            assert sequence.status is SequenceStatus.WAITING

    def test_n_without_best_of_makes_n_sequences(self):
        request = Request("r", None, [1], SamplingParams(n=2))
        assert request.get_num_seqs() == 2

    def test_each_sequence_has_its_own_copy_of_the_prompt(self):
        prompt = [1, 2, 3]
        request = Request("r", None, prompt, SamplingParams(n=2))
        prompt.append(9)
        request.sequences["r-0"].data.prompt_token_ids.append(8)
        assert request.sequences["r-1"].get_token_ids() == [1, 2, 3]
        assert request.prompt_token_ids == [1, 2, 3]

    def test_given_sequences_are_kept(self):
        sequence = make_sequence()
        given = {"mine": sequence}
        request = make_request(best_of=3, sequences=given)
        assert request.sequences == {"mine": sequence}
        given.clear()
        assert request.get_seqs() == [sequence]

    def test_defaults(self):
        before = time.time()
        request = make_request()
        assert before <= request.arrival_time <= time.time()
        assert request.status is RequestStatus.WAITING
        assert make_request(arrival_time=5.0).arrival_time == 5.0
        assert request.sequences is not make_request().sequences

    def test_counts_and_lists_by_status(self):
        request = make_request(best_of=3)
        first, second, third = request.get_seqs()
        first.status = SequenceStatus.RUNNING
        third.status = SequenceStatus.RUNNING
        assert request.get_seqs(SequenceStatus.RUNNING) == [first, third]
        assert request.get_seqs(SequenceStatus.WAITING) == [second]
        assert request.get_seqs(SequenceStatus.SWAPPED) == []
        assert request.get_num_seqs() == 3
        assert request.get_num_seqs(SequenceStatus.RUNNING) == 2

    def test_is_finished_when_the_last_sequence_is(self):
        request = make_request(best_of=3)
        endings = [
            SequenceStatus.FINISHED_STOPPED,
            SequenceStatus.FINISHED_IGNORED,
            SequenceStatus.FINISHED_ABORTED,
        ]
        for sequence, status in zip(request.get_seqs(), endings, strict=True):
            assert not request.is_finished()
            sequence.status = status
        assert request.is_finished()

    def test_is_told_apart_by_identity(self):
        assert len({make_request(), make_request()}) == 2

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("request_id", 7),
            ("request_id", None),
            ("prompt", 7),
            ("prompt", ["a"]),
            ("prompt_token_ids", []),
            ("prompt_token_ids", None),
            ("prompt_token_ids", "12"),
            ("sampling_params", None),
            ("sampling_params", {"n": 1}),
        ],
    )
    def test_wrong_arguments_are_refused(self, field, value):
        arguments = {
            "request_id": "r",
            "prompt": None,
            "prompt_token_ids": [1],
            "sampling_params": SamplingParams(),
            field: value,
        }
        with pytest.raises(ValueError, match=f"^{field} must be ") as error:
            Request(**arguments)
        assert str(error.value).endswith(f"got {value!r}")


class TestCompletionOutput:
    @pytest.mark.parametrize(
        ("reason", "finished"), [(None, False), ("stop", True), ("length", True), ("abort", True)]
    )
    def test_is_finished_with_a_reason(self, reason, finished):
        assert CompletionOutput(0, "", [], finish_reason=reason).finished() is finished

    def test_defaults(self):
        output = CompletionOutput(index=1, text="a", token_ids=[5])
        assert output.cumulative_logprob is None
        assert output.logprobs is None
        assert output.finish_reason is None
        assert output.stop_reason is None

    def test_takes_its_fields_in_the_contracts_order(self):
        logprobs = [{5: Logprob(-0.5, rank=1, decoded_token="a")}]
        output = CompletionOutput(0, "a", [5], -0.5, logprobs, "stop", "\n")
        assert (output.cumulative_logprob, output.logprobs) == (-0.5, logprobs)
        assert (output.finish_reason, output.stop_reason) == ("stop", "\n")


class TestRequestMetrics:
    def test_what_has_not_happened_takes_no_time(self):
        metrics = RequestMetrics(arrival_time=1.0)
        assert metrics.time_in_queue is None
        assert metrics.time_to_first_token is None
        assert metrics.time_per_output_token is None

    def test_times_are_counted_from_the_arrival(self):
        metrics = RequestMetrics(1.0, 1.5, 2.0, 5.0, num_generation_tokens=4)
        assert metrics.time_in_queue == 0.5
        assert metrics.time_to_first_token == 1.0
        assert metrics.time_per_output_token == 1.0

    def test_several_sequences_get_their_tokens_at_once(self):
        metrics = RequestMetrics(1.0, 1.5, 2.0, 5.0, num_generation_tokens=8, num_sequences=2)
        assert metrics.time_per_output_token == 1.0


class TestRequestOutput:
    def test_defaults(self):
        output = RequestOutput("r", "p", [1], [], finished=False)
        assert (output.metrics, output.prompt_logprobs) == (None, None)
        assert output.num_cached_tokens is None

    def test_takes_its_fields_in_the_contracts_order(self):
        metrics = RequestMetrics(arrival_time=1.0)
        output = RequestOutput("r", "p", [1, 2], [], True, metrics, [None, {2: Logprob(-1.0)}], 1)
        assert (output.request_id, output.prompt, output.prompt_token_ids) == ("r", "p", [1, 2])
        assert (output.finished, output.metrics, output.num_cached_tokens) == (True, metrics, 1)
        assert output.prompt_logprobs == [None, {2: Logprob(-1.0)}]

    @pytest.mark.parametrize(
        ("prompt", "shown"),
        [
            ("short", "'short'"),
            ("", "''"),
            (None, "None"),
            ("a" * 50, f"'{'a' * 50}'"),
            ("a" * 51, f"'{'a' * 50}...'"),
            ("\n" * 51, "'" + r"\n" * 50 + "...'"),
            ("汉" * 60, f"'{'汉' * 50}...'"),
        ],
    )
    def test_repr_cuts_only_a_prompt_that_is_too_long(self, prompt, shown):
        text = repr(RequestOutput("r", prompt, [1] * 1000, [], finished=True))
        assert f"prompt={shown}, " in text
        assert ("..." in text) is (prompt is not None and len(prompt) > 50)
        assert len(text) < 250

    def test_repr_shows_the_outputs(self):
        output = CompletionOutput(0, "hello", [5], finish_reason="stop")
        text = repr(RequestOutput("r", "p", [1], [output], finished=True, num_cached_tokens=16))
        assert "request_id='r'" in text
        assert "text='hello'" in text
        assert "finished=True" in text
        assert "num_cached_tokens=16" in text
