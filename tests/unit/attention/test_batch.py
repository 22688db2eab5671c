import numpy as np
from hypothesis import given, strategies as st

from tests.unit.attention.reference import blocks_of, make_batch, sequences


@given(sequences, st.sampled_from([1, 3, 16]))
def test_every_token_has_its_place(parts, block_size):
    tables = blocks_of(parts, block_size)
    batch = make_batch(parts, tables, block_size)
    places = [
        (position, table[position // block_size] * block_size + position % block_size)
        for (context, count), table in zip(parts, tables, strict=True)
        for position in range(context, context + count)
    ]
    assert list(zip(batch.positions.tolist(), batch.slots.tolist(), strict=True)) == places
    assert batch.has_single_tokens is all(count == 1 for _, count in parts)


def test_padding_is_a_token_of_the_null_block():
    batch = make_batch([(5, 1), (0, 1)], [[7, 8], [9]], 4)
    padded = batch.padded(4)
    assert batch.padded(2) is batch
    assert padded.positions.tolist() == [5, 0, 0, 0]
    assert padded.slots.tolist() == [33, 36, 0, 0]
    assert padded.token_ids.tolist() == [0] * 4
    assert padded.query_lens.tolist() == [1] * 4
    assert padded.seq_lens.tolist() == [6, 1, 1, 1]
    assert np.array_equal(padded.block_table, [[7, 8], [9, 0], [0, 0], [0, 0]])
