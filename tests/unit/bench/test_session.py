import json
import re

import pytest

from folovllm import EngineConfig
from folovllm.bench.facts import drift
from folovllm.bench.results import BenchError, Measurement, Run, read_run
from folovllm.bench.session import (
    Session,
    machine_name,
    results_folder,
    settings_of,
)
from folovllm.diagnostics.limits import DeviceLimits

READY = Measurement("load", "warm", "folovllm", "ready", "s", "lower", [1.5])
FACTS = {
    "gpus": [],
    "cpu": {"model": "Intel(R) Xeon(R) CPU E5-2680 v4 @ 2.40GHz", "allowed_cores": 2},
}


@pytest.fixture
def lines():
    return []


@pytest.fixture
def make(lines, tmp_path):
    """A session whose machine is as fast as the numbers say, one a measuring."""

    def made(*speeds, place=tmp_path / "run"):
        left = iter(speeds or (1.0, 1.0))

        def limits():
            speed = next(left)
            return DeviceLimits(speed * 1e9, speed * 1e11)

        return Session({"model": "m"}, place, limits, lines.append)

    return made


def test_a_complete_run(make, lines, tmp_path):
    with make() as session:
        session.record(READY)
    run = read_run(tmp_path / "run")
    assert run == session.run
    assert not run.partial
    assert run.settings == {"model": "m"}
    assert run.limits == {when: {"bandwidth": 1e9, "rate": 1e11} for when in ("start", "end")}
    assert run.machine["cpu"]
    assert run.seconds > 0
    assert lines == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, BenchError("no")])
def test_what_was_finished_is_kept_and_marked(error, make, tmp_path):
    def measure():
        with make() as session:
            session.record(READY)
            raise error

    with pytest.raises((KeyboardInterrupt, BenchError)):
        measure()
    run = read_run(tmp_path / "run")
    assert run.partial
    assert run.measurements == [READY]
    assert list(run.limits) == ["start"]


def test_is_on_disk_as_soon_as_it_is_recorded(make, tmp_path):
    with make() as session:
        session.record(READY)
        assert read_run(tmp_path / "run").measurements == [READY]
        assert read_run(tmp_path / "run").partial


def test_interrupted_while_the_last_limits_are_measured(make, tmp_path):
    def interrupt():
        raise KeyboardInterrupt

    session = make()
    session.begin()
    session.record(READY)
    session._measure_limits = interrupt
    with pytest.raises(KeyboardInterrupt):
        session.end(complete=True)
    assert read_run(tmp_path / "run").partial


def test_into_a_file_or_nowhere(make, tmp_path):
    with make(place=tmp_path / "new" / "load.json"):
        pass
    assert json.loads((tmp_path / "new" / "load.json").read_text())["schema"] == 1
    with make(place=None) as session:
        session.record(READY)
    assert session.run.measurements == [READY]


def test_a_place_by_the_machine(make, tmp_path):
    with make(place=lambda facts: tmp_path / min(facts)):
        pass
    assert read_run(tmp_path / "commit")


def test_complains_of_the_place_before_it_measures(make, tmp_path):
    (tmp_path / "file").write_text("")
    session = make(place=tmp_path / "file" / "run")
    session._measure_limits = lambda: pytest.fail("measured")
    with pytest.raises(BenchError, match=r"cannot be written to .*file"):
        session.begin()


def test_says_what_drifted(make, lines):
    with make(1.0, 0.75):
        pass
    assert lines == [
        "the machine changed meanwhile: its bandwidth is −25 % against the start",
        "the machine changed meanwhile: its rate is −25 % against the start",
    ]


def test_no_drift_of_a_partial_run():
    run = Run.begin({}, {})
    assert drift(run) == []
    run.limits["start"] = {"bandwidth": 1.0}
    assert drift(run) == []


@pytest.mark.parametrize(
    ("facts", "name"),
    [
        (FACTS, "intel-xeon-e5-2680-v4-2-cores"),
        ({**FACTS, "gpus": [{"name": "NVIDIA H200"}] * 2}, "2x-nvidia-h200-2-cores"),
        ({**FACTS, "cpu": {"model": "", "allowed_cores": 4}}, "4-cores"),
    ],
)
def test_machine_name(facts, name):
    assert machine_name(facts) == name


def test_results_folder(tmp_path):
    folder = results_folder(tmp_path, FACTS)
    assert folder.parent == tmp_path
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d-intel.*-2-cores", folder.name)


def test_settings_say_what_was_asked_and_not_where(tmp_path, monkeypatch):
    monkeypatch.setenv("FOLOVLLM_HF_TOKEN", "secret")
    (tmp_path / "my-model").mkdir()
    config = EngineConfig.from_options(model=str(tmp_path / "my-model"), dtype="bfloat16")
    assert settings_of(config, rounds=3, requests=None) == {
        "dtype": "bfloat16",
        "hf_token": "********",
        "model": "my-model",
        "rounds": 3,
    }
    hub = EngineConfig.from_options(model="someone/some-model")
    assert settings_of(hub)["model"] == "someone/some-model"
