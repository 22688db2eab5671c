"""The attention backends on a device, held against the same reference as on a CPU."""

from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings

from folovllm.attention.backend import AttentionOptions, BatchLayout, LayerCache
from folovllm.attention.sdpa import SdpaBackend
from folovllm.attention.triton import TritonBackend
from tests.unit.attention.reference import Case, cases, check

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

NAN = float("nan")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SIZES = (64, 80, 96, 128, 192, 256)
BOTH = pytest.mark.parametrize("backend", [TritonBackend(), SdpaBackend()], ids=["triton", "sdpa"])

shapes = cases(
    longest=900,
    groups=(1, 2, 7, 8),
    kv_heads=(1, 2, 8),
    sizes=(*((size, size) for size in SIZES), (192, 128)),
    block_sizes=(16, 48),
    dtypes=DTYPES,
)


@BOTH
@settings(max_examples=60, deadline=None)
@given(case=shapes)
def test_attends_as_the_definition_says(backend, case):
    check(backend, case, "cuda", unwritten=NAN if backend.name == "triton" else 0.0)


@BOTH
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_large_batches(backend, dtype, size):
    """Of Qwen3-0.6B's heads, long enough for every split and many tiles."""
    case = Case(((2000, 1),), 16, 8, size, size, scale=size**-0.5, dtype=dtype)
    mixed = tuple((37 * i, 1 + 97 * (i % 4)) for i in range(20))
    for parts in (case.parts, tuple((50 * i, 1) for i in range(64)), ((0, 1500),), mixed):
        check(backend, replace(case, parts=parts), "cuda")


@pytest.mark.parametrize("group", [5, 16, 24, 64])
def test_heads_that_share_a_key_head(group):
    for parts in (((700, 1), (3, 1)), ((700, 90), (0, 3))):
        case = Case(parts, group * 2, 2, 128, 128, scale=0.09, dtype=torch.bfloat16)
        check(TritonBackend(), case, "cuda", unwritten=NAN)


def test_a_captured_launch_serves_other_lengths():
    backend, other = TritonBackend(), SdpaBackend()
    options = AttentionOptions(128**-0.5)
    generator = torch.Generator("cuda").manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator, device="cuda").bfloat16()

    def lay_out(lengths):
        tables = [list(range(1 + 16 * i, 17 + 16 * i)) for i in range(len(lengths))]
        slots = [
            table[(length - 1) // 16] * 16 + (length - 1) % 16
            for table, length in zip(tables, lengths, strict=True)
        ]
        slots = torch.tensor(slots, device="cuda")
        return BatchLayout([1] * len(lengths), lengths, tables, slots, 16)

    cache = LayerCache(random(65, 16, 8, 128), random(65, 16, 8, 128))
    inputs = random(1, 16, 4, 128), random(1, 8, 4, 128), random(1, 8, 4, 128)
    static = replace(backend.build(lay_out([1, 1, 1, 1])), max_seq_len=256)
    backend.attend(static, cache, *inputs, options)  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = backend.attend(static, cache, *inputs, options)
    for lengths in ([5, 200, 16, 17], [256, 1, 1, 100]):
        layout = lay_out(lengths)
        expected = other.attend(
            other.build(layout), LayerCache(*map(torch.clone, cache)), *inputs, options
        )
        fresh = backend.build(layout)
        for field in fields(fresh):
            if isinstance(tensor := getattr(static, field.name), torch.Tensor):
                tensor.copy_(getattr(fresh, field.name))
        graph.replay()
        torch.testing.assert_close(output, expected, rtol=2e-2, atol=2e-2)
