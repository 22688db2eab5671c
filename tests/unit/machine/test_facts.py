import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from folovllm.machine import facts as machine_module
from folovllm.machine.facts import gpus, machine_facts, output_of, source_commit
from folovllm.machine.memory import memory_limit

GIB = 1 << 30

XEON = """\
processor\t: {processor}
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) Platinum 8480+
physical id\t: {socket}
core id\t\t: {core}
flags\t\t: fpu vme sse sse2 avx avx2 fma f16c avx512f avx512bw avx512_bf16 amx_tile amx_bf16

"""
# Two sockets of two cores of two threads each.
XEONS = "".join(
    XEON.format(processor=i, socket=i // 2 % 2, core=i % 2) for i in range(8)
)  # fmt: skip
GRAVITON = """\
processor\t: 0
BogoMIPS\t: 2100.00
Features\t: fp asimd evtstrm aes asimdhp asimddp sve i8mm bf16
CPU implementer\t: 0x41

processor\t: 1
BogoMIPS\t: 2100.00
Features\t: fp asimd evtstrm aes asimdhp asimddp sve i8mm bf16
CPU implementer\t: 0x41

"""


def test_two_sockets(tree):
    root = tree(
        **{
            "proc/cpuinfo": XEONS,
            "proc/meminfo": "MemTotal:       67108864 kB\nMemAvailable:   33554432 kB\n",
            "etc/os-release": 'PRETTY_NAME="Ubuntu 24.04.2 LTS"\nNAME="Ubuntu"\nID=ubuntu\n',
            "sys/devices/system/node/node0/cpulist": "0-1",
            "sys/devices/system/node/node1/cpulist": "2-3",
            "sys/devices/system/node/online": "0-1",
            "sys/kernel/mm/transparent_hugepage/enabled": "always madvise [never]\n",
            "sys/fs/cgroup/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/memory.max": f"{16 * GIB}\n",
        }
    )
    facts = machine_facts(root)
    cpu = facts["cpu"]
    assert cpu["model"] == "Intel(R) Xeon(R) Platinum 8480+"
    listed = "amx_bf16 amx_tile avx avx2 avx512_bf16 avx512bw avx512f f16c fma"
    assert " ".join(cpu["instruction_sets"]) == listed
    assert (cpu["physical_cores"], cpu["numa_nodes"], cpu["virtual"]) == (4, 2, False)
    assert cpu["cgroup_cores"] == 1.5
    assert cpu["allowed_cores"] == min(2, len(os.sched_getaffinity(0)))
    memory = facts["memory"]
    assert (memory["total"], memory["available"]) == (64 * GIB, 32 * GIB)
    assert (memory["cgroup_limit"], memory["huge_pages"]) == (16 * GIB, "never")
    assert facts["os"]["name"] == "Ubuntu 24.04.2 LTS"
    assert facts["os"]["container"] is False


def test_arm(tree):
    cpu = machine_facts(tree(**{"proc/cpuinfo": GRAVITON}))["cpu"]
    assert cpu["instruction_sets"] == ["asimd", "asimddp", "asimdhp", "bf16", "i8mm", "sve"]
    assert cpu["physical_cores"] == 2
    assert cpu["model"]


def test_a_guest(tree):
    root = tree(**{"proc/cpuinfo": XEONS.replace("fpu", "hypervisor fpu")})
    assert machine_facts(root)["cpu"]["virtual"] is True


def test_a_container(tree):
    assert machine_facts(tree(**{".dockerenv": ""}))["os"]["container"] is True


def test_a_machine_without_proc(tmp_path):
    facts = machine_facts(tmp_path)
    assert facts["cpu"]["physical_cores"] is None
    assert facts["cpu"]["virtual"] is None
    assert facts["memory"]["total"] > 0
    assert facts["memory"]["huge_pages"] is None


def test_this_machine(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    facts = machine_facts()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["packages"]["folovllm"]
    assert facts["torch"]["version"] == torch.__version__
    assert facts["torch"]["threads"] == torch.get_num_threads()
    assert facts["thread_variables"]["OMP_NUM_THREADS"] == "3"
    assert str(Path.home()) not in json.dumps(facts)


def test_without_torch(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert machine_facts(tmp_path)["torch"] is None


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, None),
        ({"memory.max": "max\n"}, None),
        ({"memory.max": "4096\n"}, 4096),
        ({"job/memory.max": "2048\n", "memory.max": "4096\n"}, 2048),
        ({"memory/memory.limit_in_bytes": "9223372036854771712\n"}, None),
        ({"memory/memory.limit_in_bytes": "4096\n"}, 4096),
    ],
)
def test_memory_limit(files, limit, tree):
    named = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    assert memory_limit(tree(**{"proc/self/cgroup": "0::/job\n"}, **named)) == limit


NVIDIA_SMI = """\
NVIDIA H200, 143771, 9.0, 580.159.03
NVIDIA GB10, [N/A], 12.1, 580.95.05
"""


def test_gpus(program):
    program("nvidia-smi", NVIDIA_SMI)
    assert gpus() == [
        {
            "name": "NVIDIA H200",
            "memory": 143771 << 20,
            "capability": "9.0",
            "driver": "580.159.03",
        },
        {"name": "NVIDIA GB10", "memory": None, "capability": "12.1", "driver": "580.95.05"},
    ]


def test_no_gpus(program):
    program("nvidia-smi", "NVIDIA-SMI has failed because it couldn't communicate\n", code=9)
    assert gpus() == []
    program("nvidia-smi", "No devices were found\n")
    assert gpus() == []


def test_a_program_that_hangs(monkeypatch, program, tmp_path):
    program("slow", "")
    (tmp_path / "bin/slow").write_text("#!/bin/sh\nexec sleep 20\n")
    monkeypatch.setattr(machine_module, "MOST_SECONDS", 0.05)
    assert output_of("slow") is None
    assert output_of("no-such-program") is None


def test_source_commit(tmp_path, monkeypatch):
    for name in list(os.environ):
        if name.startswith("GIT_"):  # of a hook that runs the tests
            monkeypatch.delenv(name)

    def git(*arguments):
        identity = ["-c", "user.name=A", "-c", "user.email=a@b.c"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True)

    assert source_commit(tmp_path) is None
    git("init", "-q")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-q", "-m", "First", "--no-gpg-sign", "--no-verify")
    commit = source_commit(tmp_path)
    assert 7 <= len(commit) <= 40
    git("tag", "v1.0")  # the commit is wanted, not a name of it
    assert source_commit(tmp_path) == commit
    (tmp_path / "file").write_text("two")
    assert source_commit(tmp_path) == f"{commit}-dirty"
