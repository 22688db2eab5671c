"""What a machine must have for an accelerator: found out before anything is fetched or built."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from env import torch_variant
from env.errors import SetupError
from env.plan import INSIDE
from env.process import clean_environment

if TYPE_CHECKING:
    from env.accelerators import Capability, Inside

# flash-attn's own estimate: a job with four threads takes 8 to 9 GB (its setup.py).
JOB_MEMORY = 9 * 10**9
BUILD_SPACE = 8 * 10**9
# The code that flash-attn compiles for a major capability; a minor one runs its major's.
_ARCHITECTURES = {8: "80", 9: "90", 10: "100", 12: "120"}


@dataclass(frozen=True)
class Facts:
    """What an environment and the machine around it are.

    Attributes:
        python: the environment's Python, such as `3.12.4`.
        torch: its torch's version.
        cuda: the CUDA that torch was built with, such as `13.0`; None for a CPU build.
        capability: of the device that torch sees first; None if it sees none.
        headers: whether Python's headers are there to compile with.
        memory: that can still be taken, as the control group allows, in bytes.
        gpu: what shows that there is an NVIDIA GPU, whether torch sees it or not.
        nvcc: the release of the compiler on the path, such as `13.0`.
        ninja: whether ninja is to be had.
        space: free on the disk of the environments, in bytes.
        cores: that this process may use.
    """

    python: str
    torch: str
    cuda: str | None
    capability: Capability | None
    headers: bool
    memory: int
    gpu: str | None
    nvcc: str | None
    ninja: bool
    space: int
    cores: int

    @property
    def build_variables(self) -> dict[str, str]:
        """What tells flash-attn to compile for this GPU alone, in as many jobs as there's room."""
        major, minor = self.capability or (0, 0)
        jobs = max(1, min(self.cores // 2, self.memory // JOB_MEMORY))
        return {
            "FLASH_ATTN_CUDA_ARCHS": _ARCHITECTURES.get(major, ""),
            "TORCH_CUDA_ARCH_LIST": f"{major}.{minor}",
            "MAX_JOBS": str(jobs),
            # Else its setup.py fetches somebody's binary from where pip was not told to look.
            "FLASH_ATTENTION_FORCE_BUILD": "TRUE",
        }


def look(environment: Path, root: Path) -> Facts:
    """Ask an environment's Python and the machine.

    Raises:
        SetupError: that Python or its torch does not work.
    """
    python = environment / "bin" / "python"
    try:
        said = subprocess.run(
            [str(python), "-I", str(root / INSIDE), "facts"],
            capture_output=True,
            text=True,
            check=True,
            env=clean_environment(),
        )
    except (OSError, subprocess.CalledProcessError) as error:
        detail = getattr(error, "stderr", None) or str(error)
        raise SetupError(f"Asking torch in {environment} failed:\n{detail.strip()}") from error
    facts = json.loads(said.stdout)
    capability = facts.pop("capability")
    return Facts(
        **facts,
        capability=(capability[0], capability[1]) if capability else None,
        gpu=torch_variant.nvidia_gpu(),
        nvcc=_nvcc(),
        ninja=bool(shutil.which("ninja") or (environment / "bin" / "ninja").exists()),
        space=shutil.disk_usage(environment).free,
        cores=_cores(),
    )


def why_not(wanted: Inside, facts: Facts) -> str | None:
    """Say why an accelerator can't run here; None if it can."""
    if facts.cuda is None:
        if facts.gpu is None:
            return f"there is no NVIDIA GPU here, and torch {facts.torch} is a CPU build"
        return (
            f"torch {facts.torch} is a CPU build, though there is a GPU ({facts.gpu}): "
            f"nox -s setup -- --torch cuda --with {wanted.name}"
        )
    if facts.capability is None:
        seen = facts.gpu or "there is no NVIDIA GPU here"
        return f"torch {facts.torch} sees no CUDA device ({seen})"
    if facts.capability < wanted.capability:
        have, need = _dotted(facts.capability), _dotted(wanted.capability)
        return f"it needs {wanted.hardware} (compute capability {need}); this GPU has {have}"
    return None


def why_not_compile(facts: Facts) -> str | None:
    """Say everything that is missing to compile flash-attn here; None if nothing is."""
    major = facts.capability[0] if facts.capability else 0
    wanted = (facts.cuda or "").partition(".")[0]
    missing = []
    if major not in _ARCHITECTURES:
        missing.append(f"flash-attn has no code for compute capability {major}.x")
    if facts.nvcc is None:
        missing.append(f"there is no nvcc (CUDA toolkit {wanted}.x, on PATH or in CUDA_HOME)")
    elif facts.nvcc.partition(".")[0] != wanted:
        missing.append(f"nvcc is of CUDA {facts.nvcc} and torch of CUDA {facts.cuda}")
    if not facts.ninja:
        missing.append("there is no ninja (your system's packages have it)")
    if not facts.headers:
        missing.append(f"the headers of Python {facts.python} are missing (python3-dev)")
    if facts.space < BUILD_SPACE:
        missing.append(
            f"{facts.space / 1e9:.1f} GB of disk are free, {BUILD_SPACE / 1e9:.0f} needed"
        )
    if facts.memory < JOB_MEMORY:
        missing.append(
            f"{facts.memory / 1e9:.1f} GB of memory may be used, {JOB_MEMORY / 1e9:.0f} needed"
        )
    return "; ".join(missing) or None


def _nvcc() -> str | None:
    """Return the release of the nvcc that a build would use (torch prefers CUDA_HOME's)."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    tool = str(Path(home) / "bin" / "nvcc") if home else shutil.which("nvcc")
    if not tool:
        return None
    try:
        said = subprocess.run([tool, "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    hit = re.search(r"release (\d+\.\d+)", said.stdout)
    return hit[1] if hit else None


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _dotted(capability: Capability) -> str:
    return ".".join(map(str, capability))
