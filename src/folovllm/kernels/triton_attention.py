"""The Triton kernels that store keys and values in pages and attend to pages, and their launches.

One kernel attends, for prompts, decoding and both in one batch. Its rows are tokens of one
sequence times the query heads that share a key head, so that decoding too is a matrix product and
every key is read once for all of them. A launch may split each sequence's keys among programs
(FlashDecoding, https://pytorch.org/blog/flash-decoding/); a second kernel then combines the parts.
The softmax runs over tiles of keys as in FlashAttention-2 (https://arxiv.org/abs/2307.08691), in
base 2, which is what the hardware has. That tiles of all sequences stand in one row of the grid
and are found by a binary search is as in vLLM's `triton_unified_attention`.

Importing this module imports Triton, which takes its time and is not there on every machine.
"""

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from folovllm.kernels.triton_tiles import STORED_AT_ONCE, Launch

if TYPE_CHECKING:  # the attention room stands above this one
    from folovllm.attention.backend import AttentionOptions, LayerCache
    from folovllm.attention.paged import PagedMetadata

LOG2E = tl.constexpr(1.4426950408889634)
NO_SCORE = tl.constexpr(-1e30)  # finite, so that the difference of two of them is no NaN


def store(
    metadata: "PagedMetadata", cache: "LayerCache", key: torch.Tensor, value: torch.Tensor
) -> None:
    """Store a step's keys and values, `[1, num_kv_heads, T, size]` each, at their slots."""
    _, kv_heads, tokens, key_size = key.shape
    value_size = value.shape[-1]
    width = triton.next_power_of_2(max(key_size, value_size))
    heads = min(triton.next_power_of_2(kv_heads), max(1, STORED_AT_ONCE // width))
    store_kernel[(tokens, triton.cdiv(kv_heads, heads))](
        key,
        value,
        cache.keys,
        cache.values,
        metadata.slots,
        key.stride(1),
        key.stride(2),
        value.stride(1),
        value.stride(2),
        kv_heads=kv_heads,
        key_size=key_size,
        value_size=value_size,
        heads=heads,
        width=width,
    )


def attend(
    metadata: "PagedMetadata",
    cache: "LayerCache",
    query: torch.Tensor,
    options: "AttentionOptions",
    launch: Launch,
) -> torch.Tensor:
    """Attend to what is stored.

    Args:
        metadata: of the step.
        cache: the layer's, contiguous.
        query: `[1, num_heads, T, key_size]`, its last dimension dense.
        options: how.
        launch: by which tiles, and how often each sequence's keys are split.

    Returns:
        `[1, T, num_heads, value_size]`.
    """
    _, num_heads, tokens, key_size = query.shape
    block_size, kv_heads, value_size = cache.values.shape[1:]
    output = query.new_empty(1, tokens, num_heads, value_size)
    into, log_sums = output, None
    if launch.splits > 1:
        shape = (tokens, num_heads, launch.splits)
        log_sums = query.new_empty(shape, dtype=torch.float32)
        into = query.new_empty((*shape, value_size), dtype=torch.float32)
    value_width = max(16, triton.next_power_of_2(value_size))
    num_seqs, table_width = metadata.block_table.shape
    attend_kernel[(launch.row_tiles, kv_heads, launch.splits)](
        into,
        log_sums,
        query,
        cache.keys,
        cache.values,
        options.sinks,
        metadata.block_table,
        metadata.cu_query_lens,
        metadata.cu_seq_lens,
        options.scale,
        options.window,
        options.softcap,
        query.stride(1),
        query.stride(2),
        num_seqs,
        table_width,
        group=num_heads // kv_heads,
        kv_heads=kv_heads,
        key_size=key_size,
        value_size=value_size,
        block_size=block_size,
        decoding=metadata.max_query_len == 1,
        rows=launch.tiles.rows,
        columns=launch.tiles.columns,
        key_width=max(16, triton.next_power_of_2(key_size)),
        value_width=value_width,
        num_warps=launch.tiles.warps,
        num_stages=launch.tiles.stages,
    )
    if log_sums is not None:
        combine_kernel[(tokens * num_heads,)](
            output,
            into,
            log_sums,
            splits=launch.splits,
            value_size=value_size,
            value_width=value_width,
        )
    return output


@triton.jit
def store_kernel(
    key,
    value,
    key_pages,
    value_pages,
    slots,
    key_head_stride,
    key_token_stride,
    value_head_stride,
    value_token_stride,
    kv_heads: tl.constexpr,
    key_size: tl.constexpr,
    value_size: tl.constexpr,
    heads: tl.constexpr,
    width: tl.constexpr,
):
    """Copy some heads of one token; programs are (token, heads)."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + token).to(tl.int64)
    head = tl.program_id(1) * heads + tl.arange(0, heads)[:, None]
    number = tl.arange(0, width)[None, :]
    is_key = (head < kv_heads) & (number < key_size)
    keys = tl.load(key + token * key_token_stride + head * key_head_stride + number, is_key)
    tl.store(key_pages + (slot * kv_heads + head) * key_size + number, keys, is_key)
    is_value = (head < kv_heads) & (number < value_size)
    values = tl.load(
        value + token * value_token_stride + head * value_head_stride + number, is_value
    )
    tl.store(value_pages + (slot * kv_heads + head) * value_size + number, values, is_value)


@triton.jit
def find_tile(cu_query_lens, num_seqs, tile, tokens_per_tile: tl.constexpr):
    """Whose tile this is, and which of its tokens is the tile's first.

    Sequence i has its tiles from `cu_query_lens[i] // tokens_per_tile + i`: that leaves room for
    every sequence's last tile, which may be a partial one.
    """
    low = 0
    high = num_seqs
    while high - low > 1:
        middle = (low + high) // 2
        if tl.load(cu_query_lens + middle) // tokens_per_tile + middle <= tile:
            low = middle
        else:
            high = middle
    before = tl.load(cu_query_lens + low) // tokens_per_tile + low
    return low, (tile - before) * tokens_per_tile


@triton.jit
def find_keys(first_position, end, split, splits, window, columns: tl.constexpr):
    """The tiles of keys of a split: its share of those that any row sees, from and up to."""
    first = 0
    if window is not None:
        first = tl.maximum(first_position - window + 1, 0) // columns
    last = tl.cdiv(end, columns)
    share = tl.cdiv(last - first, splits)
    first += split * share
    return first, tl.minimum(first + share, last)


@triton.jit(do_not_specialize=["window", "num_seqs", "table_width"])
def attend_kernel(  # noqa: PLR0915 - a kernel is one function
    output,
    log_sums,
    query,
    key_pages,
    value_pages,
    sinks,
    block_table,
    cu_query_lens,
    cu_seq_lens,
    scale,
    window,
    softcap,
    query_head_stride,
    query_token_stride,
    num_seqs,
    table_width,
    group: tl.constexpr,
    kv_heads: tl.constexpr,
    key_size: tl.constexpr,
    value_size: tl.constexpr,
    block_size: tl.constexpr,
    decoding: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
    key_width: tl.constexpr,
    value_width: tl.constexpr,
):
    """Attend from some tokens of a sequence; programs are (tile, key head, split).

    Without splits (`log_sums` is None) the output is `[T, num_heads, value_size]`; else it is
    `[T, num_heads, splits, value_size]` in float32, and `log_sums` becomes the logarithm to base
    2 of each part's sum of exponentials, `[T, num_heads, splits]`.
    """
    tokens_per_tile: tl.constexpr = rows // group
    tile = tl.program_id(0)
    kv_head = tl.program_id(1)
    if decoding:
        sequence, first = tile, 0
    else:
        sequence, first = find_tile(cu_query_lens, num_seqs, tile, tokens_per_tile)
    begin = tl.load(cu_query_lens + sequence)
    query_len = tl.load(cu_query_lens + sequence + 1) - begin
    if first >= query_len:
        return
    seq_len = tl.load(cu_seq_lens + sequence + 1) - tl.load(cu_seq_lens + sequence)
    context = seq_len - query_len

    row = tl.arange(0, rows)
    token = first + row // group
    head = kv_head * group + row % group
    is_row = (row < tokens_per_tile * group) & (token < query_len)
    position = context + token
    place = (begin + token).to(tl.int64)
    of_key = tl.arange(0, key_width)
    of_value = tl.arange(0, value_width)
    queries = tl.load(
        query + (place * query_token_stride + head * query_head_stride)[:, None] + of_key[None, :],
        mask=is_row[:, None] & (of_key < key_size)[None, :],
        other=0.0,
    )

    split = tl.program_id(2)
    splits = tl.num_programs(2)
    end = tl.minimum(seq_len, context + first + tokens_per_tile)
    first_tile, last_tile = find_keys(context + first, end, split, splits, window, columns)
    highest = tl.full([rows], NO_SCORE, tl.float32)
    total = tl.zeros([rows], tl.float32)
    if sinks is not None:  # a score like others, which one split must count
        sink = tl.load(sinks + head, mask=is_row, other=0.0).to(tl.float32) * LOG2E
        highest = tl.where(split == 0, sink, highest)
        total = tl.where(split == 0, 1.0, total)
    weighted = tl.zeros([rows, value_width], tl.float32)
    factor = scale * LOG2E if softcap is None else scale * (2 * LOG2E / softcap)

    column = tl.arange(0, columns)
    table = block_table + sequence.to(tl.int64) * table_width
    for key_tile in range(first_tile, last_tile):
        key_position = key_tile * columns + column
        is_key = key_position < end
        block = tl.load(table + key_position // block_size, mask=is_key, other=0).to(tl.int64)
        cell = (block * block_size + key_position % block_size) * kv_heads + kv_head
        keys = tl.load(
            key_pages + cell[None, :] * key_size + of_key[:, None],
            mask=is_key[None, :] & (of_key < key_size)[:, None],
            other=0.0,
        )
        # "ieee": float32 is there to agree with other implementations; other types don't care.
        scores = tl.dot(queries, keys, input_precision="ieee") * factor
        if softcap is not None:  # tanh(x) is 1 - 2 / (exp(2x) + 1)
            scores = (softcap * LOG2E) * (1.0 - 2.0 / (tl.exp2(scores) + 1.0))
        seen = key_position[None, :] <= position[:, None]
        if window is not None:
            seen = seen & (key_position[None, :] > position[:, None] - window)
        scores = tl.where(seen, scores, float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, 1))
        weights = tl.exp2(scores - higher[:, None])
        decay = tl.exp2(highest - higher)
        highest = higher
        total = total * decay + tl.sum(weights, 1)
        values = tl.load(
            value_pages + cell[:, None] * value_size + of_value[None, :],
            mask=is_key[:, None] & (of_value < value_size)[None, :],
            other=0.0,
        )
        weighted = tl.dot(
            weights.to(values.dtype), values, weighted * decay[:, None], input_precision="ieee"
        )

    cell = place * (kv_heads * group) + head
    if log_sums is not None:
        cell = cell * splits + split
        # A split may have no keys for a row: it says so, and its output is left as it is.
        tl.store(log_sums + cell, highest + tl.log2(total), mask=is_row)
        is_row = is_row & (total > 0)
    tl.store(
        output + cell[:, None] * value_size + of_value[None, :],
        weighted / total[:, None],
        mask=is_row[:, None] & (of_value < value_size)[None, :],
    )


@triton.jit
def combine_kernel(
    output,
    parts,
    log_sums,
    splits: tl.constexpr,
    value_size: tl.constexpr,
    value_width: tl.constexpr,
):
    """Add up the splits of one token and head, by their share of the sum of exponentials."""
    cell = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, splits)
    of_value = tl.arange(0, value_width)
    log_sum = tl.load(log_sums + cell * splits + split)
    weights = tl.exp2(log_sum - tl.max(log_sum, 0))
    values = tl.load(
        parts + (cell * splits + split)[:, None] * value_size + of_value[None, :],
        mask=(weights > 0)[:, None] & (of_value < value_size)[None, :],
        other=0.0,
    )
    combined = tl.sum(values * weights[:, None], 0) / tl.sum(weights, 0)
    tl.store(output + cell * value_size + of_value, combined, mask=of_value < value_size)
