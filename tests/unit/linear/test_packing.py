"""A model's linear layers in the hands of backends."""

import weakref

import pytest
import torch
from torch import nn

from folovllm.errors import ConfigError
from folovllm.linear.onednn import PackedLinear
from folovllm.linear.packing import LinearPacker

CPU = torch.device("cpu")


class Special(nn.Linear):
    """Computes something else."""


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 8), nn.ReLU(), nn.Sequential(Special(8, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    )


@torch.inference_mode()
def test_every_linear_layer_is_replaced_and_no_other(caplog):
    caplog.set_level("INFO", "folovllm")
    model, x = make_model(), torch.randn(3, 4)
    expected = model(x)
    packer = LinearPacker(CPU)
    packer.pack(model)
    assert type(model[2][0]) is Special
    assert not any(type(module) is nn.Linear for module in model.modules())
    torch.testing.assert_close(model(x), expected)
    assert packer.counts == {"onednn": 3}
    assert caplog.messages == ["3 linear layers are computed by onednn (the first choice)"]


@torch.inference_mode()
def test_what_the_models_code_reads_stays_as_it_is(caplog):
    caplog.set_level("INFO", "folovllm")
    model = make_model()
    gate = model[2][1]
    packer = LinearPacker(CPU, untouched={gate})
    packer.pack(model)
    assert model[2][1] is gate
    assert packer.counts == {"onednn": 2, "plain": 1}
    assert "1 linear layers are computed by plain (the model's own code reads" in caplog.text
    assert packer.merge([("a", gate), ("b", nn.Linear(8, 8))]) is None


def test_each_layer_by_its_own_type():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4, dtype=torch.float64))
    packer = LinearPacker(CPU)
    packer.pack(model)
    assert packer.counts == {"onednn": 1, "plain": 1}
    assert isinstance(model[0], PackedLinear)


def test_the_one_that_was_asked_for():
    model = make_model()
    packer = LinearPacker(CPU, "plain")
    packer.pack(model)
    assert packer.counts == {"plain": 3}
    with pytest.raises(ConfigError, match=r"onednn .*float64.*; plain can compute 0$"):
        LinearPacker(CPU, "onednn").pack(make_model().double())


@pytest.mark.parametrize("asked", [None, "plain"])
@torch.inference_mode()
def test_merged_layers_are_counted_once_and_not_packed_again(asked):
    linears = [nn.Linear(4, size) for size in (8, 2)]
    x = torch.randn(3, 4)
    expected = torch.cat([linear(x) for linear in linears], -1)
    packer = LinearPacker(CPU, asked)
    merged = packer.merge([("a", linears[0]), ("b", linears[1])])
    torch.testing.assert_close(merged(x), expected)
    model = nn.Sequential(merged)
    packer.pack(model)
    assert model[0] is merged
    assert sum(packer.counts.values()) == 2


def test_what_cannot_be_merged():
    packer = LinearPacker(CPU)
    for other in (None, nn.ReLU(), Special(4, 8), nn.Linear(5, 8), nn.Linear(4, 8).double()):
        assert packer.merge([("a", nn.Linear(4, 8)), ("b", other)]) is None
    assert packer.counts == {}


def test_no_weight_is_there_twice_for_long(monkeypatch):
    model = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4)) for _ in range(33)))
    first = weakref.ref(model[0][0])
    alive = []
    monkeypatch.setattr(
        "folovllm.linear.packing.give_back_freed_memory", lambda: alive.append(first())
    )
    LinearPacker(CPU).pack(model)
    assert alive == [None]
