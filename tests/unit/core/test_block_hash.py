from hypothesis import given, strategies as st

from folovllm.core.block_hash import ROOT_HASH, get_block_hash, hash_block
from folovllm.request import Sequence, SequenceData
from folovllm.sampling_params import SamplingParams


def make_sequence(prompt: list[int], output: list[int] | None = None) -> Sequence:
    return Sequence("r-0", "r", SequenceData(prompt, output or []), SamplingParams())


class TestHashBlock:
    def test_depends_on_tokens_their_order_and_the_parent(self):
        hashes = [
            hash_block(ROOT_HASH, [1, 2]),
            hash_block(ROOT_HASH, [2, 1]),
            hash_block(ROOT_HASH, [12]),
            hash_block(hash_block(ROOT_HASH, [1, 2]), [1, 2]),
            hash_block(ROOT_HASH, [1, 2, 1, 2]),
        ]
        assert len(set(hashes)) == len(hashes)
        assert {len(h) for h in hashes} == {32}

    def test_same_tokens_have_the_same_hash(self):
        assert hash_block(ROOT_HASH, [1, 200_000]) == hash_block(ROOT_HASH, [1, 200_000])


class TestGetBlockHash:
    @given(
        prompt=st.lists(st.integers(0, 300_000), min_size=1, max_size=20),
        output=st.lists(st.integers(0, 300_000), max_size=20),
        block_size=st.integers(1, 5),
    )
    def test_is_the_chain_over_prompt_and_output(self, prompt, output, block_size):
        tokens, parent = prompt + output, ROOT_HASH
        seq = make_sequence(prompt, output)
        expected = []
        for start in range(0, len(tokens) - block_size + 1, block_size):
            parent = hash_block(parent, tokens[start : start + block_size])
            expected.append(parent)
        indices = range(len(expected))
        assert [get_block_hash(seq, i, block_size) for i in reversed(indices)] == expected[::-1]
        assert seq.block_hashes == expected

    def test_hashes_only_what_is_asked_for(self):
        seq = make_sequence([1, 2, 3, 4, 5, 6])
        get_block_hash(seq, 1, 2)
        assert len(seq.block_hashes) == 2

    def test_takes_what_is_kept(self):
        seq = make_sequence([1, 2, 3, 4])
        seq.block_hashes = [b"kept"]
        assert get_block_hash(seq, 0, 2) == b"kept"
        assert get_block_hash(seq, 1, 2) == hash_block(b"kept", [3, 4])
