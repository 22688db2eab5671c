import json
import sys

import pytest

from folovllm.bench import load_sample
from folovllm.bench.load_sample import PLACED, READ, Sample, Task, memory, take, weight_bytes
from folovllm.bench.results import BenchError
from folovllm.loading.checkpoint import Checkpoint, StoredTensor

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the page cache is Linux's")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(bytes(1 << 16))
    return tmp_path


def test_a_sample_lasts_as_long_as_its_parts():
    assert Sample({READ: 0.5, PLACED: 0.25}, 0, 1.0, 0).seconds == 0.75


def test_reading(folder):
    sample = take(Task("read", "warm", "float32", str(folder)))
    assert list(sample.parts) == [READ]
    assert (sample.resident_share, sample.answer) == (1.0, None)
    assert sample.peak_memory < 64 << 20  # the buffer, and not the files


def test_what_happens_before_the_clock_starts(folder, monkeypatch):
    done = []
    monkeypatch.setattr(load_sample, "set_state", lambda *_: done.append("cache") or 0.5)
    monkeypatch.setattr(load_sample, "reset_peak", lambda: done.append("peak"))

    def prepare(*_):
        done.append("imports")
        return lambda: (done.append("work") or {READ: 1.0}, lambda: done.append("answer") or -2.0)

    monkeypatch.setitem(load_sample.WAYS, "played", prepare)
    sample = take(Task("played", "cold", "float32", str(folder)))
    assert done == ["imports", "cache", "peak", "work", "answer"]
    assert (sample.seconds, sample.resident_share, sample.answer) == (1.0, 0.5, -2.0)


def test_as_a_process(folder, monkeypatch, capsys):
    task = {"way": "read", "cache": "warm", "dtype": "float32", "folder": str(folder)}
    monkeypatch.setattr(sys, "argv", ["load_sample", json.dumps(task)])
    assert load_sample.main() == 0
    sample = Sample(**json.loads(capsys.readouterr().out.splitlines()[-1]))
    assert sample.seconds > 0


def test_as_a_process_without_a_model(tmp_path, monkeypatch, capsys):
    task = {"way": "read", "cache": "warm", "dtype": "float32", "folder": str(tmp_path / "none")}
    monkeypatch.setattr(sys, "argv", ["load_sample", json.dumps(task)])
    assert load_sample.main() == 1
    assert "no model at" in capsys.readouterr().err


def test_resident_memory():
    assert 1 << 20 < memory("VmRSS") <= memory("VmHWM")
    with pytest.raises(BenchError, match="VmNone"):
        memory("VmNone")


@pytest.mark.parametrize(("dtype", "size"), [("float32", 96), ("bfloat16", 48), ("float16", 48)])
def test_what_weights_take(dtype, size, tmp_path):
    checkpoint = Checkpoint("m", tmp_path)
    shapes = {"a": (4, 4), "b": (8,)}
    tensors = {name: StoredTensor(tmp_path, 0, "F32", shape) for name, shape in shapes.items()}
    checkpoint.__dict__["tensors"] = tensors
    assert weight_bytes(checkpoint, dtype) == size
