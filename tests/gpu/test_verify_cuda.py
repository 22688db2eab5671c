"""The judge on a real GPU."""

import json
import os
import subprocess
import sys

import pytest
import torch

from folovllm.attention.choice import BACKENDS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

CHECKS = {
    *("GPU", "visible", "driver", "device files", "torch", "driver for torch", "devices"),
    *("architecture", "CUDA versions", "host", "allocation", "product float32", "product float16"),
    *(f"attention {backend.name}" for backend in BACKENDS),
    *("matrix rate", "memory bandwidth", "host to device", "device to host", "CUDA graph"),
    *("Triton", "NCCL"),
}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """What `folovllm verify-cuda` writes and how it ends, in a process of its own."""
    path = tmp_path_factory.mktemp("verify") / "report.json"
    command = [sys.executable, "-m", "folovllm", "verify-cuda", "--json", str(path)]
    # Such a machine may have the source folder alone, which pytest tells this process of.
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=env)
    assert done.returncode in (0, 2), done.stdout + done.stderr
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["exit_code"] == done.returncode
    return found


def test_every_check_is_there(report):
    assert {check["name"] for check in report["checks"]} >= CHECKS


def test_nothing_failed(report):
    bad = [c for c in report["checks"] if c["status"] not in ("ok", "degraded", "skipped")]
    assert bad == []


def test_what_is_degraded_says_what_to_do(report):
    for check in report["checks"]:
        assert check["status"] != "degraded" or check["advice"]


def test_figures(report):
    figures = {check["name"]: check.get("figures", {}) for check in report["checks"]}
    assert figures["matrix rate"]["TFLOP_per_s"] > 1
    assert figures["memory bandwidth"]["GB_per_s"] > 10
    assert figures["host to device"]["GB_per_s"] > 0.5
    assert figures["device to host"]["GB_per_s"] > 0.5


def test_nothing_is_kept():
    from folovllm.diagnostics.cuda_device import allocation, graph, release

    device = torch.device("cuda", 0)
    before = torch.cuda.memory_reserved(device)
    allocation(device)
    graph(device)
    release(device)
    assert torch.cuda.memory_reserved(device) <= before
