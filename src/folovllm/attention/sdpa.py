"""Attention by torch's own operations: every device, dtype, head size and block size.

Sequences with one token in the step (decoding) attend together: their pages are gathered side by
side, padded to the longest, and the query heads that share a key head stand as rows of one small
matrix, so that nothing is repeated. Longer pieces (prompts) attend one by one; a prompt without
any context uses its keys and values as they come from the model, causally, with no mask.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - everybody's name for it

from folovllm.attention.backend import (
    AttentionCapture,
    AttentionNeeds,
    AttentionOptions,
    LayerCache,
    write_to_cache,
)
from folovllm.attention.batch import Batch
from folovllm.utils.transfer import send


@dataclass(slots=True)
class DecodeGroup:
    """Sequences with one token each.

    Attributes:
        rows: their tokens' places in the batch `[B]`; None when they are the whole batch.
        blocks: their block tables one after another, each padded with block 0, `[B * width]`.
        seq_lens: `[B, 1]`.
        shortest: the least of them, known on the host.
        padded_len: the tokens that `width` blocks hold.
        masks: by window, which tokens are seen `[B, 1, 1, padded_len]`.
    """

    rows: torch.Tensor | None
    blocks: torch.Tensor
    seq_lens: torch.Tensor
    shortest: int
    padded_len: int
    masks: dict[int | None, torch.Tensor] = field(default_factory=dict)


@dataclass(slots=True)
class Piece:
    """Several tokens of one sequence.

    Attributes:
        first: the place of the first of them in the batch.
        query_len: how many there are.
        seq_len: with the context before them.
        blocks: the sequence's block table `[width]`; None without context.
        masks: by window, which tokens each sees `[query_len, seq_len]`.
    """

    first: int
    query_len: int
    seq_len: int
    blocks: torch.Tensor | None = None
    masks: dict[int | None, torch.Tensor] = field(default_factory=dict)


@dataclass(slots=True)
class SdpaMetadata:
    """What all layers of a step share."""

    slots: torch.Tensor
    decodes: DecodeGroup | None
    pieces: list[Piece]


class SdpaBackend:
    """Gathers pages and calls `scaled_dot_product_attention`."""

    name = "sdpa"
    block_size = 16
    captures = False  # its pages are gathered in tensors of another shape every step

    def refusal(self, needs: AttentionNeeds) -> str | None:  # noqa: ARG002 - as others
        """Nothing is refused."""
        return None

    def build(self, batch: Batch, device: torch.device) -> SdpaMetadata:
        """Sort the batch into decoding sequences and longer pieces."""
        block_size, alone = batch.block_size, batch.query_lens == 1
        firsts = batch.query_lens.cumsum() - batch.query_lens
        lengths = batch.seq_lens[alone]
        width = -(-int(lengths.max(initial=0)) // block_size)
        group = [firsts[alone], batch.block_table[alone, :width].reshape(-1), lengths[:, None]]
        numbers = np.stack((firsts, batch.query_lens, batch.seq_lens), 1)
        pieces = [Piece(*row) for row in numbers[~alone].tolist()]
        rows_of_table = zip(batch.block_table[~alone], pieces, strict=True)
        tables = [row[: -(-piece.seq_len // block_size)] for row, piece in rows_of_table]
        slots, rows, blocks, seq_lens, *pages = send([batch.slots, *group, *tables], device)
        for piece, table in zip(pieces, pages, strict=True):
            piece.blocks = table if piece.seq_len > piece.query_len else None
        decodes = None
        if len(lengths):
            sizes = int(lengths.min()), width * block_size
            decodes = DecodeGroup(rows if pieces else None, blocks, seq_lens, *sizes)
        return SdpaMetadata(slots, decodes, pieces)

    def capture(
        self, size: int, width: int, max_seq_len: int, device: torch.device
    ) -> AttentionCapture:
        """Never called: it does not capture."""
        raise NotImplementedError(f"the {self.name} backend cannot be captured")

    def attend(
        self,
        metadata: SdpaMetadata,
        cache: LayerCache,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        options: AttentionOptions,
    ) -> torch.Tensor:
        """Write to the cache, then attend: `AttentionBackend.attend`."""
        write_to_cache(cache, metadata.slots, key, value)
        group = metadata.decodes
        if group is not None and not metadata.pieces:
            return _attend_decodes(group, cache, query[0].transpose(0, 1), options)[None]
        shape = (query.shape[2], query.shape[1], value.shape[-1])
        output = query.new_empty(shape)
        if group is not None:
            output[group.rows] = _attend_decodes(
                group, cache, query[0, :, group.rows].transpose(0, 1), options
            )
        for piece in metadata.pieces:
            part = slice(piece.first, piece.first + piece.query_len)
            output[part] = _attend_piece(
                piece, cache, query[:, :, part], key[:, :, part], value[:, :, part], options
            )
        return output[None]


def _decode_mask(group: DecodeGroup, window: int | None) -> torch.Tensor | None:
    if window is not None and window >= group.padded_len:
        window = None
    if window is None and group.shortest == group.padded_len:
        return None
    if window not in group.masks:
        positions = torch.arange(group.padded_len, device=group.seq_lens.device)
        seen = positions < group.seq_lens
        if window is not None:
            seen &= positions >= group.seq_lens - window
        group.masks[window] = seen[:, None, None]
    return group.masks[window]


def _attend_decodes(
    group: DecodeGroup, cache: LayerCache, query: torch.Tensor, options: AttentionOptions
) -> torch.Tensor:
    """From queries `[B, num_heads, key_size]` to outputs `[B, num_heads, value_size]`."""
    batch, num_heads, size = query.shape
    keys, values = (
        pages.index_select(0, group.blocks)
        .view(batch, group.padded_len, *pages.shape[2:])
        .transpose(1, 2)
        for pages in cache
    )
    kv_heads = keys.shape[1]
    grouped = query.reshape(batch, kv_heads, num_heads // kv_heads, size)
    mask = _decode_mask(group, options.window)
    return _attend(grouped, keys, values, mask, options).reshape(batch, num_heads, -1)


def _piece_mask(piece: Piece, window: int | None, device: torch.device) -> torch.Tensor:
    if window not in piece.masks:
        queries = torch.arange(piece.seq_len - piece.query_len, piece.seq_len, device=device)
        keys = torch.arange(piece.seq_len, device=device)
        seen = keys <= queries[:, None]
        if window is not None:
            seen &= keys > queries[:, None] - window
        piece.masks[window] = seen
    return piece.masks[window]


def _attend_piece(
    piece: Piece,
    cache: LayerCache,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    options: AttentionOptions,
) -> torch.Tensor:
    """From queries `[1, num_heads, t, key_size]` to outputs `[t, num_heads, value_size]`."""
    if piece.blocks is not None:
        key, value = (
            pages.index_select(0, piece.blocks).flatten(0, 1)[: piece.seq_len].transpose(0, 1)[None]
            for pages in cache
        )
    window = options.window
    if window is not None and window >= piece.seq_len:
        window = None
    if piece.blocks is None and window is None:
        mask = None
    else:
        mask = _piece_mask(piece, window, query.device)
    output = _attend(query, key, value, mask, options, causal=mask is None)
    return output[0].transpose(0, 1)


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    options: AttentionOptions,
    *,
    causal: bool = False,
) -> torch.Tensor:
    """Attention of `[B, heads, t, size]` to `[B, kv_heads, length, size]`."""
    if options.softcap is not None or options.sinks is not None:
        return _attend_by_parts(query, key, value, mask, options, causal=causal)
    if query.is_cuda and mask is not None and query.shape[1] != key.shape[1]:
        # With a mask, the kernel that does not write all scores down knows no shared heads.
        group = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=causal,
        scale=options.scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _attend_by_parts(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    options: AttentionOptions,
    *,
    causal: bool,
) -> torch.Tensor:
    """The same with what torch's one operation does not know: a soft cap, sinks."""
    batch, heads, length, _ = query.shape
    kv_heads = key.shape[1]
    # One key head serves several query heads: they are rows of the same product.
    grouped = query.reshape(batch, kv_heads, heads // kv_heads * length, -1)
    scores = (grouped @ key.transpose(-1, -2)).view(batch, kv_heads, -1, length, key.shape[2])
    scores = scores * options.scale
    if options.softcap is not None:
        scores = options.softcap * torch.tanh(scores / options.softcap)
    if causal:
        mask = torch.ones(length, length, dtype=torch.bool, device=query.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask.unsqueeze(-3), float("-inf"))
    weights = _softmax(scores, options.sinks).to(value.dtype)
    weights = weights.reshape(batch, kv_heads, -1, key.shape[2])
    return (weights @ value).view(batch, heads, length, -1)


def _softmax(scores: torch.Tensor, sinks: torch.Tensor | None) -> torch.Tensor:
    """Over the last dimension of `[B, kv_heads, groups, t, length]`, in float32."""
    if sinks is None:
        return scores.softmax(-1, dtype=torch.float32)
    batch, kv_heads, groups, rows, _ = scores.shape
    # While decoding, the heads of a group are the rows.
    sink = sinks.view(1, kv_heads, groups, -1, 1).expand(batch, -1, -1, rows, 1)
    return torch.cat([scores, sink.to(scores.dtype)], -1).softmax(-1, dtype=torch.float32)[..., :-1]
