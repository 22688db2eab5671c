"""What `pyproject.toml` says that concerns the environment."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from env.errors import SetupError

if TYPE_CHECKING:
    from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class Project:
    """The parts of one `pyproject.toml` that determine the environment."""

    def __init__(self, root: Path) -> None:
        """Read `pyproject.toml` in `root`.

        Raises:
            SetupError: it isn't TOML.
        """
        path = root / "pyproject.toml"
        try:
            self._table: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        except tomllib.TOMLDecodeError as error:
            raise SetupError(f"{path}: {error}. Put it right.") from error

    @property
    def requires_python(self) -> SpecifierSet:
        """The Python versions that the project runs on."""
        return SpecifierSet(self._table["project"]["requires-python"])

    @property
    def requirements(self) -> list[Requirement]:
        """Everything that stands in `.venv` by name: run-time dependencies and group `dev`."""
        names = [*self._table["project"]["dependencies"], *self._group("dev")]
        return [Requirement(name) for name in names]

    @property
    def probed_modules(self) -> list[str]:
        """Modules to import when a new environment is tried out."""
        table: dict[str, Any] = self._table.get("tool", {}).get("folovllm", {})
        return list(table.get("probed-modules", []))

    @property
    def determining(self) -> dict[str, Any]:
        """What an environment is made from; a change elsewhere (a linter's rule) is none of it."""
        keys = ("name", "version", "requires-python", "dependencies", "scripts", "entry-points")
        return {
            "build-system": self._table.get("build-system"),
            "dependency-groups": self._table.get("dependency-groups"),
            "project": {key: self._table["project"].get(key) for key in keys},
        }

    def _group(self, name: str) -> list[str]:
        """Return the requirements of one dependency group, its included groups' among them."""
        found: list[str] = []
        for entry in self._table.get("dependency-groups", {}).get(name, []):
            found += [entry] if isinstance(entry, str) else self._group(entry["include-group"])
        return found
