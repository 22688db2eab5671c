import pytest
from hypothesis import given, strategies as st

from folovllm.core.request_queue import RequestQueue
from folovllm.request import Sequence, SequenceData
from folovllm.sampling_params import SamplingParams


def make_queue(keys):
    sequences = [Sequence(str(k), "r", SequenceData([1]), SamplingParams()) for k in keys]
    table = dict(zip(sequences, keys, strict=True))
    return RequestQueue(table.__getitem__), sequences


class TestRequestQueue:
    @given(
        keys=st.lists(
            st.tuples(st.integers(-2, 2), st.integers(0, 9), st.integers(0, 3)),
            min_size=1,
            max_size=12,
            unique=True,
        ),
        data=st.data(),
    )
    def test_is_sorted_whatever_comes_and_goes(self, keys, data):
        queue, sequences = make_queue(keys)
        by_key = dict(zip(keys, sequences, strict=True))
        for seq in sequences:
            queue.add(seq)
        expected = [by_key[k] for k in sorted(keys)]
        assert list(queue) == expected
        gone = data.draw(st.sampled_from(expected))
        queue.remove(gone)
        expected.remove(gone)
        assert (list(queue), len(queue)) == (expected, len(expected))
        if expected:
            assert queue.first() is queue.pop_first() is expected[0]
        if len(expected) > 1:
            assert queue.pop_last() is expected[-1]

    def test_the_last_ones_may_be_popped_while_it_is_gone_through(self):
        queue, sequences = make_queue([(0, i, 0) for i in range(5)])
        for seq in sequences:
            queue.add(seq)
        seen = []
        for seq in queue:
            seen.append(seq)
            if len(queue) > 3:
                queue.pop_last()
        assert seen == sequences[:3]
        assert list(queue) == sequences[:3]

    def test_is_false_when_empty(self):
        queue, [seq] = make_queue([(0, 0, 0)])
        assert not queue
        queue.add(seq)
        assert queue

    @pytest.mark.parametrize("present", [0, 2])
    def test_refuses_to_remove_what_is_not_in_it(self, present):
        queue, sequences = make_queue([(0, i, 0) for i in range(3)])
        queue.add(sequences[present])
        with pytest.raises(ValueError, match=r"sequence .* is not in the queue"):
            queue.remove(sequences[1])
        assert list(queue) == [sequences[present]]
