"""An environment with the oldest versions that `pyproject.toml` says will do."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from env import torch_variant
from env.creation import create
from env.errors import SetupError
from env.installer import Installer
from env.project import Project

if TYPE_CHECKING:
    from pathlib import Path


def build(root: Path, requirements: Path, base: str) -> Path:
    """Build it beside `requirements`, the resolved lowest versions; return its Python.

    Raises:
        SetupError: the lowest versions can't be installed, or not together.
    """
    place = requirements.with_suffix("")
    log = requirements.with_suffix(".log")
    shutil.rmtree(place, ignore_errors=True)
    create(base, place, log)
    python = place / "bin" / "python"
    pip = Installer(python, log)
    pip.install("Installing the lowest versions", "--no-deps", "-r", str(requirements))
    pip.install("Installing torch", "--no-deps", _torch(root, pip))
    pip.install(
        "Installing folovllm",
        *("--no-build-isolation", "--no-deps", "--editable", str(root)),
    )
    print(pip.check(), flush=True)
    return python


def _torch(root: Path, pip: Installer) -> str:
    """Return the torch to install: the lowest if there is a CPU build of it, else the locked."""
    bound = next(each for each in Project(root).requirements if each.name == "torch")
    lowest = min(Version(each.version) for each in bound.specifier if each.operator == ">=")
    locked = torch_variant.requirement(root / "env" / "torch-cpu.txt")
    if locked is None:
        raise SetupError("There is no CPU build of torch for this system.")
    exact = SpecifierSet(str(locked.specifier).replace(_version(locked.specifier), str(lowest)))
    if any(exact.contains(each) for each in pip.versions("torch")):
        print(f"torch: the lowest, {exact}", flush=True)
        return f"torch{exact}"
    print(f"torch: no CPU build of {exact} here, so the locked one", flush=True)
    return f"torch{locked.specifier}"


def _version(specifier: SpecifierSet) -> str:
    return next(iter(specifier)).version.partition("+")[0]
