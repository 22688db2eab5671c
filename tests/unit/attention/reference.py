"""Attention as its definition says, in float64, and random cases to hold a backend against it."""

from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import strategies as st

from folovllm.attention.backend import AttentionOptions, LayerCache
from folovllm.attention.batch import lay_out

TOLERANCES = {
    torch.float32: (1e-4, 1e-5),
    torch.float16: (2e-3, 2e-3),
    torch.bfloat16: (2e-2, 2e-2),
}


@dataclass(frozen=True)
class Case:
    """A batch in one layer.

    Attributes:
        parts: context and new tokens of each sequence.
        padding: sequences behind them that stand for nothing: one token in slot 0.
        fused: queries, keys and values lie side by side in one tensor.
        sinks: of each head; a tensor has no equality, which Hypothesis wants.
    """

    parts: tuple[tuple[int, int], ...]
    heads: int = 2
    kv_heads: int = 1
    key_size: int = 16
    value_size: int = 16
    block_size: int = 16
    scale: float = 0.25
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False
    dtype: torch.dtype = torch.float32
    padding: int = 0
    fused: bool = False
    seed: int = 0

    def options(self, device="cpu"):
        sinks = torch.linspace(-1, 1, self.heads).to(device, self.dtype) if self.sinks else None
        return AttentionOptions(self.scale, self.window, self.softcap, sinks)


@st.composite
def cases(
    draw,
    longest=40,
    most=5,
    groups=(1, 2, 3),
    sizes=((8, 8), (16, 16), (16, 24), (24, 16)),
    kv_heads=(1, 2, 3),
    block_sizes=(1, 4, 16),
    dtypes=(torch.float32,),
):
    part = st.tuples(st.integers(0, longest), st.integers(1, longest // 3))
    parts = draw(st.lists(part, min_size=1, max_size=most))
    decoding = draw(st.booleans())  # which often has a way of its own
    key_size, value_size = draw(st.sampled_from(sizes))
    shared = draw(st.sampled_from(kv_heads))
    return Case(
        tuple((context, 1 if decoding else count) for context, count in parts),
        heads=shared * draw(st.sampled_from(groups)),
        kv_heads=shared,
        key_size=key_size,
        value_size=value_size,
        block_size=draw(st.sampled_from(block_sizes)),
        scale=draw(st.sampled_from([key_size**-0.5, 0.3])),
        window=draw(st.none() | st.integers(1, longest)),
        softcap=draw(st.none() | st.just(2.0)),
        sinks=draw(st.booleans()),
        dtype=draw(st.sampled_from(dtypes)),
        padding=draw(st.sampled_from([0, 0, 3])) if decoding else 0,
        fused=draw(st.booleans()),
        seed=draw(st.integers(0, 99)),
    )


def reference(query, keys, values, options):
    """One sequence in float64.

    Args:
        query: `[t, heads, size]`, the last t tokens.
        keys: `[length, kv_heads, size]`.
        values: `[length, kv_heads, size]`.
        options: how.
    """
    group = query.shape[1] // keys.shape[1]
    query, keys, values = query.double(), keys.double(), values.double()
    keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
    scores = torch.einsum("thd,lhd->htl", query, keys) * options.scale
    if options.softcap is not None:
        scores = options.softcap * torch.tanh(scores / options.softcap)
    places = torch.arange(len(keys), device=keys.device)
    distance = places[len(keys) - len(query) :, None] - places
    unseen = distance < 0
    if options.window is not None:
        unseen |= distance >= options.window
    weights = scores.masked_fill(unseen, float("-inf")).exp()
    total = weights.sum(-1, keepdim=True)
    if options.sinks is not None:
        total = total + options.sinks.double().exp()[:, None, None]
    return torch.einsum("htl,lhd->thd", weights / total, values)


sequences = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9)), min_size=1, max_size=6)
"""Context and new tokens of each."""


