import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

from folovllm.attention.backend import AttentionOptions, BatchLayout, LayerCache
from folovllm.attention.sdpa import SdpaBackend


def reference(query, keys, values, context, options):
    """One sequence in float64, token by token.

    Args:
        query: `[t, heads, size]`, the last t tokens.
        keys: `[length, kv_heads, size]`.
        values: `[length, kv_heads, size]`.
        context: tokens before the query's first.
        options: how.
    """
    t, heads, _ = query.shape
    group = heads // keys.shape[1]
    output = torch.zeros(t, heads, values.shape[-1], dtype=torch.float64)
    for i in range(t):
        position = context + i
        first = 0 if options.window is None else max(0, position - options.window + 1)
        for head in range(heads):
            k = keys[first : position + 1, head // group].double()
            v = values[first : position + 1, head // group].double()
            scores = k @ query[i, head].double() * options.scale
            if options.softcap is not None:
                scores = options.softcap * torch.tanh(scores / options.softcap)
            weights = scores.exp()
            total = weights.sum()
            if options.sinks is not None:
                total = total + options.sinks[head].double().exp()
            output[i, head] = weights @ v / total
    return output


@st.composite
def cases(draw):
    kv_heads = draw(st.sampled_from([1, 2, 3]))
    heads = kv_heads * draw(st.sampled_from([1, 2, 3]))
    size = draw(st.sampled_from([8, 16]))
    parts = draw(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 9)), min_size=1, max_size=5))
    if draw(st.booleans()):  # decoding alone has a way of its own
        parts = [(context, 1) for context, _ in parts]
    options = AttentionOptions(
        scale=draw(st.sampled_from([size**-0.5, 0.3])),
        window=draw(st.none() | st.integers(1, 30)),
        softcap=draw(st.none() | st.just(2.0)),
        sinks=draw(st.none() | st.just(torch.linspace(-1, 1, heads))),
    )
    return {
        "heads": heads,
        "kv_heads": kv_heads,
        "sizes": (size, draw(st.sampled_from([size, 24]))),
        "parts": parts,
        "block_size": draw(st.sampled_from([1, 4, 16])),
        "options": options,
        "seed": draw(st.integers(0, 99)),
    }


def lay_out(parts, block_size, generator):
    """Random blocks for each sequence, block 0 for none; and the slot of each new token."""
    widths = [-(-(context + count) // block_size) for context, count in parts]
    order = (torch.randperm(sum(widths) + 3, generator=generator) + 1).tolist()
    tables, slots = [], []
    for width, (context, count) in zip(widths, parts, strict=True):
        table, order = order[:width], order[width:]
        tables.append(table)
        slots += [
            table[p // block_size] * block_size + p % block_size
            for p in range(context, context + count)
        ]
    layout = BatchLayout(
        [count for _, count in parts],
        [context + count for context, count in parts],
        tables,
        torch.tensor(slots),
        block_size,
    )
    return layout, sum(widths) + 4


@settings(max_examples=150, deadline=None)
@given(cases())
def test_attends_as_the_definition_says(case):
    generator = torch.Generator().manual_seed(case["seed"])
    key_size, value_size = case["sizes"]
    kv_heads, block_size, parts = case["kv_heads"], case["block_size"], case["parts"]
    layout, num_blocks = lay_out(parts, block_size, generator)

    def random(*shape):
        return torch.randn(*shape, generator=generator)

    cache = LayerCache(
        torch.zeros(num_blocks, block_size, kv_heads, key_size),
        torch.zeros(num_blocks, block_size, kv_heads, value_size),
    )
    queries, new_keys, new_values, expected = [], [], [], []
    for (context, count), table in zip(parts, layout.block_ids, strict=True):
        keys = random(context + count, kv_heads, key_size)
        values = random(context + count, kv_heads, value_size)
        for position in range(context):
            block, offset = table[position // block_size], position % block_size
            cache.keys[block, offset] = keys[position]
            cache.values[block, offset] = values[position]
        query = random(count, case["heads"], key_size)
        queries.append(query)
        new_keys.append(keys[context:])
        new_values.append(values[context:])
        expected.append(reference(query, keys, values, context, case["options"]))
    backend = SdpaBackend()
    output = backend.attend(
        backend.build(layout),
        cache,
        *(torch.cat(part).transpose(0, 1)[None] for part in (queries, new_keys, new_values)),
        case["options"],
    )
    torch.testing.assert_close(output[0].double(), torch.cat(expected), rtol=1e-4, atol=1e-5)
    assert torch.equal(cache.keys.flatten(0, 1)[layout.slots], torch.cat(new_keys))
    assert torch.equal(cache.values.flatten(0, 1)[layout.slots], torch.cat(new_values))


@pytest.mark.parametrize("window", [None, 5])
def test_layers_share_what_was_built_once(window):
    """The masks that the first layer makes serve the second."""
    layout, num_blocks = lay_out([(7, 1), (2, 1), (0, 3)], 4, torch.Generator().manual_seed(0))
    backend = SdpaBackend()
    metadata = backend.build(layout)
    options = AttentionOptions(scale=1 / math.sqrt(8), window=window)
    torch.manual_seed(0)
    tensors = [torch.randn(1, 2, 5, 8) for _ in range(3)]
    outputs = []
    for _ in range(2):
        cache = LayerCache(*(torch.ones(num_blocks, 4, 2, 8) for _ in range(2)))
        outputs.append(backend.attend(metadata, cache, *tensors, options))
    assert torch.equal(outputs[0], outputs[1])
