"""What this machine is: the facts that stand beside whatever is measured on it.

Nothing here names the host, a user or a path: a report may be shown to anyone.
"""

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from folovllm import __version__
from folovllm.machine.memory import available_memory, memory_limit
from folovllm.machine.threads import allowed_cores, cpu_quota

PACKAGES = ("torch", "triton", "transformers", "safetensors", "numpy", "flash-attn")
THREAD_VARIABLES = (
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_PROC_BIND", "OMP_PLACES", "OMP_DYNAMIC"),
    *("GOMP_CPU_AFFINITY", "KMP_AFFINITY", "KMP_BLOCKTIME"),
)
INSTRUCTIONS = {
    *("avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni"),
    *("avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8", "amx_fp16"),
    *("asimd", "asimdhp", "asimddp", "bf16", "i8mm", "sve", "sve2"),
}
"""The instruction sets that matrix products are made of, as Linux spells them."""

MOST_SECONDS = 10.0
"""After which a program that was asked has no answer: a broken driver can hang `nvidia-smi`."""


def machine_facts(root: Path = Path("/")) -> dict[str, Any]:
    """What this machine and this installation are, ready for JSON; sizes in bytes.

    Takes a fraction of a second beside the import of torch, whose threads are among the facts.

    Args:
        root: where `/proc`, `/sys` and `/etc` are found.
    """
    return {
        "os": _system(root),
        "cpu": _cpu(root),
        "memory": _memory(root),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": _packages(),
        "commit": source_commit(),
        "torch": _torch(),
        "thread_variables": {n: os.environ[n] for n in THREAD_VARIABLES if n in os.environ},
        "gpus": gpus(),
    }


def _system(root: Path) -> dict[str, Any]:
    names = dict(
        re.findall(r'^(\w+)="?([^"\n]*)', read_text(root / "etc/os-release"), re.MULTILINE)
    )
    return {
        "name": names.get("PRETTY_NAME", platform.system()),
        "kernel": platform.release(),
        "container": in_container(root),
    }


def in_container(root: Path = Path("/")) -> bool:
    """Whether this process is in a container that shows it, as Docker's and Podman's do.

    Args:
        root: where the marks are found.
    """
    marks = (root / ".dockerenv", root / "run/.containerenv")
    named = {"container", "KUBERNETES_SERVICE_HOST"} & os.environ.keys()
    return bool(named) or any(mark.exists() for mark in marks)


def _cpu(root: Path) -> dict[str, Any]:
    cores = list(_cpuinfo(root))
    first = cores[0] if cores else {}
    # "flags" on x86, "Features" on Arm, where each processor is a core and none has a name.
    flags = set(first.get("flags", first.get("Features", "")).split())
    places = {(c["physical id"], c["core id"]) for c in cores if {"physical id", "core id"} <= {*c}}
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return {
        "model": first.get("model name", platform.processor() or platform.machine()),
        "architecture": platform.machine(),
        "instruction_sets": sorted(flags & INSTRUCTIONS),
        "physical_cores": len(places) or len(cores) or None,
        "logical_cores": os.cpu_count(),
        "affinity_cores": affinity,
        "cgroup_cores": cpu_quota(root),
        "allowed_cores": allowed_cores(root),
        "numa_nodes": len(list((root / "sys/devices/system/node").glob("node[0-9]*"))) or 1,
        "virtual": "hypervisor" in flags if flags else None,
    }


def _cpuinfo(root: Path) -> Iterator[dict[str, str]]:
    """One dictionary a logical core."""
    for block in read_text(root / "proc/cpuinfo").split("\n\n"):
        rows = [line.partition(":") for line in block.splitlines()]
        core = {name.strip(): value.strip() for name, _, value in rows}
        if "processor" in core:
            yield core


def _memory(root: Path) -> dict[str, Any]:
    total = re.search(r"^MemTotal:\s+(\d+) kB", read_text(root / "proc/meminfo"), re.MULTILINE)
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    huge = read_text(root / "sys/kernel/mm/transparent_hugepage/enabled")
    chosen = re.search(r"\[(\w+)\]", huge)
    return {
        "total": int(total[1]) * 1024 if total else pages,
        "available": available_memory(root),
        "cgroup_limit": memory_limit(root),
        "huge_pages": chosen and chosen[1],
    }


def _packages() -> dict[str, str]:
    versions = {"folovllm": __version__}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _torch() -> dict[str, Any] | None:
    try:
        import torch
    except (ImportError, OSError):  # not there, or a library of it is not
        return None
    return {
        "version": str(torch.__version__),
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
    }


def gpus() -> list[dict[str, Any]]:
    """The NVIDIA GPUs that the driver knows of, in its order, as `nvidia-smi` tells them.

    torch is not asked, since its answer takes some of the device's memory.
    """
    fields = "name,memory.total,compute_cap,driver_version"
    table = output_of("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits")
    rows = [line.split(", ") for line in (table or "").splitlines()]
    return [
        {
            "name": name,
            # "[N/A]" where memory is shared with the host
            "memory": int(mebibytes) << 20 if mebibytes.isdigit() else None,
            "capability": capability,
            "driver": driver,
        }
        for name, mebibytes, capability, driver in (row for row in rows if len(row) == 4)
    ]


def source_commit(folder: Path = Path(__file__).parents[3]) -> str | None:
    """The commit of the checkout that this runs from, with "-dirty" if files differ from it.

    Args:
        folder: of the checkout.

    Returns:
        None where the package is installed, or there is no git.
    """
    if not (folder / ".git").exists():
        return None
    text = output_of("git", "-C", str(folder), "describe", "--always", "--dirty", "--exclude=*")
    return text and text.strip()


def output_of(*command: str) -> str | None:
    """What a program prints; None if it is not there, fails or takes too long."""
    program = shutil.which(command[0])
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, *command[1:]],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=MOST_SECONDS,
            check=True,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def read_text(path: Path) -> str:
    """The file's text; nothing where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
