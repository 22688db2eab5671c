import pytest

from folovllm.core.stopping import StopRules
from folovllm.request import Sequence, SequenceData, SequenceStatus
from folovllm.sampling_params import SamplingParams

EOS, OTHER_EOS = 2, 3
STOPPED, CAPPED = SequenceStatus.FINISHED_STOPPED, SequenceStatus.FINISHED_LENGTH_CAPPED


def check(output, *, max_model_len=100, eos=EOS, **params):
    data = SequenceData([10, 11, 12], output)
    seq = Sequence("r-0", "r", data, SamplingParams(**params))
    return StopRules(max_model_len, eos, [EOS, OTHER_EOS]).check(seq)


class TestStopRules:
    def test_goes_on(self):
        assert check([5]) is None

    def test_main_eos_gives_no_reason(self):
        assert check([5, EOS]) == (STOPPED, None)

    def test_further_eos_gives_itself_as_the_reason(self):
        assert check([5, OTHER_EOS]) == (STOPPED, OTHER_EOS)

    def test_without_a_main_eos_the_generation_configs_ids_count(self):
        assert check([EOS], eos=None) == (STOPPED, EOS)

    def test_only_the_newest_token_counts(self):
        assert check([EOS, 5]) is None

    @pytest.mark.parametrize("token_id", [EOS, OTHER_EOS])
    def test_ignore_eos_turns_all_of_them_off(self, token_id):
        assert check([token_id], ignore_eos=True) is None

    @pytest.mark.parametrize("token_id", [EOS, OTHER_EOS, 9])
    def test_stop_ids_hold_with_ignore_eos_too(self, token_id):
        params = {"ignore_eos": True, "stop_token_ids": [9, EOS, OTHER_EOS]}
        assert check([token_id], **params) == (STOPPED, token_id)

    def test_eos_goes_before_the_same_stop_id(self):
        assert check([EOS], stop_token_ids=[EOS]) == (STOPPED, None)

    @pytest.mark.parametrize("token_id", [EOS, OTHER_EOS, 9])
    def test_nothing_stops_before_min_tokens(self, token_id):
        params = {"min_tokens": 3, "stop_token_ids": [9]}
        assert check([5, token_id], **params) is None
        assert check([5, 5, token_id], **params) is not None

    def test_max_tokens(self):
        assert check([5, 5], max_tokens=3) is None
        assert check([5, 5, 5], max_tokens=3) == (CAPPED, None)

    def test_without_max_tokens_the_models_length_counts(self):
        assert check([5] * 16, max_tokens=None) is None
        assert check([5] * 16, max_tokens=None, max_model_len=20) is None
        assert check([5] * 17, max_tokens=None, max_model_len=20) == (CAPPED, None)

    def test_the_models_length_counts_before_min_tokens_too(self):
        assert check([5, 5], max_model_len=5, min_tokens=9) == (CAPPED, None)

    def test_a_stop_goes_before_a_limit(self):
        assert check([5, EOS], max_tokens=2) == (STOPPED, None)
        assert check([5, 9], max_tokens=2, stop_token_ids=[9]) == (STOPPED, 9)
