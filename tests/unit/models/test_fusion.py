import pytest
import torch
from torch import nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from folovllm.linear.packing import LinearPacker
from folovllm.models.fusion import (
    MergedProjections,
    RmsNorm,
    fuse,
    merge_projections,
    simplify_norms,
)


def merge(linears):
    return LinearPacker(torch.device("cpu"), "plain").merge(linears)


class Attention(nn.Module):
    def __init__(self, *, bias=False, sizes=(8, 4, 4), inputs=(6, 6, 6), kind=nn.Linear):
        super().__init__()
        names = ("q_proj", "k_proj", "v_proj")
        for name, size, width in zip(names, sizes, inputs, strict=True):
            setattr(self, name, kind(width, size, bias=bias))

    def forward(self, x):
        return torch.cat([self.q_proj(x), self.k_proj(x), self.v_proj(x)], -1)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("bias", [True, False])
@torch.inference_mode()
def test_merged_projections_compute_the_same(bias):
    model = Attention(bias=bias)
    x = torch.randn(1, 5, 6)
    expected = model(x)
    assert merge_projections(model, merge) == 1
    torch.testing.assert_close(model(x), expected)
    assert sum(isinstance(module, nn.Linear) for module in model.modules()) == 1


@torch.inference_mode()
def test_each_input_is_computed_once(monkeypatch):
    model = Attention()
    merge_projections(model, merge)
    calls = []
    merged = model.q_proj.merged
    merged.linear.register_forward_hook(lambda *_: calls.append(1))
    model(torch.randn(1, 5, 6))
    model(torch.randn(1, 5, 6))
    assert len(calls) == 2
    assert merged._rows is None  # nothing is kept alive


@torch.inference_mode()
def test_any_order_and_other_inputs_are_right():
    model = Attention()
    x, y = torch.randn(2, 6), torch.randn(2, 6)
    expected = {name: getattr(model, name)(x) for name in ("q_proj", "k_proj", "v_proj")}
    other = model.k_proj(y)
    merge_projections(model, merge)
    for order in (("v_proj", "q_proj", "k_proj"), ("k_proj", "v_proj", "q_proj")):
        for name in order:
            torch.testing.assert_close(getattr(model, name)(x), expected[name])
    model.q_proj(x)
    torch.testing.assert_close(model.k_proj(y), other)


@torch.inference_mode()
def test_a_tensor_that_was_written_anew_is_computed_anew():
    model = Attention()
    x, y = torch.randn(2, 6), torch.randn(2, 6)
    expected = model(y)
    merge_projections(model, merge)
    model.q_proj(x)
    x.copy_(y)
    torch.testing.assert_close(model(x), expected)


class Special(nn.Linear):
    """Computes something else."""


@pytest.mark.parametrize(
    "model",
    [Attention(inputs=(6, 6, 5)), Attention(kind=Special), nn.Sequential(nn.Linear(2, 2))],
)
def test_what_does_not_fit_together_is_left_alone(model):
    before = list(model.modules())
    assert merge_projections(model, merge) == 0
    assert list(model.modules()) == before


def test_layers_are_merged_by_their_names():
    seen = []
    model = nn.Sequential(Attention())
    assert merge_projections(model, seen.append) == 0
    names = [[name for name, _ in group] for group in seen]
    assert ["0.q_proj", "0.k_proj", "0.v_proj"] in names


@pytest.mark.parametrize("kind", [LlamaRMSNorm, GemmaRMSNorm])
@pytest.mark.parametrize("epsilon", [1e-6, 1e-2])
@torch.inference_mode()
def test_simplified_norms_compute_the_same(kind, epsilon):
    norm = kind(24, eps=epsilon)
    nn.init.normal_(norm.weight)
    model = nn.Sequential(norm)
    rows = torch.randn(3, 4, 24) * torch.tensor([1e-3, 1.0, 1e3])[:, None, None]
    expected = norm(rows)
    assert simplify_norms(model) == 1
    assert isinstance(model[0], RmsNorm)
    torch.testing.assert_close(model(rows), expected, rtol=1e-5, atol=1e-6)


@torch.inference_mode()
def test_a_row_of_zeros_has_a_norm():
    model = nn.Sequential(LlamaRMSNorm(8))
    simplify_norms(model)
    assert torch.equal(model(torch.zeros(2, 8)), torch.zeros(2, 8))


class OtherRMSNorm(LlamaRMSNorm):
    def forward(self, hidden_states):
        return super().forward(hidden_states) + 1


@pytest.mark.parametrize(
    "norm", [nn.LayerNorm(8), OtherRMSNorm(8), LlamaRMSNorm(8).bfloat16()], ids=repr
)
def test_other_norms_are_left_alone(norm):
    model = nn.Sequential(norm)
    assert simplify_norms(model) == 0
    assert model[0] is norm


def test_fuse_applies_both(caplog):
    caplog.set_level("INFO", logger="folovllm")
    model = nn.Sequential(Attention(), LlamaRMSNorm(8))
    fuse(model, merge)
    assert isinstance(model[0].q_proj.merged, MergedProjections)
    assert "merged 1 groups of projections, simplified 1 norms" in caplog.text