def blocks_of(parts, size):
    """Blocks for each sequence, and some more for its future."""
    return [
        [100 * i + j for j in range(-(-(context + count) // size) + i % 2)]
        for i, (context, count) in enumerate(parts, 1)
    ]


def make_batch(parts, tables, block_size):
    """The batch of these contexts and new tokens, in these blocks; the tokens do not matter."""
    contexts, counts = (np.array(numbers) for numbers in zip(*parts, strict=True))
    width = max(-(-(context + count) // block_size) for context, count in parts)
    padded = np.array([(table + [0] * width)[:width] for table in tables], np.int32)
    return lay_out(np.zeros(counts.sum(), np.int64), contexts, counts, padded, block_size)


def random_tables(parts, block_size, generator):
    """Random blocks for each sequence, and how many there are with block 0 and some of nobody."""
    widths = [-(-(context + count) // block_size) for context, count in parts]
    order = (torch.randperm(sum(widths) + 3, generator=generator) + 1).tolist()
    return [[order.pop() for _ in range(width)] for width in widths], sum(widths) + 4


def check(backend, case, device="cpu", unwritten=0.0):
    """Run a case through a backend; fail where it differs from the definition.

    Args:
        backend: what to check.
        case: on what.
        device: where.
        unwritten: what stands in slots that no token of the batch has.
    """
    generator = torch.Generator().manual_seed(case.seed)
    device = torch.device(device)
    tables, num_blocks = random_tables(case.parts, case.block_size, generator)
    padding = [(0, 1)] * case.padding
    batch = make_batch([*case.parts, *padding], tables + [[0] for _ in padding], case.block_size)
    options = case.options(device)

    def random(*shape):
        return torch.randn(*shape, generator=generator).to(device, case.dtype)

    pages = (num_blocks, case.block_size, case.kv_heads)
    cache = LayerCache(
        torch.full((*pages, case.key_size), unwritten, dtype=case.dtype, device=device),
        torch.full((*pages, case.value_size), unwritten, dtype=case.dtype, device=device),
    )
    new, expected = [], []
    for (context, count), table in zip(case.parts, tables, strict=True):
        keys = random(context + count, case.kv_heads, case.key_size)
        values = random(context + count, case.kv_heads, case.value_size)
        places = torch.arange(context)
        blocks = torch.tensor(table)[places // case.block_size]
        slots = (blocks * case.block_size + places % case.block_size).to(device)
        cache.keys.flatten(0, 1)[slots] = keys[:context]
        cache.values.flatten(0, 1)[slots] = values[:context]
        query = random(count, case.heads, case.key_size)
        new.append((query, keys[context:], values[context:]))
        expected.append(reference(query, keys, values, options))
    for _ in range(case.padding):
        token = random(1, case.heads, case.key_size), random(1, case.kv_heads, case.key_size)
        new.append((*token, random(1, case.kv_heads, case.value_size)))
    flat = [torch.cat(tensors) for tensors in zip(*new, strict=True)]
    if case.fused:
        sizes = [tensor[0].numel() for tensor in flat]
        split = torch.cat([tensor.flatten(1) for tensor in flat], 1).split(sizes, 1)
        flat = [part.view_as(tensor) for part, tensor in zip(split, flat, strict=True)]
    inputs = [tensor.transpose(0, 1)[None] for tensor in flat]
    output = backend.attend(backend.build(batch, device), cache, *inputs, options)
    assert output.shape == (1, len(batch.slots), case.heads, case.value_size)
    assert output.dtype == case.dtype
    assert output.isfinite().all()
    real = len(batch.slots) - case.padding
    rtol, atol = TOLERANCES[case.dtype]
    torch.testing.assert_close(output[0, :real].double(), torch.cat(expected), rtol=rtol, atol=atol)
    for stored, tensor in zip(cache, flat[1:], strict=True):
        assert torch.equal(stored.flatten(0, 1)[batch.slots[:real]], tensor[:real])
    written = set(batch.slots.tolist())
    for (context, _), table in zip(case.parts, tables, strict=True):
        written |= {
            table[p // case.block_size] * case.block_size + p % case.block_size
            for p in range(context)
        }
    others = [slot for slot in range(num_blocks * case.block_size) if slot not in written]
    untouched = torch.tensor(unwritten, dtype=case.dtype, device=device)
    for stored in cache:
        rest = stored.flatten(0, 1)[others]
        torch.testing.assert_close(rest, untouched.expand_as(rest), equal_nan=True)
