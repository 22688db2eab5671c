import pytest
import torch
from torch import nn

from folovllm.linear.backend import BACKENDS, PlainBackend, choose_backend, pack_linears
from folovllm.linear.onednn import OneDnnBackend

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [(1,), (1, 7), (33,)])
def test_computes_what_the_plain_layer_does(dtype, bias, rows):
    torch.manual_seed(0)
    linear = nn.Linear(24, 40, bias=bias, dtype=dtype)
    x = torch.randn(*rows, 24, dtype=dtype)
    packed = choose_backend(CPU, dtype).pack(linear)
    with torch.inference_mode():
        expected = nn.functional.linear(
            x.double(), linear.weight.double(), linear.bias.double() if bias else None
        )
        result = packed(x)
    assert result.dtype == dtype
    close = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
    torch.testing.assert_close(result.double(), expected, rtol=close, atol=close)


def test_something_serves_everywhere():
    for device in (CPU, torch.device("meta")):
        for dtype in [*DTYPES, torch.float64]:
            assert choose_backend(device, dtype) in BACKENDS
    assert isinstance(choose_backend(CPU, torch.float64), PlainBackend)


def test_onednn_is_for_cpus_that_have_it(monkeypatch):
    assert not OneDnnBackend().serves(torch.device("cuda"), torch.float32)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not OneDnnBackend().serves(CPU, torch.float32)
    assert isinstance(choose_backend(CPU, torch.float32), PlainBackend)


def test_every_linear_layer_is_replaced_and_no_other():
    class Special(nn.Linear):
        """Computes something else."""

    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Sequential(Special(8, 8), nn.Linear(8, 2)))
    x = torch.randn(3, 4)
    with torch.inference_mode():
        expected = model(x)
        assert pack_linears(model, OneDnnBackend()) == 2
        assert type(model[2][0]) is Special
        assert not any(type(module) is nn.Linear for module in model.modules())
        torch.testing.assert_close(model(x), expected)


def test_the_packed_weight_takes_the_plain_ones_place():
    model = nn.Sequential(nn.Linear(64, 64, bias=False))
    pack_linears(model, OneDnnBackend())
    assert list(model.parameters()) == []
