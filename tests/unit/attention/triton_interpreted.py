"""The Triton kernels on a CPU.

Triton decides when it is imported whether it compiles or interprets, so these run in a process
of their own with `TRITON_INTERPRET=1`, which `test_triton.py` starts.
"""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings, strategies as st

from folovllm.attention.triton import TritonBackend
from folovllm.kernels import triton_attention
from folovllm.kernels.triton_tiles import Launch, Tiles, count_row_tiles, padded
from tests.unit.attention.reference import Case, cases, check

NAN = float("nan")  # what must not be read, or must not matter


class Forced(TritonBackend):
    """Launches as it is told."""

    def __init__(self, rows, columns, splits):
        self.rows, self.columns, self.splits = rows, columns, splits

    def attend(self, metadata, cache, query, key, value, options):
        group = query.shape[1] // key.shape[1]
        rows = max(self.rows, padded(group))
        counted = query.shape[2], len(metadata.block_table), rows // group
        row_tiles = count_row_tiles(*counted, metadata.max_query_len == 1)
        launch = Launch(Tiles(rows, self.columns, 4, 2), row_tiles, self.splits)
        triton_attention.store(metadata, cache, key, value)
        return triton_attention.attend(metadata, cache, query, options, launch)


forced = st.builds(
    Forced, st.sampled_from([16, 32]), st.sampled_from([16, 32]), st.sampled_from([1, 2, 4])
)


@settings(max_examples=12, deadline=None)
@given(cases(longest=60, most=3), forced)
def test_any_tiles_and_splits(case, backend):
    check(backend, case, unwritten=NAN)


@settings(max_examples=6, deadline=None)
@given(cases(longest=60, most=2, dtypes=(torch.float16,)), forced)
def test_in_16_bits(case, backend):
    check(backend, case, unwritten=NAN)


@settings(max_examples=6, deadline=None)
@given(cases(longest=150, most=3))
def test_as_it_chooses_itself(case):
    check(TritonBackend(), case, unwritten=NAN)


@pytest.mark.parametrize("size", [64, 80, 96, 128, 192, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_sizes_that_models_have(size, dtype):
    mixed = Case(((37, 1), (20, 30)), 4, 2, size, size, dtype=dtype, scale=size**-0.5)
    check(TritonBackend(), mixed, unwritten=NAN)
    decoding = replace(mixed, parts=((37, 1), (90, 1)), value_size=size // 2)
    check(TritonBackend(), decoding, unwritten=NAN)


@pytest.mark.parametrize("group", [1, 5, 24, 71])
@pytest.mark.parametrize("count", [1, 11])
def test_heads_that_share_a_key_head(group, count):
    case = Case(((20, count), (0, count)), heads=group * 2, kv_heads=2)
    check(TritonBackend(), case, unwritten=NAN)


def test_more_heads_than_are_stored_at_once():
    case = Case(((3, 4),), heads=33, kv_heads=33, key_size=80, value_size=96)
    check(TritonBackend(), case, unwritten=NAN)


def test_numbers_of_a_head_that_do_not_lie_side_by_side():
    class Spread(TritonBackend):
        def attend(self, metadata, cache, query, key, value, options):
            wide = [t.repeat_interleave(2, -1)[..., ::2] for t in (query, key, value)]
            return super().attend(metadata, cache, *wide, options)

    check(Spread(), Case(((5, 3), (2, 1))), unwritten=NAN)


def test_one_launch_serves_other_lengths():
    """As a captured graph does: the host's numbers are only large enough."""

    class Long(TritonBackend):
        def build(self, batch, device):
            return replace(super().build(batch, device), max_seq_len=4096)

    for lengths in ((1, 2), (300, 7)):
        case = Case(tuple((length - 1, 1) for length in lengths), padding=2)
        check(Long(), case, unwritten=NAN)


def test_what_is_far_before_the_window_is_not_touched():
    class Freed(TritonBackend):
        def attend(self, metadata, cache, query, key, value, options):
            forgotten = metadata.block_table[0, : (400 - options.window) // 16 - 3]
            kept = [pages.clone() for pages in cache]
            for pages in cache:
                pages[forgotten] = NAN
            output = super().attend(metadata, cache, query, key, value, options)
            for pages, old in zip(cache, kept, strict=True):
                pages[forgotten] = old[forgotten]
            return output

    check(Freed(), Case(((400, 1),), window=100))
    check(Freed(), Case(((400, 9),), window=33))
