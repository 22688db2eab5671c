import torch
from hypothesis import given, strategies as st

from folovllm.attention.paged import PagedBackend
from tests.unit.attention.reference import blocks_of, make_batch, sequences

CPU = torch.device("cpu")


@given(sequences)
def test_says_what_the_batch_says(parts):
    batch = make_batch(parts, blocks_of(parts, 4), 4)
    made = PagedBackend().build(batch, CPU)
    query_lens = [count for _, count in parts]
    seq_lens = [context + count for context, count in parts]
    assert made.slots.tolist() == batch.slots.tolist()
    assert made.cu_query_lens.diff().tolist() == query_lens
    assert made.cu_seq_lens.diff().tolist() == seq_lens
    assert made.cu_query_lens[0] == made.cu_seq_lens[0] == 0
    assert made.block_table.tolist() == batch.block_table.tolist()
    assert made.slots.dtype == torch.int64
    for tensor in (made.cu_query_lens, made.cu_seq_lens, made.block_table):
        assert tensor.dtype == torch.int32
        assert tensor.is_contiguous()
    assert (made.max_query_len, made.max_seq_len) == (max(query_lens), max(seq_lens))


@given(st.lists(st.integers(1, 30), min_size=1, max_size=5), st.integers(0, 3))
def test_what_is_captured_says_the_same(lengths, padding):
    """Read from the places of the capture, where a larger step was before."""
    size = len(lengths) + padding
    parts = [(length - 1, 1) for length in lengths]
    batch = make_batch(parts, blocks_of(parts, 4), 4).padded(size)
    capture = PagedBackend().capture(8, 8, 30, CPU)
    before = make_batch([(29, 1)] * 8, [list(range(90, 98))] * 8, 4)
    capture.load([torch.from_numpy(array) for array in capture.arrays(before)])
    tensors = [torch.from_numpy(array) for array in capture.arrays(batch)]
    capture.load(tensors)
    captured, built = capture.metadata(tensors), PagedBackend().build(batch, CPU)
    for name in ("slots", "cu_query_lens", "cu_seq_lens"):
        assert torch.equal(getattr(captured, name), getattr(built, name))
    width = built.block_table.shape[1]
    assert captured.block_table.shape == (size, 8)
    assert torch.equal(captured.block_table[:, :width], built.block_table)
    assert (captured.max_query_len, captured.max_seq_len) == (1, 30)
