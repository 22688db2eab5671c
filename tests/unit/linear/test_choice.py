"""Which backend computes a layer, and what is said of it."""

import pytest
import torch
from torch import nn

from folovllm.errors import ConfigError
from folovllm.linear import choice
from folovllm.linear.protocol import LinearNeeds

NEEDS = LinearNeeds(torch.device("cpu"), torch.float32)


class Backend:
    def __init__(self, name, why):
        self.name, self.why = name, why

    def refusal(self, name, layer, needs):
        assert (name, needs) == ("model.x", NEEDS)
        return self.why


def choose(monkeypatch, asked, **reasons):
    monkeypatch.setattr(choice, "BACKENDS", tuple(Backend(*item) for item in reasons.items()))
    return choice.choose("model.x", nn.Linear(1, 1), NEEDS, asked)


@pytest.mark.parametrize(
    ("reasons", "asked", "name", "why"),
    [
        ({"onednn": None, "plain": None}, None, "onednn", "the first choice"),
        ({"onednn": "needs x", "plain": None}, None, "plain", "onednn needs x"),
        ({"a": "no", "b": "n", "plain": None}, None, "plain", "a no; b n"),
        ({"onednn": None, "plain": None}, "plain", "plain", "asked for"),
    ],
)
def test_the_first_that_serves_and_why(monkeypatch, reasons, asked, name, why):
    backend, reason = choose(monkeypatch, asked, **reasons)
    assert (backend.name, reason) == (name, why)


def test_an_impossible_one_names_what_would_work(monkeypatch):
    message = "linear_backend: onednn needs a CPU; plain can compute model.x"
    with pytest.raises(ConfigError, match=f"^{message}$"):
        choose(monkeypatch, "onednn", onednn="needs a CPU", plain=None)
