"""Control groups of both versions: nested ones, containers, services, machines with both."""

import os

import pytest

from folovllm.machine.memory import available_memory, memory_limit
from folovllm.machine.threads import allowed_cores, cpu_quota

GIB = 1 << 30
TOP = "sys/fs/cgroup"
V1 = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n"


def v2(path, cores=None, memory=None):
    """The files of a group of version 2."""
    folder = f"{TOP}/{path}".rstrip("/")
    files = {f"{folder}/memory.stat": "anon 1\n", f"{folder}/memory.current": "0\n"}
    files[f"{folder}/cpu.max"] = f"{int(cores * 100000)} 100000\n" if cores else "max 100000\n"
    files[f"{folder}/memory.max"] = f"{memory or 'max'}\n"
    return files


def v1(path, cores=None, memory=None, cpu="cpu"):
    """The files of a group of version 1, which has a tree for each controller."""
    cpu = f"{TOP}/{cpu}/{path}".rstrip("/")
    files = {f"{TOP}/memory/{path}".rstrip("/") + "/memory.usage_in_bytes": "0\n"}
    limit = f"{TOP}/memory/{path}".rstrip("/") + "/memory.limit_in_bytes"
    files[limit] = f"{memory or (1 << 63) - 4096}\n"
    files[f"{cpu}/cpu.cfs_quota_us"] = f"{int(cores * 50000) if cores else -1}\n"
    files[f"{cpu}/cpu.cfs_period_us"] = "50000\n"
    return files


def member(*lines):
    return {"proc/self/cgroup": "".join(f"{line}\n" for line in lines)}


def mounts(*lines):
    return {"proc/self/mountinfo": "".join(f"31 23 0:28 {line}\n" for line in lines)}


CASES = {
    # systemd-run -p CPUQuota=100% -p MemoryMax=1G
    "a service": (
        member("0::/system.slice/run-1.service") | v2("system.slice/run-1.service", 1, GIB),
        1,
        GIB,
    ),
    "the slice around it": (
        member("0::/a.slice/b") | v2("a.slice", 1.5, GIB) | v2("a.slice/b", 3, 2 * GIB),
        1.5,
        GIB,
    ),
    "a container of version 2": (member("0::/") | v2("", 2.5, GIB), 2.5, GIB),
    "one without a name space": (
        member("0::/docker/0123") | mounts(f"/docker/0123 /{TOP} rw - cgroup2 c rw") | v2("", 2, 9),
        2,
        9,
    ),
    "a group in it": (
        member("0::/docker/0123/job")
        | mounts(f"/docker/0123 /{TOP} rw - cgroup2 c rw")
        | v2("", 3, 9)
        | v2("job", 1, 8),
        1,
        8,
    ),
    "a container of version 1": (
        member("5:memory:/docker/0123", "4:cpu,cpuacct:/docker/0123") | v1("", 2, GIB),
        2,
        GIB,
    ),
    "a group in it of version 1": (
        member("5:memory:/docker/0123/job", "4:cpu,cpuacct:/docker/0123/job")
        | mounts(
            f"/docker/0123 /{TOP}/memory rw - cgroup cgroup rw,memory",
            f"/docker/0123 /{TOP}/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct",
        )
        | v1("", 3, GIB, cpu="cpu,cpuacct")
        | v1("job", 1, 8, cpu="cpu,cpuacct"),
        1,
        8,
    ),
    "a batch job of version 1": (
        member("5:memory:/slurm/job_1/step_0", "4:cpu:/slurm/job_1/step_0")
        | v1("")
        | v1("slurm/job_1", 3, 2 * GIB)
        | v1("slurm/job_1/step_0"),
        3,
        2 * GIB,
    ),
    "both versions": (
        member("5:memory:/m", "4:cpu:/c", "0::/u") | v1("m", None, GIB) | v2("unified/u", 2),
        2,
        GIB,
    ),
    "mounted elsewhere": (
        member("0::/")
        | mounts(r"/ /else\040where rw - cgroup2 c rw")
        | {"else where/cpu.max": "1 2"},
        0.5,
        None,
    ),
    "another's group": (member("0::/mine") | v2("other", 1, GIB) | v2("mine"), None, None),
    "outside of what is seen": (member("0::/../x") | {"sys/fs/x/cpu.max": "1 2"}, None, None),
    "nonsense": (
        member("", "x", "0::", "5:memory:") | {f"{TOP}/cpu.max": "1", f"{TOP}/memory.max": "?"},
        None,
        None,
    ),
    "a period of zero": (member("0::/") | {f"{TOP}/cpu.max": "100000 0"}, None, None),
}


@pytest.mark.parametrize(("files", "cores", "memory"), CASES.values(), ids=CASES)
def test_limits(files, cores, memory, tree, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    root = tree(**files)
    assert cpu_quota(root) == cores
    assert memory_limit(root) == memory
    assert allowed_cores(root) == (-int(-cores // 1) if cores else 8)
    if memory:
        assert available_memory(root) == memory
