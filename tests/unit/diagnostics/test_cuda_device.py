"""What the checks of a device find, with the CPU in the device's place."""

import importlib
import subprocess
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from folovllm.attention.sdpa import SdpaBackend
from folovllm.diagnostics import cuda_device, cuda_speed, nccl_probe
from folovllm.diagnostics.attention_check import TOLERANCES, largest
from folovllm.diagnostics.checks import CheckError, Finding
from folovllm.diagnostics.cuda_device import (
    advice_for,
    all_reduce,
    allocation,
    attention,
    graph,
    half_type,
    is_spoilt,
    on_each,
    product,
    triton,
)
from folovllm.diagnostics.cuda_speed import Speeds, copy_bandwidth
from folovllm.diagnostics.datasheets import datasheet_of
from folovllm.diagnostics.limits import DeviceLimits

CPU = torch.device("cpu")
TYPES = list(TOLERANCES)
GIB = 1 << 30


def test_half_type():
    assert half_type((7, 5)) == torch.float16
    assert half_type((8, 0)) == torch.bfloat16


# Memory


@pytest.fixture
def little_memory(monkeypatch):
    monkeypatch.setattr(cuda_device, "available_memory", lambda: 8 << 20)


def test_allocation(little_memory):
    found = allocation(CPU)
    assert found.status == "ok"
    assert found.figures["free_bytes"] == 8 << 20


def test_others_use_the_memory(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (8 << 20, 80 * GIB))
    numbers = torch.full((1 << 19,), 7, dtype=torch.int64)
    monkeypatch.setattr(torch, "full", lambda *arguments, **options: numbers)
    found = allocation(torch.device("cuda"))
    assert (found.status, found.detail) == ("degraded", "0.0 of 80.0 GiB free")
    assert "nvidia-smi" in found.advice


def test_memory_that_forgets(little_memory, monkeypatch):
    monkeypatch.setattr(
        torch, "full", lambda *shape, **k: torch.ones(*shape[:1], dtype=torch.int64)
    )
    with pytest.raises(CheckError, match="does not give back"):
        allocation(CPU)


# Products


@pytest.mark.parametrize("dtype", TYPES)
def test_product(dtype):
    found = product(CPU, dtype)
    (share,) = found.figures.values()
    assert 0 < share < 0.5


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("wrong", [1.2, float("nan")])
def test_a_product_that_is_wrong_in_one_place(dtype, wrong, monkeypatch):
    matmul = torch.Tensor.__matmul__

    def wrong_once(a, b):
        result = matmul(a, b)
        if a.dtype == dtype:
            result[200, 17] = result[200, 17] + 20 * (wrong - 1)
        return result

    monkeypatch.setattr(torch.Tensor, "__matmul__", wrong_once)
    with pytest.raises(CheckError, match="is wrong") as raised:
        product(CPU, dtype)
    assert raised.value.advice


def test_a_product_in_a_coarser_type(monkeypatch):
    """What TensorFloat-32 computes is no float32, unless the user allows it."""
    matmul = torch.Tensor.__matmul__

    def coarse(a, b):
        if a.dtype != torch.float32:
            return matmul(a, b)
        return matmul(*(x.view(torch.int32).bitwise_and(~0x1FFF).view(x.dtype) for x in (a, b)))

    monkeypatch.setattr(torch.Tensor, "__matmul__", coarse)
    with pytest.raises(CheckError):
        product(CPU, torch.float32)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert product(CPU, torch.float32).status == "ok"


# Attention


def test_attention():
    found = attention(SdpaBackend(), CPU, TYPES)
    assert found.status == "ok"
    assert set(found.figures) == {"float32_error", "float16_error", "bfloat16_error"}


class WrongBackend(SdpaBackend):
    """Attends wrongly in one way."""

    def __init__(self, how):
        self.name, self.how = how, how

    def attend(self, metadata, cache, query, key, value, options):
        if self.how == "forgets to write":
            key = torch.zeros_like(key)
        if self.how == "ignores the window":
            options = type(options)(options.scale, None, options.softcap)
        if self.how == "ignores the cap":
            options = type(options)(options.scale, options.window)
        output = super().attend(metadata, cache, query, key, value, options)
        if self.how == "mixes heads":
            output = output.roll(1, dims=2)
        if self.how == "is no number":
            output[0, -1, 0, 0] = torch.nan
        return output


