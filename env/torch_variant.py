"""Which build of torch: the CPU one or a CUDA one, and who can get it here.

The same name and version is, depending on the system and on where pip looks, a CPU build of
200 MB or a CUDA build of several GB. `torch-cpu.txt` and `torch-cuda.txt` tell them apart.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import Requirement

from env.errors import SetupError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

# Free space that a set-up needs, in bytes: the environment and the downloads on their way in.
NEEDED_SPACE = {"cpu": 3 * 10**9, "cuda": 14 * 10**9}


@dataclass(frozen=True)
class Wish:
    """The variant to have (`cpu` or `cuda`) and why."""

    variant: str
    why: str


@dataclass(frozen=True)
class Choice:
    """The build to install: its variant, who gets it (`pip` or `uv`), and why."""

    variant: str
    getter: str
    why: str


def wish(asked: str, gpu: str | None) -> Wish:
    """Turn what was asked (`auto`, `cpu`, `cuda`) into a variant; `gpu` as from `nvidia_gpu`."""
    if asked != "auto":
        return Wish(asked, "asked for")
    return Wish("cuda", gpu) if gpu else Wish("cpu", "no NVIDIA GPU here")


def nvidia_gpu() -> str | None:
    """Return what shows that this machine has an NVIDIA GPU to use, or None.

    A driver or a toolkit without a device (a container without `--gpus`, a build machine) is
    none, so only device nodes count, and the driver's own word where there are no such nodes
    (WSL).
    """
    nodes = sorted(Path("/dev").glob("nvidia[0-9]*"))
    if nodes:
        return f"NVIDIA GPU at {nodes[0]}"
    tool = shutil.which("nvidia-smi")
    if tool:
        try:
            said = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=30)  # noqa: PLW1510 - its code is looked at
        except (OSError, subprocess.TimeoutExpired):
            return None
        if said.returncode == 0 and said.stdout.startswith("GPU "):
            return f"nvidia-smi lists {said.stdout.splitlines()[0].split(' (')[0]}"
    return None


def requirement(file: Path) -> Requirement | None:
    """Return the line of a variant's file that holds on this system, or None."""
    lines = file.read_text(encoding="utf-8").splitlines()
    for line in lines:
        if line and not line.startswith("#"):
            found = Requirement(line)
            if not found.marker or found.marker.evaluate():
                return found
    return None


def choose(
    wanted: Wish, file: Path, offered: Iterable[str], uv_can_get_cpu: Callable[[], bool]
) -> Choice | None:
    """Choose who gets the build; None if nobody can.

    Never turns to another build: that could be gigabytes which nobody asked for.

    Args:
        wanted: the variant.
        file: the variant's requirement file.
        offered: the versions of torch that pip would install.
        uv_can_get_cpu: tells whether uv, which knows PyTorch's own index, has the CPU build.

    Raises:
        SetupError: there is no such build for this system.
    """
    needed = requirement(file)
    if needed is None:
        raise SetupError(
            f"There is no {wanted.variant} build of torch for this system ({file} names none).\n"
            "Leave the choice to the set-up: nox -s setup -- --torch auto"
        )
    matching = [each for each in offered if needed.specifier.contains(each, prereleases=True)]
    if matching:
        return Choice(wanted.variant, "pip", f"{wanted.why}; pip has {matching[0]}")
    if wanted.variant == "cpu" and uv_can_get_cpu():
        return Choice("cpu", "uv", f"{wanted.why}; PyTorch's own index has it")
    return None


def missing(wanted: Wish, file: Path, python: str, others: Sequence[str]) -> SetupError:
    """Return the error for a build that nobody has; `others` are Pythons that it is there for."""
    lines = [
        f"No {wanted.variant} build of torch for Python {python} can be had here.",
        f"({wanted.variant}: {wanted.why}.) Pip finds none where it looks: {requirement(file)}.",
        "What you can do:",
        *(f"  - take a Python that has one:      nox -s setup -- --python {v}" for v in others),
        "  - give pip a folder with a wheel:  PIP_FIND_LINKS=<folder> nox -s setup",
    ]
    if wanted.variant == "cpu":
        lines[1] += " PyTorch's own index is out of reach or has none."
        lines += [
            "  - take the index's plain build (several GB, for CUDA; it runs without a GPU too):",
            "                                     nox -s setup -- --torch cuda",
        ]
    return SetupError("\n".join(lines))
