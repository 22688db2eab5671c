"""Reads the lock (`env/requirements.lock`) and tells whether it still fits `pyproject.toml`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from packaging.markers import Marker
from packaging.utils import canonicalize_name

from env.errors import SetupError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from packaging.requirements import Requirement

_PIN = re.compile(
    r"^(?P<name>[\w.-]+)==(?P<version>[^\s;\\]+)\s*(?:;\s*(?P<marker>[^\\]+))?", re.MULTILINE
)


@dataclass(frozen=True)
class Pin:
    """One locked package: `name==version`, where `marker` holds."""

    name: str
    version: str
    marker: str

    def applies(self, python: str) -> bool:
        """Tell whether the pin is for this machine with Python `python` (such as `3.11.7`)."""
        return not self.marker or Marker(self.marker).evaluate(_surroundings(python))


def read(path: Path, python: str) -> dict[str, str]:
    """Return the locked versions by normalised name, as they apply to Python `python`.

    Raises:
        SetupError: there is no lock, or nothing is locked in it.
    """
    if not path.is_file():
        raise SetupError(f"There is no lock at {path}. Make one: nox -s lock")
    found = [
        Pin(canonicalize_name(hit["name"]), hit["version"], (hit["marker"] or "").strip())
        for hit in _PIN.finditer(path.read_text(encoding="utf-8"))
    ]
    if not found:
        raise SetupError(f"The lock {path} locks nothing. Make it anew: nox -s lock")
    return {pin.name: pin.version for pin in found if pin.applies(python)}


def check_fits(
    locked: dict[str, str], requirements: Iterable[Requirement], python: str, path: Path
) -> None:
    """Check that the lock satisfies each requirement but torch's, which the lock leaves out.

    Raises:
        SetupError: it doesn't; lists every requirement that it misses.
    """
    missed = []
    for requirement in requirements:
        name = canonicalize_name(requirement.name)
        wanted = not requirement.marker or requirement.marker.evaluate(_surroundings(python))
        if name == "torch" or not wanted:
            continue
        version = locked.get(name)
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            missed.append(f"  {requirement}: the lock has {version or 'none'}")
    if missed:
        raise SetupError(
            f"The lock {path} does not fit pyproject.toml:\n"
            + "\n".join(missed)
            + "\nMake it anew and commit it: nox -s lock"
        )


def _surroundings(python: str) -> dict[str, str]:
    """Return the marker variables in which the target differs from the Python that runs nox."""
    return {"python_version": ".".join(python.split(".")[:2]), "python_full_version": python}
