"""`folovllm bench latency`, `throughput` and `sweep` on a tiny model."""

import json
import subprocess
import sys

import pytest

from folovllm.bench import session
from folovllm.bench.results import read_run
from folovllm.cli.main import main
from folovllm.diagnostics.limits import DeviceLimits

pytestmark = pytest.mark.usefixtures("clean_commands")


@pytest.fixture
def bench(monkeypatch, save_tiny, tmp_path, capsys):
    """Runs a benchmark; returns its exit code, its run, if there is one, and its messages."""
    monkeypatch.setattr(session, "measure_limits", lambda *_: DeviceLimits(1e9, 1e11))
    folder = save_tiny()

    def run(name, *arguments):
        place = tmp_path / f"{name}.json"
        options = ("--model", str(folder), "--cpu-kvcache-space", "0.01", "--json", str(place))
        code = main(["bench", name, *options, *arguments])
        return code, read_run(place) if place.exists() else None, capsys.readouterr().err

    return run


def by_key(run):
    return {measurement.key[1:]: measurement for measurement in run.measurements}


def test_latency(bench):
    code, run, messages = bench("latency", "--prompts", "4,16,99", "--batches", "1,3")
    assert code == 0, messages
    assert not run.partial
    found = by_key(run)
    assert [case for case, _, _ in found] == [
        "prompt of 4 tokens",
        "prompt of 16 tokens",
        "batch of 1, context of 40",
        "batch of 3, context of 40",
    ]
    batch = found["batch of 3, context of 40", "folovllm", "time per output token"]
    assert len(batch.samples) == len(batch.limits) == 40
    assert all(
        0 < least < seconds for least, seconds in zip(batch.limits, batch.samples, strict=True)
    )
    assert run.settings["prompts"] == "(4, 16, 99)"


def test_throughput_beside_transformers(bench):
    arguments = ("--requests", "3", "--input-len", "4-9", "--output-len", "2-6", "--rounds", "2")
    code, run, messages = bench("throughput", *arguments)
    assert code == 0, messages
    found = by_key(run)
    case = "3 requests, 4-9 tokens in, 2-6 out"
    for way in ("folovllm", "transformers"):
        seconds = found[case, way, "time"]
        tokens = seconds.parameters["output tokens"]
        assert len(seconds.samples) == 2
        rates = found[case, way, "output tokens"].samples
        assert rates == pytest.approx([tokens / each for each in seconds.samples])
    assert found[case, "folovllm", "time"].limits
    assert "round 2 of 2" in messages


def test_throughput_of_a_dataset_without_a_peer(bench, tmp_path):
    turns = [{"from": "human", "value": "the cat sat on"}, {"from": "gpt", "value": "a mat and a"}]
    dataset = tmp_path / "shared.json"
    dataset.write_text(json.dumps([{"conversations": turns}] * 5 + [{"conversations": []}]))
    arguments = ("--dataset", str(dataset), "--no-peer", "--requests", "2", "--rounds", "2")
    code, run, messages = bench("throughput", *arguments)
    assert code == 0, messages
    assert "shared.json: 5 conversations, 1 left out" in messages
    assert {way for _, way, _ in by_key(run)} == {"folovllm"}
    code, run, messages = bench("throughput", *arguments[:-1], "3")
    assert code == 1
    assert "5 conversations that can be used, of which 1 are left, and 2 more" in messages
    assert run.partial
    assert {len(measurement.samples) for measurement in run.measurements} == {2}


def test_sweep(bench):
    arguments = ("--rates", "40,20", "--seconds", "0.5", "--input-len", "4", "--output-len", "5")
    code, run, messages = bench("sweep", *arguments, "--ttft", "60000", "--tpot", "60000")
    assert code == 0, messages
    found = by_key(run)
    assert found["knee", "folovllm", "rate"].samples == [40.0]
    for rate, count in ((20, 10), (40, 20)):
        first = found[f"{rate} requests/s", "folovllm", "time to first token"]
        assert len(first.samples) == count
        assert first.parameters["failed"] == 0
    assert run.settings["rates"] == "(40.0, 20.0)"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("sweep", "--rates", "0"), 2, "bench_rates: got '0'"),
        (("sweep", "--rates", "1,-2"), 2, "bench_rates: got '-2'"),
        (("sweep", "--rates", ""), 2, "bench_rates: got ''"),
        (("sweep", "--seconds", "0"), 2, "bench_seconds: got '0'"),
        (("sweep", "--ttft", "x"), 2, "bench_ttft: got 'x'"),
        (("sweep", "--url", "http://127.0.0.1:1"), 1, "127.0.0.1:1 cannot be reached"),
        (("sweep", "--url", "nowhere"), 1, "looks like http://localhost:8000, got 'nowhere'"),
        (("sweep", "--input-len", "60"), 1, "sequences of up to 1"),
        (("throughput", "--input-len", "9-4"), 2, "got '9-4'"),
        (("throughput", "--input-len", "0"), 2, "bench_input_len: got '0'"),
        (("throughput", "--requests", "0"), 2, "bench_requests: got '0'"),
        (("throughput", "--output-len", "99"), 1, "the model takes 64"),
        (("throughput", "--workload", "sinlge"), 2, "did you mean single?"),
        (("throughput", "--workload", "nano-vllm"), 1, "nano-vllm: sequences of up to"),
        (("throughput", "--workload", "single", "--requests", "4"), 2, "leave out"),
        (("throughput",), 1, "the model takes 64"),
        (("throughput", "--dataset", "none.json"), 1, "none.json cannot be read"),
        (("latency", "--prompts", "64"), 1, "nothing to measure"),
        (("latency", "--batches", "0"), 2, "bench_batches: got '0'"),
    ],
)
def test_wrong_usage(arguments, code, message, bench):
    ended, run, messages = bench(*arguments)
    assert message in messages
    assert "Traceback" not in messages
    assert ended == code
    assert run is None or (run.partial and not run.measurements)


def test_a_model_that_cannot_be_loaded(bench, tmp_path):
    code, _, messages = bench("latency", "--tokenizer", str(tmp_path / "none"))
    assert code == 1
    assert "none" in messages


def test_a_process_of_its_own(save_tiny):
    lengths = ["--prompts", "4", "--batches", "2", "--contexts", "8", "--rounds", "1"]
    model = ["--model", str(save_tiny()), "--cpu-kvcache-space", "0.01"]
    command = [sys.executable, "-m", "folovllm", "bench", "latency", *model, *lengths]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "latency, batch of 2, context of 41: time per output token p50" in done.stderr
    assert "41" in done.stdout
