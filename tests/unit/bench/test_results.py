import dataclasses
import json

import pytest

from folovllm.bench.results import BenchError, Measurement, Run, read_run

READY = Measurement(
    "load", "float32, cold", "folovllm", "ready", "s", "lower", [1.5, 1.25], [1.0, 1.0]
)


def run():
    started = Run.begin({"cpu": "x"}, {"model": "m"})
    started.add(READY)
    return started


def test_comes_back_as_it_was_written(tmp_path):
    written = run()
    written.write(tmp_path / "new" / "folder")
    assert read_run(tmp_path / "new" / "folder") == written
    assert read_run(tmp_path / "new" / "folder" / "results.json") == written
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["results.json"]


def test_is_partial_until_said_otherwise(tmp_path):
    run().write(tmp_path)
    assert read_run(tmp_path).partial


def test_has_a_name_once():
    with pytest.raises(BenchError, match="measured twice: load, float32, cold, folovllm, ready"):
        run().add(READY)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples": []}, "samples are"),
        ({"samples": [1.0, float("nan")]}, "samples are .*nan"),
        ({"limits": [1.0]}, "limits are"),
        ({"parts": {"weights": [1.0]}}, "weights are"),
        ({"parts": {"weights": [1.0, float("inf")]}}, "weights are"),
    ],
)
def test_refuses_what_cannot_have_been_measured(change, message):
    with pytest.raises(BenchError, match=message):
        dataclasses.replace(READY, **change)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "damaged"),
        ("[]", "schema None"),
        ('{"schema": 2}', "schema 2, and this version of folovllm reads 1"),
        ('{"schema": 1}', "damaged: 'measurements'"),
        ('{"schema": 1, "measurements": [{"suite": "load"}]}', "damaged"),
        ('{"schema": 1, "measurements": []}', "damaged"),
    ],
)
def test_refuses_other_files(tmp_path, content, message):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(BenchError, match=message):
        read_run(tmp_path)


def test_says_where_nothing_is(tmp_path):
    with pytest.raises(BenchError, match=r"no results at .*nowhere"):
        read_run(tmp_path / "nowhere")


def test_an_unwritable_folder_is_an_error_of_its_own(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BenchError, match="cannot be written"):
        run().write(tmp_path / "file")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    written = run()
    written.write(tmp_path)
    broken = run()
    broken.limits["start"] = {"rate": float("inf")}
    with pytest.raises(ValueError, match="JSON"):
        broken.write(tmp_path)
    assert read_run(tmp_path) == written
    assert json.loads((tmp_path / "results.json").read_text())["schema"] == 1
