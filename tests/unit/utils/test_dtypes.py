"""Which data type a model is computed in."""

import logging

import pytest
import torch

from folovllm.errors import ConfigError
from folovllm.utils.dtypes import choose_dtype

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
F16, BF16, F32 = torch.float16, torch.bfloat16, torch.float32


@pytest.fixture
def gpu(monkeypatch):
    """A function that says what the GPU is."""

    def set_gpu(name, capability):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)

    set_gpu("NVIDIA H200", (9, 0))
    return set_gpu


@pytest.mark.parametrize(
    ("asked", "own", "device", "expected"),
    [
        (None, BF16, CPU, F32),
        (None, None, CPU, F32),
        (BF16, F32, CPU, BF16),
        (None, BF16, CUDA, BF16),
        (None, F16, CUDA, F16),
        (None, F32, CUDA, F16),
        (None, None, CUDA, F16),
        (F32, BF16, CUDA, F32),
        (BF16, F16, CUDA, BF16),
    ],
)
def test_what_is_taken(gpu, asked, own, device, expected):
    assert choose_dtype(asked, own, device) == expected


@pytest.mark.parametrize(("asked", "own"), [(F16, BF16), (F32, BF16), (None, F16), (None, F32)])
def test_an_old_gpu_with_what_it_has(gpu, caplog, asked, own):
    gpu("Tesla T4", (7, 5))
    assert choose_dtype(asked, own, CUDA) == (asked or F16)
    assert not caplog.messages


def test_an_old_gpu_gets_float16_for_bfloat16(gpu, caplog):
    gpu("Tesla T4", (7, 5))
    caplog.set_level(logging.WARNING, "folovllm")
    assert choose_dtype(None, BF16, CUDA) == F16
    (message,) = caplog.messages
    assert "Tesla T4 has 7.5: float16 is taken" in message
    assert "FOLOVLLM_DTYPE=float32" in message


def test_bfloat16_that_was_asked_for_and_is_not_there(gpu):
    gpu("Tesla V100", (7, 0))
    with pytest.raises(ConfigError, match=r"^dtype: bfloat16 .* V100 has 7\.0; take float16 .*32$"):
        choose_dtype(BF16, F16, CUDA)
