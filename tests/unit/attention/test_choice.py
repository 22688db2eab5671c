"""Which backend is chosen, and what is said of it."""

import pytest
import torch

from folovllm.attention import choice
from folovllm.attention.backend import AttentionNeeds
from folovllm.attention.choice import BACKENDS, find_backend
from folovllm.errors import ConfigError

NEEDS = AttentionNeeds(torch.device("cpu"), torch.float32, (), None)


class Backend:
    def __init__(self, name, why=None):
        self.name, self.why = name, why

    def refusal(self, needs):
        assert needs is NEEDS
        return self.why


@pytest.fixture
def backends(monkeypatch):
    """A function that says which backends there are, and why they refuse."""

    def set_backends(**reasons):
        chosen = tuple(Backend(*item) for item in reasons.items())
        monkeypatch.setattr(choice, "BACKENDS", chosen)

    return set_backends


def test_order():
    names = [backend.name for backend in BACKENDS]
    assert names[0] == "flash"
    assert names[-1] == "sdpa"  # which refuses nothing


@pytest.mark.parametrize(
    ("reasons", "asked", "name", "why"),
    [
        ({"flash": None, "sdpa": None}, None, "flash", "the first choice"),
        ({"flash": "needs x", "sdpa": None}, None, "sdpa", "flash needs x"),
        ({"flash": "no", "triton": "n", "sdpa": None}, None, "sdpa", "flash no; triton n"),
        ({"flash": "no", "triton": None, "sdpa": None}, None, "triton", "flash no"),
        ({"flash": None, "triton": "no", "sdpa": None}, None, "flash", "the first choice"),
        ({"flash": None, "sdpa": None}, "sdpa", "sdpa", "asked for"),
    ],
)
def test_the_first_that_serves_and_why(backends, reasons, asked, name, why):
    backends(**reasons)
    backend, reason = find_backend(NEEDS, asked)
    assert (backend.name, reason) == (name, why)


def test_an_impossible_one_names_what_would_work(backends):
    backends(flash="needs a CUDA device", triton=None, sdpa=None)
    with pytest.raises(ConfigError) as caught:
        find_backend(NEEDS, "flash")
    expected = "attention_backend: flash needs a CUDA device; triton or sdpa can serve here"
    assert str(caught.value) == expected


def test_only_who_may_serve_is_asked(backends, monkeypatch):
    backends(flash=None, triton=None, sdpa=None)
    for backend in choice.BACKENDS:
        if backend.name != "triton":
            monkeypatch.setattr(backend, "refusal", lambda needs: pytest.fail("was asked"))
    assert find_backend(NEEDS, "triton")[0].name == "triton"


def test_flash_on_a_cpu():
    with pytest.raises(ConfigError, match=r"flash needs a CUDA device; .*sdpa can serve here$"):
        find_backend(NEEDS, "flash")
