"""Does an attention backend compute what attention is? A small paged batch against float64."""

import math
from collections.abc import Iterable, Sequence
from itertools import chain

import torch

from folovllm.attention.backend import (
    AttentionBackend,
    AttentionNeeds,
    AttentionOptions,
    LayerAttention,
    LayerCache,
    LayerSpec,
    write_to_cache,
)
from folovllm.core.plan import ScheduledSequence
from folovllm.worker.batch import make_batch
from folovllm.worker.block_tables import BlockTables

NUM_HEADS, NUM_KV_HEADS, HEAD_SIZE = 8, 2, 64

# Tokens in the cache and tokens of this step of each sequence: a prompt, a piece of one, a
# sequence that decodes; and decoding alone, which backends compute in another way.
BATCHES = (((0, 37), (43, 7), (32, 1), (129, 1)), ((32, 1), (129, 1), (0, 1)))

OPTIONS = (
    AttentionOptions(HEAD_SIZE**-0.5),
    AttentionOptions(HEAD_SIZE**-0.5, window=20),
    AttentionOptions(HEAD_SIZE**-0.5, softcap=3.0),
)

TOLERANCES = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 4e-2}
"""How far an output, which is a mean of values of about 1, may be off."""


def served_options(
    backend: AttentionBackend, device: torch.device, dtype: torch.dtype
) -> tuple[list[AttentionOptions], str | None]:
    """Those of `OPTIONS` that a backend can serve, and why it refuses the plainest if it does."""
    refusals = [backend.refusal(_needs(options, device, dtype)) for options in OPTIONS]
    served = [o for o, refusal in zip(OPTIONS, refusals, strict=True) if refusal is None]
    return served, refusals[0]


@torch.inference_mode()
def attention_error(
    backend: AttentionBackend, options: AttentionOptions, device: torch.device, dtype: torch.dtype
) -> float:
    """The largest difference from a reference in float64; NaN where an output is no number."""
    return largest(_batch_error(backend, options, parts, device, dtype) for parts in BATCHES)


def largest(errors: Iterable[float]) -> float:
    """The largest error; NaN if there is one, which `max` may pass over."""
    return max(errors, key=lambda error: (math.isnan(error), error))


def _needs(options: AttentionOptions, device: torch.device, dtype: torch.dtype) -> AttentionNeeds:
    spec = LayerSpec(NUM_KV_HEADS, HEAD_SIZE, HEAD_SIZE)
    return AttentionNeeds(device, dtype, (LayerAttention(spec, NUM_HEADS, options),), None)


def _batch_error(
    backend: AttentionBackend,
    options: AttentionOptions,
    parts: Sequence[tuple[int, int]],
    device: torch.device,
    dtype: torch.dtype,
) -> float:
    random = torch.Generator().manual_seed(0)

    def rows(count: int, heads: int) -> torch.Tensor:
        return torch.randn(count, heads, HEAD_SIZE, generator=random).to(dtype)

    tables = _tables(parts, backend.block_size)
    blocks = 1 + max(chain.from_iterable(tables))
    shape = (blocks, backend.block_size, NUM_KV_HEADS, HEAD_SIZE)
    cache = LayerCache(*(torch.zeros(shape, dtype=dtype, device=device) for _ in range(2)))
    new, expected = [], []
    for (context, count), table in zip(parts, tables, strict=True):
        keys, values = (rows(context + count, NUM_KV_HEADS) for _ in range(2))
        query = rows(count, NUM_HEADS)
        places = _slots(table, context, backend.block_size).to(device)
        before = [_as_layer(part[:context], device) for part in (keys, values)]
        write_to_cache(cache, places, *before)
        new.append((query, keys[context:], values[context:]))
        expected.append(reference(query, keys, values, options))
    entries = [
        ScheduledSequence(str(i), context, (0,) * count, 0, tuple(table))
        for i, ((context, count), table) in enumerate(zip(parts, tables, strict=True))
    ]
    batch = make_batch(entries, BlockTables(), backend.block_size)
    tensors = [_as_layer(torch.cat(part), device) for part in zip(*new, strict=True)]
    query, key, value = tensors
    output = backend.attend(backend.build(batch, device), cache, query, key, value, options)
    return float((output[0].cpu().double() - torch.cat(expected)).abs().max())


def _tables(parts: Sequence[tuple[int, int]], block_size: int) -> list[list[int]]:
    """Blocks for each sequence, none beside its neighbour; block 0 is nobody's."""
    widths = [-(-(context + count) // block_size) for context, count in parts]
    order = list(range(sum(widths), 0, -1))
    order = order[::2] + order[1::2]
    return [[order.pop() for _ in range(width)] for width in widths]


def _slots(table: list[int], length: int, block_size: int) -> torch.Tensor:
    positions = torch.arange(length)
    return torch.tensor(table)[positions // block_size] * block_size + positions % block_size


def _as_layer(rows: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`[T, heads, size]` as a model's layer has it, `[1, heads, T, size]`."""
    return rows.transpose(0, 1)[None].to(device)


def reference(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, options: AttentionOptions
) -> torch.Tensor:
    """Attention of a sequence's last tokens as it is defined, in float64.

    Args:
        query: `[t, num_heads, size]`.
        keys: `[length, num_kv_heads, size]`.
        values: `[length, num_kv_heads, size]`.
        options: how, without sinks.

    Returns:
        `[t, num_heads, size]`.
    """
    count, length = len(query), len(keys)
    group = query.shape[1] // keys.shape[1]
    keys, values = (part.double().repeat_interleave(group, dim=1) for part in (keys, values))
    scores = torch.einsum("thd,shd->hts", query.double(), keys) * options.scale
    if options.softcap is not None:
        scores = options.softcap * torch.tanh(scores / options.softcap)
    behind = torch.arange(length - count, length)[:, None] - torch.arange(length)
    hidden = behind < 0
    if options.window is not None:
        hidden |= behind >= options.window
    weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    return torch.einsum("hts,shd->thd", weights, values)
