"""The whole verification, with the CPU in the device's place."""

import pytest
import torch

from folovllm.attention.sdpa import SdpaBackend
from folovllm.diagnostics import cuda_device, cuda_speed
from folovllm.diagnostics.checks import Check, Finding, run_steps
from folovllm.diagnostics.cuda import CudaVerification, device_steps, exit_code
from folovllm.diagnostics.limits import DeviceLimits

CPU = torch.device("cpu")
NAMES = [
    *("allocation", "product float32", "product bfloat16", "product float16"),
    "attention sdpa",
    *("matrix rate", "memory bandwidth", "host to device", "device to host"),
    *("CUDA graph", "Triton", "NCCL"),
]


@pytest.mark.parametrize(
    ("statuses", "code"),
    [
        (("ok", "skipped"), 0),
        (("ok", "failed", "degraded"), 1),
        (("ok", "degraded"), 2),
        (("absent", "skipped", "failed"), 3),
    ],
)
def test_exit_code(statuses, code):
    assert exit_code(Check("name", status, "", 0) for status in statuses) == code


@pytest.fixture
def played(monkeypatch):
    """What a CPU lacks, and what takes long; the memory that is asked for is given back."""
    monkeypatch.setattr("folovllm.attention.choice.BACKENDS", (SdpaBackend(),))
    monkeypatch.setattr(cuda_device, "available_memory", lambda: 8 << 20)
    monkeypatch.setattr(cuda_speed, "measure_limits", lambda *_: DeviceLimits(4000e9, 700e12))
    monkeypatch.setattr(cuda_speed, "COPIED", 1 << 16)
    monkeypatch.setattr(cuda_device, "graph", lambda device: Finding("replayed"))
    monkeypatch.setattr(cuda_device, "triton", lambda device: Finding("compiled"))
    released = []
    monkeypatch.setattr(cuda_device, "release", released.append)
    return released


def do(known, **options):
    """Every check of a device that is well by its facts."""
    needed = [Check(name, "ok", "", 0) for name in ("devices", "architecture")]
    return list(run_steps(device_steps([CPU], known), needed, **options))


def test_each_check_of_a_device(played, device):
    done = do([device(name="unknown")])
    assert [check.name for check in done] == NAMES
    assert {check.name: check.status for check in done if check.status != "ok"} == {
        "NCCL": "skipped"
    }
    assert played == [CPU] * len(NAMES)  # nothing of the device's memory is kept
    assert exit_code(done) == 0


def test_a_device_without_bfloat16(played, device):
    names = [check.name for check in do([device(capability=(7, 5))])]
    assert "product float16" in names
    assert "product bfloat16" not in names


def test_out_of_memory(played, device, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")

    monkeypatch.setattr(torch, "full", full)
    first, *rest = do([device()], advise=cuda_device.advice_for)
    assert (first.name, first.status) == ("allocation", "failed")
    assert "CUDA out of memory" in first.detail
    assert "nvidia-smi" in first.advice
    assert {check.status for check in rest} == {"skipped"}
    assert exit_code([first, *rest]) == 1


def test_a_type_that_computes_wrongly_spoils_what_needs_it(played, device, monkeypatch):
    monkeypatch.setattr(cuda_device, "product", wrong_in(torch.float32, cuda_device.product))
    statuses = {check.name: check.status for check in do([device(name="unknown")])}
    assert statuses["product float32"] == "failed"
    assert statuses["product bfloat16"] == statuses["matrix rate"] == "ok"
    assert statuses["attention sdpa"] == "skipped"


def wrong_in(wrong, product):
    def check(device, dtype):
        return Finding("wrong", "failed") if dtype == wrong else product(device, dtype)

    return check


def test_a_graph_that_cannot_be_captured(played, device, monkeypatch):
    def fails(device):
        raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    monkeypatch.setattr(cuda_device, "graph", fails)
    done = {check.name: check for check in do([device()], advise=cuda_device.advice_for)}
    assert done["CUDA graph"].status == "failed"
    assert "FOLOVLLM_ENFORCE_EAGER" in done["CUDA graph"].advice
    assert done["Triton"].status == "ok"


def test_a_machine_without_a_device(played, bare):
    done = list(CudaVerification(bare()).run())
    assert done[0].status == "absent"
    assert {check.status for check in done[1:]} == {"skipped"}
    assert [check.name for check in done][-len(NAMES) :] == NAMES
    assert exit_code(done) == 3


def test_a_machine_without_torch(bare):
    from folovllm.diagnostics.cuda_facts import Torch

    done = list(CudaVerification(bare(torch=Torch(error="ModuleNotFoundError"))).run())
    assert exit_code(done) == 3
