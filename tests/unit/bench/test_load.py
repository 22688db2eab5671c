import dataclasses
import json
import subprocess
import sys

import pytest

from folovllm import EngineConfig, ModelLoadError
from folovllm.bench import load
from folovllm.bench.load import MODELS, measure_load, take_in_process
from folovllm.bench.load_sample import Sample, Task
from folovllm.bench.results import BenchError

PARTS = {"config and tokenizer": 0.5, "weights read": 1.0, "first forward": 0.25}


@pytest.fixture(autouse=True)
def on_linux(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")


@pytest.fixture
def folder(tmp_path):
    """A checkpoint of two tensors, 24 numbers in all; nothing of it is loaded."""
    (tmp_path / "config.json").write_text("{}")
    header = {
        "a": {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]},
        "b": {"dtype": "F32", "shape": [8], "data_offsets": [64, 96]},
    }
    text = json.dumps(header).encode()
    content = len(text).to_bytes(8, "little") + text + bytes(96)
    (tmp_path / "model.safetensors").write_bytes(content)
    return tmp_path


class Played:
    """Takes samples that are made up, and notes for which tasks; may fail at one of them."""

    def __init__(self, fail_at=None, error=None, **changes):
        self.tasks = []
        self.fail_at, self.error, self.changes = fail_at, error, changes

    def __call__(self, task):
        self.tasks.append(task)
        if len(self.tasks) == self.fail_at:
            raise self.error
        parts = {"weights read": len(self.tasks) / 100}
        if task.way in MODELS:
            parts = PARTS
        share = 1.0 if task.cache == "warm" else 0.01 * len(self.tasks) / 100
        sample = Sample(parts, 1000, share, 2, -1.5 if task.way in MODELS else None)
        return dataclasses.replace(sample, **self.changes.get(task.way, {}))


@pytest.fixture
def run(folder):
    """Measures with made-up samples; the measurements by case, way and metric."""

    def measured(take, rounds=2, dtype="auto", **options):
        recorded = {}
        config = EngineConfig.from_options(model=str(folder), dtype=dtype, **options)

        def record(measurement):
            recorded[measurement.key[1:]] = measurement

        try:
            measure_load(config, rounds, record, lambda _: None, take)
        except (BenchError, KeyboardInterrupt) as error:
            return recorded, error
        return recorded, None

    return measured


def test_every_case_in_turn_back_and_forth(run):
    take = Played()
    measured, error = run(take)
    assert error is None
    warm_up, first, second = take.tasks[:4], take.tasks[4:20], take.tasks[20:]
    assert [task.way for task in warm_up] == ["read", "safetensors", "from_pretrained", "folovllm"]
    assert second == first[::-1]
    assert len({(task.way, task.cache, task.dtype) for task in first}) == 16
    assert len(measured) == 16 + 8
    assert all(len(each.samples) == 2 for each in measured.values())


def test_a_data_type_that_was_asked_for(run):
    measured, _ = run(Played(), dtype="half")
    assert {case for case, _, _ in measured} == {
        "float16, warm page cache",
        "float16, cold page cache",
    }


def test_parts_add_up_and_samples_have_their_round_s_limit(run):
    take = Played()
    measured, _ = run(take)
    ours = measured["float32, warm page cache", "folovllm", "ready"]
    assert ours.samples == [1.75, 1.75]
    assert ours.parts == {name: [seconds] * 2 for name, seconds in PARTS.items()}
    reading = measured["float32, warm page cache", "read", "ready"]
    assert ours.limits == reading.samples
    assert reading.samples[0] < reading.samples[1]  # in the order of the rounds
    assert reading.limits is None
    assert measured["float32, warm page cache", "safetensors", "ready"].limits == reading.samples


def test_memory_and_its_limit(run):
    measured, _ = run(Played(folovllm={"peak_memory": 200}))
    for dtype, size in (("float32", 96.0), ("bfloat16", 48.0)):
        memory = measured[f"{dtype}, cold page cache", "folovllm", "peak memory"]
        assert (memory.samples, memory.limits, memory.unit) == ([200.0] * 2, [size] * 2, "bytes")
    assert not [key for key in measured if key[1:] == ("read", "peak memory")]


def test_the_state_of_the_cache_is_kept_as_proof(run):
    measured, _ = run(Played())
    of = {key: each.parameters for key, each in measured.items()}
    warm = of["float32, warm page cache", "folovllm", "ready"]
    assert (warm["cache"], warm["resident share"]) == ("warm", 1.0)
    assert warm["modules imported meanwhile"] == 2
    cold = of["float32, cold page cache", "folovllm", "ready"]
    assert cold["resident share"] == pytest.approx(0.0028, abs=0.001)  # the worst of the two


