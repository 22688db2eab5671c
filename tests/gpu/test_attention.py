"""The attention backends on a device, held against the same reference as on a CPU."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings

from folovllm.attention.backend import AttentionOptions, LayerCache
from folovllm.attention.sdpa import SdpaBackend
from folovllm.attention.triton import TritonBackend
from tests.unit.attention.reference import Case, cases, check, make_batch

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

    device = torch.device("cuda")

    def lay_out(lengths):
        tables = [list(range(1 + 16 * i, 17 + 16 * i)) for i in range(len(lengths))]
        return make_batch([(length - 1, 1) for length in lengths], tables, 16)

    def place(lengths):
        arrays = capture.arrays(lay_out(lengths))
        for tensor, array in zip(received, arrays, strict=True):
            tensor.flatten()[: array.size].copy_(torch.from_numpy(array).flatten())
        table = received[-1].flatten()[: arrays[-1].size].view(arrays[-1].shape)
        capture.load([*received[:-1], table])

    cache = LayerCache(random(65, 16, 8, 128), random(65, 16, 8, 128))
    inputs = random(1, 16, 4, 128), random(1, 8, 4, 128), random(1, 8, 4, 128)
    capture = backend.capture(4, 16, 256, device)
    received = [torch.from_numpy(a).to(device) for a in capture.arrays(lay_out([256] * 4))]
    place([1, 1, 1, 1])
    static = capture.metadata(received)
    backend.attend(static, cache, *inputs, options)  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = backend.attend(static, cache, *inputs, options)
    for lengths in ([5, 200, 16, 17], [256, 1, 1, 100]):
        expected = other.attend(
            other.build(lay_out(lengths), device),
            LayerCache(*map(torch.clone, cache)),
            *inputs,
            options,
        )
        place(lengths)
        graph.replay()
        torch.testing.assert_close(output, expected, rtol=2e-2, atol=2e-2)
