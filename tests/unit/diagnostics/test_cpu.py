import copy

import pytest

from folovllm.diagnostics import cpu
from folovllm.diagnostics.cpu import CpuReport, cores, huge_pages, memory, threads
from folovllm.diagnostics.limits import DeviceLimits

GIB = 1 << 30
EIGHT = {
    "os": {"name": "Debian", "kernel": "6.1", "container": True},
    "cpu": {
        "model": "AMD EPYC",
        "architecture": "x86_64",
        "instruction_sets": ["avx2", "fma"],
        "physical_cores": 8,
        "logical_cores": 16,
        "affinity_cores": 16,
        "cgroup_cores": None,
        "allowed_cores": 16,
        "numa_nodes": 2,
        "virtual": False,
    },
    "memory": {
        "total": 64 * GIB,
        "available": 60 * GIB,
        "cgroup_limit": None,
        "huge_pages": "madvise",
    },
    "python": "CPython 3.12.3",
    "packages": {"folovllm": "0.1.0"},
    "commit": "abc1234",
    "torch": {"version": "2.11.0", "cuda": None, "threads": 8, "instruction_set": "AVX2"},
    "thread_variables": {},
    "gpus": [],
}


@pytest.fixture
def facts():
    """The facts of a machine with eight cores of two threads, with some replaced."""

    def make(**changes):
        made = copy.deepcopy(EIGHT)
        for name, value in changes.items():
            part = next((made[p] for p in ("cpu", "memory", "torch") if name in made[p]), made)
            part[name] = value
        return made

    return make


def test_nothing_hurts(facts, monkeypatch):
    monkeypatch.setattr(cpu, "measure_limits", lambda *_: DeviceLimits(33e9, 150e9))
    monkeypatch.setattr("folovllm.machine.threads.use_allowed_cores", lambda: None)
    done = {check.name: check for check in CpuReport(facts()).run()}
    assert {check.status for check in done.values()} == {"ok"}
    assert done["system"].detail == "Debian, kernel 6.1, in a container"
    assert "commit abc1234" in done["packages"].detail
    assert "AMD EPYC (x86_64), avx2 fma; torch uses AVX2" in done["processor"].detail
    assert done["cores"].detail == "8 cores, 16 logical, 2 NUMA nodes; this process may use 16"
    assert done["memory bandwidth"].figures == {"GB_per_s": 33}
    assert done["float32 rate"].figures == {"GFLOP_per_s": 150}


def test_without_torch(facts):
    done = {check.name: check.status for check in CpuReport(facts(torch=None, available=GIB)).run()}
    assert done["processor"] == done["threads"] == "ok"


def test_nothing_large_is_measured_in_little_memory(facts, monkeypatch):
    """In a container it would be killed for that."""
    monkeypatch.setattr(cpu, "measure_limits", None)
    done = {check.name: check.status for check in CpuReport(facts(available=GIB)).run()}
    assert done["memory bandwidth"] == done["float32 rate"] == "skipped"
    assert done["memory"] == "degraded"


def test_a_quota(facts):
    found = cores(facts(cgroup_cores=2.5, allowed_cores=3))
    assert found.status == "degraded"
    assert "quota of 2.5" in found.detail
    assert cores(facts(cgroup_cores=16.0)).status == "ok"


@pytest.mark.parametrize(
    ("value", "status", "part"),
    [
        ("8", "ok", "computes on 8"),
        ("8,1", "ok", "computes on 8"),
        ("12", "ok", "computes on 12"),  # threads of one core: of no use, and of little harm
        ("64", "degraded", "OMP_NUM_THREADS=8"),
        ("2", "degraded", "OMP_NUM_THREADS=8"),
        ("many", "degraded", "unset OMP_NUM_THREADS"),
        ("0", "degraded", "unset OMP_NUM_THREADS"),
    ],
)
def test_omp_num_threads(value, status, part, facts):
    found = threads(facts(thread_variables={"OMP_NUM_THREADS": value}))
    assert found.status == status
    assert part in found.detail + found.advice


def test_torch_computes_on_few_threads(facts):
    """As MKL_NUM_THREADS makes it."""
    found = threads(facts(threads=1, thread_variables={"MKL_NUM_THREADS": "1"}))
    assert (found.status, "MKL_NUM_THREADS=1" in found.detail) == ("degraded", True)


def test_fewer_cores_are_allowed_than_there_are(facts):
    """The engine takes no more threads than that by itself."""
    assert threads(facts(allowed_cores=4)).status == "ok"


@pytest.mark.parametrize(
    ("variables", "status"),
    [
        ({"OMP_PROC_BIND": "close"}, "degraded"),
        ({"OMP_PROC_BIND": "FALSE"}, "ok"),
        ({"GOMP_CPU_AFFINITY": "0-7"}, "degraded"),
        ({"KMP_AFFINITY": "granularity=fine"}, "degraded"),
        ({"OMP_PLACES": "cores"}, "degraded"),
        ({"KMP_BLOCKTIME": "1"}, "ok"),
    ],
)
def test_threads_bound_to_cores(variables, status, facts):
    found = threads(facts(thread_variables=variables))
    assert found.status == status
    assert (next(iter(variables)) in found.advice) == (status == "degraded")


def test_memory(facts):
    assert memory(facts()).detail == "60.0 of 64.0 GiB available"
    assert "limit is 32.0 GiB" in memory(facts(cgroup_limit=32 * GIB)).detail
    assert memory(facts(available=GIB)).status == "degraded"


@pytest.mark.parametrize(
    ("setting", "status"),
    [("always", "ok"), ("madvise", "ok"), (None, "ok"), ("never", "degraded")],
)
def test_huge_pages(setting, status, facts):
    assert huge_pages(facts(huge_pages=setting)).status == status