def test_a_case_that_fails_is_left_out_and_named(run):
    take = Played(fail_at=5, error=BenchError("folovllm, float32: no"))
    measured, error = run(take)
    assert str(error) == "folovllm, float32: no"
    assert len(take.tasks) == 4 + 16 + 15  # and not tried again
    assert len(measured) == 24 - 2
    assert ("float32, warm page cache", "folovllm", "ready") not in measured


def test_what_was_taken_before_it_failed_is_kept(run):
    measured, error = run(Played(fail_at=4 + 16 + 1, error=BenchError("no")))
    assert str(error) == "no"
    reading = measured["bfloat16, cold page cache", "read", "ready"]
    assert len(reading.samples) == 1
    # A limit that is not there for every sample is no limit.
    assert measured["bfloat16, cold page cache", "folovllm", "ready"].limits is None


def test_what_was_taken_before_ctrl_c_is_kept(run):
    measured, error = run(Played(fail_at=4 + 16 + 3, error=KeyboardInterrupt()))
    assert isinstance(error, KeyboardInterrupt)
    counts = {key: len(each.samples) for key, each in measured.items()}
    assert len(counts) == 24
    assert counts["bfloat16, cold page cache", "read", "ready"] == 2
    assert counts["float32, warm page cache", "folovllm", "ready"] == 1


def test_a_way_that_does_not_work_at_all(run):
    measured, error = run(Played(fail_at=4, error=BenchError("folovllm: no")))
    assert (measured, str(error)) == ({}, "folovllm: no")


@pytest.mark.parametrize(("answer", "same"), [(-1.6, True), (-2.0, False)])
def test_both_sides_must_have_the_same_model(answer, same, run):
    measured, error = run(Played(from_pretrained={"answer": answer}))
    assert len(measured) == 24
    if same:
        assert error is None
    else:
        assert "-1.500 and -2.000" in str(error)


def test_the_engine_has_its_options_and_no_secrets(run, monkeypatch):
    monkeypatch.setenv("FOLOVLLM_HF_TOKEN", "secret")
    take = Played()
    run(take, max_num_seqs=8, tokenizer="other")
    options = {task.way: task.options for task in take.tasks}
    assert options["folovllm"] == {"max_num_seqs": 8, "tokenizer": "other"}
    assert options["from_pretrained"] == {}


def test_with_a_gpu_the_copy_to_it_is_a_limit(run, monkeypatch):
    import torch

    monkeypatch.setattr(load, "get_device", lambda: torch.device("cuda"))
    measured, _ = run(Played(read={"parts": {"weights read": 0.001}}), rounds=1)
    case = "float32, warm page cache"
    copied = measured[case, "pinned copy", "ready"].samples
    assert copied[0] > 0.001
    assert measured[case, "folovllm", "ready"].limits == copied


def test_elsewhere_than_on_linux(run, monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    take = Played()
    assert "needs Linux" in str(run(take)[1])
    assert take.tasks == []


def test_no_safetensors_files(run, folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    take = Played()
    assert "has no safetensors files" in str(run(take)[1])
    assert take.tasks == []


def test_no_model(tmp_path):
    config = EngineConfig.from_options(model=str(tmp_path / "none"))
    with pytest.raises(ModelLoadError, match="no model at"):
        measure_load(config, 1, lambda _: None, lambda _: None, Played())


# The process of a sample


TASK = Task("read", "warm", "float32", "folder", threads=3)


def test_a_process_has_its_threads(monkeypatch):
    seen = {}
    sample = Sample({"weights read": 0.5}, 10, 1.0, 0)

    def play(command, env, **_):
        seen.update(task=json.loads(command[-1]), env=env)
        output = "a library says hello\n" + json.dumps(dataclasses.asdict(sample))
        return subprocess.CompletedProcess(command, 0, output, "")

    monkeypatch.setattr(subprocess, "run", play)
    assert take_in_process(TASK) == sample
    assert Task(**seen["task"]) == TASK
    assert (seen["env"]["OMP_NUM_THREADS"], seen["env"]["HF_HUB_OFFLINE"]) == ("3", "1")


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("Traceback\n  File\nValueError: broken\n\n", "warm page cache: ValueError: broken"),
        ("", "warm page cache: exit code 7"),
    ],
)
def test_a_process_that_fails(output, message, monkeypatch):
    done = subprocess.CompletedProcess([], 7, "", output)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    with pytest.raises(BenchError, match=f"^read, float32, {message}$"):
        take_in_process(TASK)


def test_a_process_that_hangs(monkeypatch):
    def hang(command, timeout, **_):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", hang)
    with pytest.raises(BenchError, match="read, float32, warm page cache: still at it after 900 s"):
        take_in_process(TASK)
