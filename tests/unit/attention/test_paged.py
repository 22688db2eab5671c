import torch
from hypothesis import given, strategies as st

from folovllm.attention.backend import BatchLayout
from folovllm.attention.paged import paged_metadata

sequences = st.lists(
    st.tuples(st.integers(1, 9), st.integers(0, 40), st.lists(st.integers(1, 99), max_size=12)),
    min_size=1,
    max_size=6,
)


@given(sequences)
def test_says_what_the_layout_says(seqs):
    query_lens = [count for count, _, _ in seqs]
    seq_lens = [count + context for count, context, _ in seqs]
    block_ids = [ids for _, _, ids in seqs]
    slots = torch.arange(sum(query_lens))
    made = paged_metadata(BatchLayout(query_lens, seq_lens, block_ids, slots, 16))
    assert made.slots is slots
    assert made.cu_query_lens.diff().tolist() == query_lens
    assert made.cu_seq_lens.diff().tolist() == seq_lens
    assert made.cu_query_lens[0] == made.cu_seq_lens[0] == 0
    width = made.block_table.shape[1]
    assert width == max(map(len, block_ids))
    assert made.block_table.tolist() == [ids + [0] * (width - len(ids)) for ids in block_ids]
    for tensor in (made.cu_query_lens, made.cu_seq_lens, made.block_table):
        assert tensor.dtype == torch.int32
        assert tensor.is_contiguous()
    assert (made.max_query_len, made.max_seq_len) == (max(query_lens), max(seq_lens))
