"""Finds the Pythons of this machine and chooses the one to build the environment with."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from env.errors import SetupError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from packaging.specifiers import SpecifierSet

# Torch has wheels for CPython with the GIL only. In a virtual environment the base executable
# is what counts: an environment must not hang on another one that may be removed.
_ASK = """
import json, sys, sysconfig
usable = sys.implementation.name == "cpython" and not sysconfig.get_config_var("Py_GIL_DISABLED")
version = "{}.{}.{}".format(*sys.version_info[:3])
print(json.dumps([usable, version, getattr(sys, "_base_executable", None) or sys.executable]))
"""


@dataclass(frozen=True)
class Interpreter:
    """A Python that an environment can be built with; `version` is such as `3.11.7`."""

    executable: str
    version: str

    def is_version(self, wanted: str) -> bool:
        """Tell whether this is Python `wanted` (such as `3.11` or `3.11.7`)."""
        return f"{self.version}.".startswith(f"{wanted}.")


def choose(wanted: str | None, kept: str | None, supported: SpecifierSet) -> Interpreter:
    """Choose the Python: the version wanted, else the one `kept`, else the one that runs nox.

    Args:
        wanted: a version such as `3.12`, or None.
        kept: the executable that the environment in place was built with, or None.
        supported: the versions that the project runs on.

    Raises:
        SetupError: that Python isn't here or isn't supported; lists those that are.
    """
    if wanted is not None:
        match = next((each for each in _discover() if each.is_version(wanted)), None)
        if match and supported.contains(match.version):
            return match
        problem = f"Python {wanted} is not supported" if match else f"No Python {wanted} found"
    else:
        running = (kept and _ask(kept)) or _ask(sys.executable)
        if running and supported.contains(running.version):
            return running
        problem = f"The Python that runs nox ({sys.version.split()[0]}) is not supported"
    raise SetupError(f"{problem}: FoloVLLM needs Python {supported}.\n{_advice(supported)}")


def usable_versions(supported: SpecifierSet) -> list[str]:
    """Return the supported minor versions found on this machine, such as `["3.10", "3.12"]`."""
    versions = {each.version for each in _discover() if supported.contains(each.version)}
    minors = {tuple(map(int, version.split(".")[:2])) for version in versions}
    return [f"{major}.{minor}" for major, minor in sorted(minors)]


def _advice(supported: SpecifierSet) -> str:
    usable = usable_versions(supported)
    if usable:
        return (
            f"Found here: {', '.join(usable)}. For example: nox -s setup -- --python {usable[-1]}"
        )
    return "None was found here. Install one (python.org, your system's packages, pyenv or uv)."


def _discover() -> Iterator[Interpreter]:
    """Yield each usable Python once, the one that runs nox first."""
    seen = set()
    for path in _candidates():
        real = os.path.realpath(path)
        if real not in seen:
            seen.add(real)
            found = _ask(path)
            if found:
                yield found


def _candidates() -> Iterator[str]:
    """Yield paths that may be a Python: nox's own, then PATH, pyenv's, uv's."""
    yield sys.executable
    for folder in map(Path, os.get_exec_path()):
        # Pyenv's shims are slow to ask, and what they stand for is found below.
        names = sorted(folder.glob("python3*")) if folder.name != "shims" else []
        yield from (str(each) for each in names if re.fullmatch(r"python3(\.\d+)?", each.name))
    home = Path.home()
    pyenv = Path(os.environ.get("PYENV_ROOT") or home / ".pyenv")
    data = Path(os.environ.get("XDG_DATA_HOME") or home / ".local" / "share")
    for pattern_root in (pyenv / "versions", data / "uv" / "python"):
        yield from map(str, sorted(pattern_root.glob("*/bin/python3")))


def _ask(executable: str) -> Interpreter | None:
    """Ask a Python what it is; None if it doesn't answer or torch can't run on it."""
    try:
        answer = subprocess.run(
            [executable, "-I", "-c", _ASK], capture_output=True, text=True, timeout=20, check=True
        )
        usable, version, base = json.loads(answer.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None  # a pyenv shim without its Python, a broken install, a Python 2
    return Interpreter(base, version) if usable else None
