"""What every linear backend must do, and what oneDNN refuses."""

import pytest
import torch
from torch import nn

from folovllm.linear.choice import BACKENDS, choose
from folovllm.linear.onednn import OneDnnBackend
from folovllm.linear.plain import PlainBackend
from folovllm.linear.protocol import LinearNeeds, LinearSpec, concatenate, part_of

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
CLOSE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
LINEAR = nn.Linear(4, 4)

every_backend = pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def expected(linear, x):
    bias = None if linear.bias is None else linear.bias.double()
    return nn.functional.linear(x.double(), linear.weight.double(), bias)


def skip_where_it_refuses(backend, dtype):
    if why := backend.refusal("x", LINEAR, LinearNeeds(CPU, dtype)):
        pytest.skip(f"{backend.name} {why}")


@every_backend
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [(1,), (1, 7), (33,)])
@torch.inference_mode()
def test_computes_what_the_layer_does(backend, dtype, bias, rows):
    skip_where_it_refuses(backend, dtype)
    linear = nn.Linear(24, 40, bias=bias, dtype=dtype)
    x = torch.randn(*rows, 24, dtype=dtype)
    result = backend.load(*part_of(linear))(x)
    assert result.dtype == dtype
    close = CLOSE[dtype]
    torch.testing.assert_close(result.double(), expected(linear, x), rtol=close, atol=close)


@every_backend
@pytest.mark.parametrize("bias", [True, False])
@torch.inference_mode()
def test_merges_layers_of_one_input(backend, bias):
    skip_where_it_refuses(backend, torch.float32)
    linears = [nn.Linear(24, size, bias=bias) for size in (40, 8, 16)]
    x = torch.randn(5, 24)
    merged = backend.merge([part_of(linear) for linear in linears])
    right = torch.cat([linear(x) for linear in linears], -1)
    torch.testing.assert_close(merged(x), right, rtol=1e-5, atol=1e-5)


@every_backend
@pytest.mark.parametrize(
    "other",
    [nn.Linear(25, 8), nn.Linear(24, 8, bias=False), nn.Linear(24, 8, dtype=torch.float16)],
    ids=str,
)
def test_says_what_it_cannot_merge(backend, other):
    assert backend.merge([part_of(nn.Linear(24, 8)), part_of(other)]) is None


def test_a_layers_part():
    linear = nn.Linear(3, 5)
    spec, tensors = part_of(linear)
    assert spec == LinearSpec(in_features=3, out_features=5)
    assert tensors.keys() == {"weight", "bias"}
    assert part_of(nn.Linear(3, 5, bias=False)).tensors.keys() == {"weight"}
    joined = concatenate([part_of(linear), part_of(nn.Linear(3, 4))])
    assert joined.spec == LinearSpec(3, 9)
    assert joined.tensors["weight"].shape == (9, 3)
    assert joined.tensors["bias"].shape == (9,)


def test_plain_copies_nothing():
    linear = nn.Linear(3, 5)
    loaded = PlainBackend().load(*part_of(linear))
    assert type(loaded) is nn.Linear
    assert loaded.weight.data_ptr() == linear.weight.data_ptr()


def test_the_packed_weight_takes_the_plain_ones_place():
    packed = OneDnnBackend().load(*part_of(nn.Linear(64, 64, bias=False)))
    assert list(packed.parameters()) == []


def test_what_onednn_refuses(monkeypatch):
    def refusal(device, dtype):
        return OneDnnBackend().refusal("x", LINEAR, LinearNeeds(torch.device(device), dtype))

    assert refusal("cpu", torch.float32) is None
    assert refusal("cuda", torch.float32) == "computes on CPUs, not on cuda"
    assert refusal("cpu", torch.float64) == "does not compute in float64 on this CPU"
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert refusal("cpu", torch.float32) == "is not part of this torch"


def test_something_serves_everywhere():
    for device in (CPU, torch.device("meta")):
        for dtype in [*DTYPES, torch.float64]:
            choose("x", LINEAR, LinearNeeds(device, dtype), None)
