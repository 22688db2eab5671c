"""What is learned from one run of a model."""

import torch
from torch import nn

from folovllm.models.trial import explain, watch_weights


class Gate(nn.Module):
    def __init__(self):
        super().__init__()
        self.wg = nn.Linear(4, 4)
        self.other = nn.Linear(4, 4)

    def forward(self, x):
        return self.other(x) @ self.wg.weight.T


def test_layers_whose_weight_is_read():
    model = nn.Sequential(Gate(), nn.Linear(4, 4), Gate())
    x = torch.randn(2, 4)
    expected = model[0](x)
    with watch_weights(model) as found:
        torch.testing.assert_close(model[0](x), expected)
        model[1](x)
    # The second gate was not run; it is of the same kind.
    assert found == {model[0].wg, model[2].wg}
    assert all(type(layer) is nn.Linear for layer in found)
    assert not any("read" in vars(module) for module in model.modules())


def test_an_error_is_told_with_its_place():
    def fail():
        raise ValueError("first line\nsecond")

    try:
        fail()
    except ValueError as error:
        said = explain(error)
    assert said.startswith("ValueError: first line (test_trial.py, line ")
    assert said.endswith(", in fail)")
