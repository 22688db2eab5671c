"""`folovllm bench` and `benchmarks/` on a tiny model.

All of a load benchmark in processes of its own would take a minute, nearly all of it imports: but
for one test, samples are taken in the process of the command here.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from folovllm.bench import load, load_sample, session
from folovllm.bench.load import take_in_process
from folovllm.bench.load_sample import Task
from folovllm.bench.results import BenchError, read_run
from folovllm.cli.main import main
from folovllm.diagnostics.limits import DeviceLimits

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="needs Linux, as the benchmark says"),
    pytest.mark.usefixtures("clean_commands"),
]


@pytest.fixture
def folder(save_tiny):
    """A tiny model in bfloat16: loaded in float32, its files are not mapped when that is done."""
    return save_tiny(dtype=torch.bfloat16)


@pytest.fixture
def in_process(monkeypatch):
    """Samples without processes of their own, and a machine that need not be measured."""
    monkeypatch.setattr(load, "take_in_process", load_sample.take)
    monkeypatch.setattr(session, "measure_limits", lambda *_: DeviceLimits(1e9, 1e11))


def bench(folder, *arguments):
    return main(["bench", "load", "--model", str(folder), "--dtype", "float32", *arguments])


@pytest.mark.usefixtures("in_process")
def test_load(folder, tmp_path, capsys):
    place, page = tmp_path / "new" / "load.json", tmp_path / "load.html"
    code = bench(folder, "--rounds", "2", "--json", str(place), "--html", str(page))
    captured = capsys.readouterr()
    assert code == 0, captured.err
    run = read_run(place)
    assert not run.partial
    assert run.settings == {"dtype": "float32", "model": "model", "rounds": 2}
    ready = {(m.case, m.way): m for m in run.measurements if m.metric == "ready"}
    ways = ("folovllm", "from_pretrained", "safetensors", "read")
    cases = ("float32, warm page cache", "float32, cold page cache")
    assert set(ready) == {(case, way) for case in cases for way in ways}
    parts = ["config and tokenizer", "weights read", "weights placed", "first forward"]
    for (_, way), measured in ready.items():
        summed = [sum(part) for part in zip(*measured.parts.values(), strict=True)]
        assert measured.samples == pytest.approx(summed)
        assert min(map(min, measured.parts.values())) >= 0
        if way == "folovllm":
            assert list(measured.parts) == parts
        if way != "read":
            assert measured.limits == ready[measured.case, "read"].samples
    assert "round 2 of 2" in captured.err
    assert "float32, cold page cache" in captured.out
    assert "<svg" in page.read_text()


@pytest.mark.usefixtures("in_process")
def test_interrupted(folder, tmp_path, monkeypatch, capsys):
    tasks = []

    def take(task):
        tasks.append(task)
        if len(tasks) == 7:
            raise KeyboardInterrupt
        return load_sample.take(task)

    monkeypatch.setattr(load, "take_in_process", take)
    assert bench(folder, "--json", str(tmp_path / "load.json")) == 130
    run = read_run(tmp_path / "load.json")
    assert run.partial
    assert [m.way for m in run.measurements] == [way for way in load.MODELS for _ in (1, 2)]
    captured = capsys.readouterr()
    assert "from_pretrained" in captured.out  # what there is is shown
    assert captured.err.endswith("folovllm: interrupted\n")


def test_fresh_processes(folder):
    ours, theirs = (
        take_in_process(Task(way, "warm", "float32", str(folder)))
        for way in ("folovllm", "from_pretrained")
    )
    assert ours.answer == pytest.approx(theirs.answer, abs=1e-4)
    for sample in (ours, theirs):
        assert sample.resident_share == 1.0
        assert sample.seconds > 0
        assert 0 < sample.peak_memory < 1 << 30
        assert sample.imported < 50  # importing is not loading


def test_a_damaged_model_in_a_process(folder):
    (folder / "model.safetensors").write_bytes(b"no")
    with pytest.raises(BenchError, match=r"folovllm, float32, warm page cache: .*damaged"):
        take_in_process(Task("folovllm", "warm", "float32", str(folder)))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--rounds", "0"), 2, "bench_rounds: got '0'"),
        (("--rounds", "few"), 2, "bench_rounds: got 'few'"),
        (("--html", "/nowhere/x.html"), 2, "--html /nowhere/x.html cannot be written"),
        (("--json", "/dev/null/x.json"), 1, "results cannot be written to /dev/null/x.json"),
        (("--model", "/nowhere/model"), 1, "no model at /nowhere/model"),
    ],
)
@pytest.mark.usefixtures("in_process")
def test_bad_input(arguments, code, message, folder, monkeypatch, capsys):
    monkeypatch.setattr(load, "take_in_process", lambda _: pytest.fail("measured"))
    assert bench(folder, *arguments) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


@pytest.mark.usefixtures("in_process")
def test_rounds_by_variable(folder, monkeypatch, capsys):
    monkeypatch.setenv("FOLOVLLM_BENCH_ROUNDS", "-1")
    assert bench(folder) == 2
    assert "variable FOLOVLLM_BENCH_ROUNDS" in capsys.readouterr().err


@pytest.mark.usefixtures("in_process")
def test_a_model_without_safetensors(save_tiny, capsys):
    folder = save_tiny()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert bench(folder) == 1
    assert "has no safetensors files" in capsys.readouterr().err


PLAYED = """
from folovllm.bench import load, load_sample, session
from folovllm.diagnostics.limits import DeviceLimits
load.take_in_process = load_sample.take
session.measure_limits = lambda *_: DeviceLimits(1e9, 1e11)
"""


def run_benchmarks(folder, tmp_path, *arguments):
    """pytest over benchmarks/test_load.py in a process, whose samples are taken in it."""
    (tmp_path / "played.py").write_text(PLAYED)
    paths = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "pytest", "-p", "played", "benchmarks/test_load.py"]
    command += ["--model", str(folder), "--results", str(tmp_path / "results"), *arguments]
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_benchmarks(folder, tmp_path):
    own = tmp_path / "own.json"
    done = run_benchmarks(
        folder, tmp_path, "--dtype=float32", "--rounds=1", f"--benchmark-json={own}"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (results,) = (tmp_path / "results").iterdir()
    assert f"results: {results}" in done.stdout
    run = read_run(results)
    assert not run.partial
    content = json.loads(own.read_text())
    assert content["machine_info"]["folovllm"]["cpu"] == run.machine["cpu"]
    ready = {(m.case, m.way): m for m in run.measurements if m.metric == "ready"}
    assert len(content["benchmarks"]) == len(ready) == 8
    for benchmark in content["benchmarks"]:
        measured = ready[benchmark["group"].removeprefix("ready, "), benchmark["params"]["way"]]
        assert benchmark["stats"]["data"] == pytest.approx(measured.samples)


def test_benchmarks_complain_of_options(folder, tmp_path):
    done = run_benchmarks(folder, tmp_path, "--rounds=0")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "bench_rounds: got '0'" in done.stderr
    assert not (tmp_path / "results").exists()