@pytest.mark.parametrize(
    "how",
    ["forgets to write", "ignores the window", "ignores the cap", "mixes heads", "is no number"],
)
@pytest.mark.parametrize("dtype", TYPES)
def test_attention_that_is_wrong(how, dtype):
    with pytest.raises(CheckError, match=how) as raised:
        attention(WrongBackend(how), CPU, [dtype])
    assert "FOLOVLLM_ATTENTION_BACKEND" in raised.value.advice


class PickyBackend(WrongBackend):
    """Serves float32 alone, without a window, which it would not honour."""

    def refusal(self, needs):
        if needs.dtype != torch.float32:
            return "serves float32 alone"
        return "serves no window" if needs.layers[0].options.window else None


def test_attention_of_what_a_backend_serves():
    found = attention(PickyBackend("ignores the window"), CPU, TYPES)
    assert list(found.figures) == ["float32_error"]


def test_a_backend_that_does_not_serve_here():
    found = attention(PickyBackend("picky"), CPU, [torch.float16])
    assert (found.status, found.detail) == ("skipped", "picky serves float32 alone")


def test_largest():
    nan = float("nan")
    assert largest([1.0, 3.0, 2.0]) == 3
    assert str(largest([1.0, nan, 2.0])) == "nan"


# Speed


@pytest.fixture
def speeds(monkeypatch):
    """An H200 that reaches a share of its datasheet."""

    def make(share, name="NVIDIA H200"):
        limits = DeviceLimits(4800e9 * share, 989e12 * share)
        monkeypatch.setattr(cuda_speed, "measure_limits", lambda device, dtype: limits)
        monkeypatch.setattr(cuda_speed, "copy_bandwidth", lambda device, to_device: 63e9 * share)
        return Speeds(CPU, torch.bfloat16, name)

    return make


CHECKS = ("bandwidth", "rate", "to_device", "to_host")


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize(("share", "status"), [(0.8, "ok"), (0.3, "degraded")])
def test_share_of_the_datasheet(check, share, status, speeds):
    found = getattr(speeds(share), check)()
    assert found.status == status
    assert f"{share:.0%} of the datasheet's" in found.detail
    assert found.figures["share_of_datasheet"] == pytest.approx(share)
    assert bool(found.advice) == (status == "degraded")


@pytest.mark.parametrize("check", CHECKS)
def test_a_gpu_without_a_datasheet(check, speeds):
    found = getattr(speeds(0.01, "NVIDIA H300"), check)()
    assert found.status == "ok"
    assert "share_of_datasheet" not in found.figures


@pytest.mark.parametrize(
    "name", ["NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA A100-SXM4-40GB MIG 1g.5gb", ""]
)
def test_parts_and_relatives_have_datasheets_of_their_own(name):
    assert datasheet_of(name) is None
    assert datasheet_of("NVIDIA GeForce RTX 4090").bandwidth == 1008


@pytest.mark.parametrize("to_device", [True, False])
def test_copy_bandwidth(to_device, monkeypatch):
    monkeypatch.setattr(cuda_speed, "COPIED", 1 << 16)
    assert copy_bandwidth(CPU, to_device=to_device) > 0


# Graphs


class PlayedGraph:
    """Remembers the product that was computed last, and does it again unless it is broken."""

    broken = False
    last = None

    def replay(self):
        if not self.broken:
            a, b, result = self.last
            torch.matmul(a, b, out=result)


