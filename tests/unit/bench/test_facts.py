import pytest

from folovllm.bench.facts import (
    date_of,
    describe_machine,
    describe_settings,
    identity,
    limits_table,
    short_machine,
)
from folovllm.bench.results import Run
from folovllm.machine.facts import machine_facts
from tests.unit.bench.example import MACHINE, example_run


def test_a_machine_in_words():
    assert describe_machine(MACHINE) == [
        ("Processor", "AMD EPYC 7763 64-Core Processor, 2 of 4 cores, avx avx2 f16c fma"),
        ("Memory", "16 GiB, of which 8 GiB are allowed"),
        ("System", "Debian GNU/Linux 12 (bookworm), kernel 6.1.0-28-amd64, in a container"),
        ("Threads", "2, OMP_NUM_THREADS=2"),
        ("Software", "CPython 3.11.7, folovllm 0.1.0, torch 2.13.0, transformers 5.23.0"),
        ("Commit", "8e55589-dirty"),
    ]
    assert short_machine(MACHINE) == "AMD EPYC 7763 64-Core Processor, 2 cores"


def test_a_gpu_comes_first():
    gpu = {"name": "H200", "memory": 141 * 2**30, "capability": "9.0", "driver": "580.1"}
    machine = MACHINE | {"gpus": [gpu]}
    assert ("GPU", "H200, 141 GiB, compute capability 9.0, driver 580.1") in describe_machine(
        machine
    )
    assert short_machine(machine) == "H200, 2 cores"
    assert identity(machine)["GPUs"] == ["H200, 141 GiB"]


def test_this_machine_has_an_identity():
    facts = machine_facts()
    assert identity(facts) == identity(facts)
    assert identity(facts)["allowed cores"] >= 1
    assert [name for name, _ in describe_machine(facts)][:2] == ["Processor", "Memory"]


def test_drift_is_shown():
    table = limits_table(example_run())
    assert table.columns == ["", "At the start", "At the end", "Drift"]
    assert [cell.text for cell in table.rows[0]] == [
        *("Reading memory", "34.1 GB/s", "32.9 GB/s", "−3.5 %"),
    ]
    started = Run("", {}, {}, limits={"start": {"rate": 1e11}})
    assert [cell.text for cell in limits_table(started).rows[0]] == [
        *("Matrix product", "100 GFLOP/s", "–"),
    ]


def test_settings_are_words():
    settings = {"max_num_seqs": 8, "enforce_eager": True, "cases": ["a", "b"], "seed": None}
    assert describe_settings(settings) == [
        *(("Max num seqs", "8"), ("Enforce eager", "yes"), ("Cases", "a, b"), ("Seed", "none")),
    ]


@pytest.mark.parametrize(
    ("started", "text"),
    [("2026-11-01T07:02:00+00:00", "1 November 2026, 07:02 UTC"), ("long ago", "long ago")],
)
def test_dates(started, text):
    assert date_of(Run(started, {}, {})) == text
