import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from folovllm.machine.memory import available_memory

GIB = 1 << 30


class Machine:
    """A tree of `/proc` and `/sys` with 64 GiB, of which 40 are available."""

    def __init__(self, root):
        self.root = root
        self.write(
            "proc/meminfo", f"MemTotal: {64 << 20} kB\nMemAvailable: {40 << 20} kB\nHug: 0\n"
        )

    def write(self, name, text):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def v2(self, path, limit, used, **stat):
        group = f"sys/fs/cgroup/{path}".rstrip("/")
        self.write(f"{group}/memory.max", f"{limit}\n")
        self.write(f"{group}/memory.current", f"{used}\n")
        self.write(f"{group}/memory.stat", "".join(f"{k} {v}\n" for k, v in stat.items()))

    def v1(self, path, limit, used, **stat):
        group = f"sys/fs/cgroup/memory/{path}".rstrip("/")
        self.write(f"{group}/memory.limit_in_bytes", f"{limit}\n")
        self.write(f"{group}/memory.usage_in_bytes", f"{used}\n")
        self.write(f"{group}/memory.stat", "".join(f"{k} {v}\n" for k, v in stat.items()))

    def member_of(self, *lines):
        self.write("proc/self/cgroup", "".join(f"{line}\n" for line in lines))

    @property
    def available(self):
        return available_memory(self.root) / GIB


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def test_without_control_groups(machine):
    assert machine.available == 40


def test_a_container_of_version_2(machine):
    machine.member_of("0::/")
    machine.v2("", 16 * GIB, 6 * GIB)
    assert machine.available == 10


def test_page_cache_counts_as_available(machine):
    machine.v2("", 16 * GIB, 6 * GIB, anon=GIB, inactive_file=3 * GIB, active_file=2 * GIB)
    assert machine.available == 15


def test_version_2_without_a_limit(machine):
    machine.v2("", "max", 6 * GIB)
    assert machine.available == 40


def test_a_limit_above_what_the_kernel_has(machine):
    machine.v2("", 1000 * GIB, 6 * GIB)
    assert machine.available == 40


def test_a_service_in_a_group_of_its_own(machine):
    machine.member_of("0::/system.slice/folovllm.service")
    machine.v2("system.slice", 30 * GIB, 20 * GIB)
    machine.v2("system.slice/folovllm.service", 8 * GIB, 1 * GIB)
    assert machine.available == 7


def test_a_limit_of_the_group_around(machine):
    machine.member_of("0::/job/step/task")
    machine.v2("job", 6 * GIB, 1 * GIB)
    machine.v2("job/step", "max", GIB)
    machine.v2("job/step/task", 20 * GIB, GIB)
    assert machine.available == 5


def test_the_group_of_another_is_no_limit(machine):
    machine.member_of("0::/mine")
    machine.v2("mine", 20 * GIB, GIB)
    machine.v2("other", 2 * GIB, GIB)
    assert machine.available == 19


def test_a_container_of_version_1(machine):
    # Docker mounts the container's own group at the top, and names it by its path outside.
    machine.member_of("5:memory:/docker/0123", "1:name=systemd:/docker/0123")
    machine.v1("", 16 * GIB, 6 * GIB, total_inactive_file=GIB, total_active_file=2 * GIB)
    assert machine.available == 13


def test_a_job_of_version_1(machine):
    machine.member_of("5:cpu,memory:/slurm/job_1", "0::/")
    machine.v1("", 2**63 - 4096, 6 * GIB)
    machine.v1("slurm/job_1", 4 * GIB, GIB)
    assert machine.available == 3


def test_more_used_than_allowed(machine):
    machine.v2("", 4 * GIB, 5 * GIB)
    assert machine.available == 0


@pytest.mark.parametrize("path", ["/../outside", "/gone", "/"])
def test_groups_that_cannot_be_seen(path, machine):
    machine.member_of(f"0::{path}")
    assert machine.available == 40


def test_without_proc(tmp_path):
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert available_memory(tmp_path) == physical


def test_this_machine():
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 64 << 20 < available_memory() <= physical
    if Path("/proc/meminfo").exists():
        assert available_memory() <= available_memory(Path("/nowhere"))


@pytest.mark.skipif(sys.platform != "linux", reason="counts Linux's page faults")
def test_freed_memory_is_kept():
    """In a process of its own: what the allocator does cannot be undone."""
    program = """
import ctypes, resource, sys
from folovllm.machine.memory import keep_freed_memory
keep_freed_memory()
size = 8 << 20
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def use():
    before = faults()
    piece = bytearray(size)
    piece[::4096] = b"x" * len(piece[::4096])
    return faults() - before
use()
print([use() for _ in range(3)])
"""
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert all(count < 100 for count in json.loads(run.stdout)), run.stdout