@pytest.fixture
def played_graphs(monkeypatch):
    matmul = torch.Tensor.__matmul__

    def remembered(a, b):
        PlayedGraph.last = (a, b, matmul(a, b))
        return PlayedGraph.last[2]

    stream = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.Tensor, "__matmul__", remembered)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", PlayedGraph)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    for name in ("Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda: stream)
    for name in ("device", "stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, lambda _: nullcontext())


def test_a_graph(played_graphs):
    assert graph(CPU).figures["replay_seconds"] > 0


def test_a_graph_that_replays_nothing(played_graphs, monkeypatch):
    monkeypatch.setattr(PlayedGraph, "broken", True)
    with pytest.raises(CheckError, match="computes something else") as raised:
        graph(CPU)
    assert "FOLOVLLM_ENFORCE_EAGER" in raised.value.advice


# Triton


def test_triton_by_its_interpreter(monkeypatch):
    """Which must be asked for before the kernel is made."""
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.delitem(sys.modules, "folovllm.diagnostics.triton_probe", raising=False)
    assert triton(CPU).status == "ok"
    sys.modules.pop("folovllm.diagnostics.triton_probe")  # no GPU could run this one


def test_no_triton(monkeypatch):
    monkeypatch.setattr(cuda_device, "find_spec", lambda name: None)
    found = triton(CPU)
    assert found.status == "degraded"
    assert "pip install triton" in found.advice


def test_a_kernel_that_computes_wrongly(monkeypatch):
    pytest.importorskip("triton")
    probe = importlib.import_module("folovllm.diagnostics.triton_probe")
    monkeypatch.setattr(probe, "scale_and_add", lambda x, y, factor: x + y)
    with pytest.raises(CheckError, match="wrongly"):
        triton(CPU)


# NCCL


def played(returncode, stdout="", stderr=""):
    return lambda command, **options: subprocess.CompletedProcess(
        command, returncode, stdout, stderr
    )


def summing(tensors):
    total = sum(tensors[1:], start=tensors[0].clone())
    for tensor in tensors:
        tensor.copy_(total)


def test_sums_over_devices(monkeypatch):
    monkeypatch.setattr(nccl_probe, "NUMBERS", 100)
    assert nccl_probe.measure([CPU] * 3, summing) > 0


def test_a_wrong_sum(monkeypatch):
    monkeypatch.setattr(nccl_probe, "NUMBERS", 100)
    with pytest.raises(ValueError, match="cpu has a wrong sum"):
        nccl_probe.measure([CPU] * 3, lambda tensors: summing(tensors[:2]))


def test_one_device_needs_no_nccl():
    assert all_reduce(1).status == "skipped"


def test_nccl(monkeypatch):
    monkeypatch.setattr(subprocess, "run", played(0, "a line of NCCL's\n4.5e11\n"))
    assert all_reduce(8).figures == {"GB_per_s": 450}


def test_nccl_fails(monkeypatch):
    monkeypatch.setattr(subprocess, "run", played(1, stderr="cuda:1 has a wrong sum"))
    with pytest.raises(CheckError, match="cuda:1 has a wrong sum") as raised:
        all_reduce(2)
    assert "NCCL_P2P_DISABLE" in raised.value.advice


def test_nccl_hangs(monkeypatch):
    def hang(command, **options):
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(subprocess, "run", hang)
    with pytest.raises(CheckError, match="hung"):
        all_reduce(2)


# Several devices, and errors


def test_on_each_device():
    devices = [torch.device("cuda", i) for i in range(3)]
    found = on_each(devices, lambda d: Finding(f"{d.index}", "ok" if d.index else "degraded", "do"))
    assert (found.status, found.advice) == ("degraded", "do")
    assert found.detail == "cuda:0: 0; cuda:1: 1; cuda:2: 2"
    assert on_each(devices[:1], lambda d: Finding("fine")).detail == "fine"


def test_one_of_the_devices_fails():
    def check(device):
        if device.index == 1:
            raise CheckError("wrong", "mend it")
        return Finding("fine")

    with pytest.raises(CheckError, match="cuda:1: wrong") as raised:
        on_each([torch.device("cuda", i) for i in range(2)], check)
    assert raised.value.advice == "mend it"


@pytest.mark.parametrize(
    ("error", "part"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB."), "nvidia-smi"),
        (RuntimeError("Failed to find C compiler. Please specify via CC"), "apt install gcc"),
        (RuntimeError("main.c:5:10: fatal error: Python.h: No such file"), "python3-dev"),
        (
            subprocess.CalledProcessError(1, ["/usr/bin/gcc", "main.c"]),
            "apt install gcc python3-dev",
        ),
        (PermissionError(13, "Permission denied"), "TRITON_CACHE_DIR"),
        (RuntimeError("CUDA error: no kernel image is available for execution"), "architecture"),
        (RuntimeError("CUDA error: operation not permitted when stream is capturing"), "EAGER"),
        (RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable"), "COMPUTE"),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), "xid"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED"), "LD_LIBRARY_PATH"),
    ],
)
def test_advice(error, part):
    assert part in advice_for(error)


def test_no_advice_is_made_up():
    assert advice_for(ValueError("something else")) == ""


def test_a_spoilt_device(monkeypatch):
    assert not is_spoilt(CPU)

    def fail(device):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", fail)
    assert is_spoilt(torch.device("cuda"))
