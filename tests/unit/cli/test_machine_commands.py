"""`folovllm verify-cuda` and `folovllm env`, in this process and with played machines."""

import json
import logging

import pytest

from folovllm.cli.main import main
from folovllm.diagnostics import cpu, cuda_readers
from folovllm.diagnostics.cuda_facts import CudaFacts, Library, PciGpu, Torch
from folovllm.diagnostics.limits import DeviceLimits

NOTHING = Library(missing="libcuda.so.1: cannot open shared object file")
BARE = CudaFacts(library=NOTHING, torch=Torch("2.13.0+cpu"))


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """An empty working directory, and the package's logger as it was."""
    monkeypatch.chdir(tmp_path)
    logger = logging.getLogger("folovllm")
    before = logger.handlers, logger.level, logger.propagate
    yield
    logger.handlers, logger.propagate = before[0], before[2]
    logger.setLevel(before[1])


@pytest.fixture
def machine(monkeypatch):
    """Let a machine be as some facts say."""

    def play(facts):
        monkeypatch.setattr(cuda_readers, "gather_facts", lambda: facts)

    return play


def test_verify_cuda_without_a_gpu(machine, capsys, tmp_path):
    machine(BARE)
    path = tmp_path / "report.json"
    assert main(["verify-cuda", "--json", str(path)]) == 3
    first, *lines, last = capsys.readouterr().out.splitlines()
    assert first.startswith(
        "No CUDA device here: this machine has no NVIDIA GPU, and no NVIDIA driver. What to do: "
    )
    assert lines[0].startswith("absent   GPU")
    assert len(lines) == 2  # and all that is skipped
    assert last == "there is no CUDA device here"

    report = json.loads(path.read_text(encoding="utf-8"))
    assert list(report) == ["schema", "exit_code", "verdict", "headline", "machine", "checks"]
    assert (report["schema"], report["exit_code"], report["headline"]) == (1, 3, first)
    assert report["machine"]["cpu"]["allowed_cores"] >= 1
    names = [check["name"] for check in report["checks"]]
    assert {"GPU", "driver", "torch", "allocation", "CUDA graph", "NCCL"} <= set(names)
    assert len(set(names)) == len(names)


def test_verify_cuda_of_a_broken_machine(machine, capsys):
    machine(
        CudaFacts(pci=(PciGpu("0000:01:00.0", None),), library=NOTHING, torch=Torch("2.11.0+cpu"))
    )
    assert main(["verify-cuda"]) == 1
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first.startswith(
        "CUDA cannot be used here: there is an NVIDIA GPU, and no NVIDIA driver"
    )
    assert last == "CUDA does not work"


def test_env(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(cpu, "measure_limits", lambda *_: DeviceLimits(33e9, 150e9))
    monkeypatch.setattr("folovllm.machine.threads.use_allowed_cores", lambda: None)
    monkeypatch.setenv("OMP_NUM_THREADS", "9999")
    path = tmp_path / "report.json"
    assert main(["env", "--json", str(path)]) == 0
    output = capsys.readouterr().out
    assert "33 GB/s" in output
    assert "150 GFLOP/s" in output
    assert "to do: `export OMP_NUM_THREADS=" in output
    report = json.loads(path.read_text(encoding="utf-8"))
    assert list(report) == ["schema", "machine", "checks"]
    assert report["machine"]["thread_variables"]["OMP_NUM_THREADS"] == "9999"
    threads = next(check for check in report["checks"] if check["name"] == "threads")
    assert threads["status"] == "degraded"


@pytest.mark.parametrize("name", ["verify-cuda", "env"])
def test_help(name, capsys):
    with pytest.raises(SystemExit) as leaving:
        main([name, "--help"])
    assert leaving.value.code == 0
    output = capsys.readouterr().out
    assert "--json FILE" in output
    assert "--block-size" not in output  # nothing is loaded


@pytest.mark.parametrize("name", ["verify-cuda", "env"])
def test_a_report_that_cannot_be_written(name, capsys, tmp_path):
    assert main([name, "--json", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert "--json" in captured.err
    assert captured.out == ""
