"""Control groups: what a container, a service or a batch job may use of the machine.

Version 2 has one tree for all resources, version 1 one for each controller; many machines have
both. A process is in one group of each tree, and the limits of the groups around it hold, too.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_ESCAPED = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class ControlGroup:
    """A group that this process is in, or one around it.

    Attributes:
        folder: with its files.
        version: 1 or 2.
    """

    folder: Path
    version: int

    def text(self, name: str) -> str | None:
        """The content of a file; None where there is none."""
        try:
            return (self.folder / name).read_text(encoding="ascii", errors="replace").strip()
        except OSError:
            return None

    def number(self, name: str) -> int | None:
        """The number in a file; None where there is none, or it says "max"."""
        text = self.text(name)
        try:
            return None if text is None else int(text)
        except ValueError:
            return None

    def numbers(self, name: str) -> dict[str, int]:
        """The numbers in a file that has a name and a number a line."""
        rows = (line.split() for line in (self.text(name) or "").splitlines())
        return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit()}


def control_groups(controller: str, root: Path = Path("/")) -> list[ControlGroup]:
    """Return the groups of this process and those around them, of both versions.

    A container sees its own group as the outermost; a service or a batch job does not. Folders
    that this process cannot see may be among them: their files are missing.

    Args:
        controller: of version 1: "memory" or "cpu".
        root: where `/proc` and `/sys` are found.
    """
    found = [
        ControlGroup(folder, mount.version)
        for mount in _mounts(controller, root)
        for path in _paths(controller if mount.version == 1 else "", root)
        for folder in _upwards(mount, path)
    ]
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class _Mount:
    """A tree of control groups: its folder, and the path of the group that is shown there."""

    folder: Path
    version: int
    shown: str = "/"


def _mounts(controller: str, root: Path) -> list[_Mount]:
    """The trees that concern a controller; the usual places where the kernel names none."""
    usual = root / "sys/fs/cgroup"
    mounts = [_Mount(usual, 2), _Mount(usual / "unified", 2), _Mount(usual / controller, 1)]
    named = []
    for line in _lines(root / "proc/self/mountinfo"):
        left, _, right = line.partition(" - ")
        shown, folder = (_unescaped(field) for field in left.split()[3:5])
        kind, _, options = [*right.split(maxsplit=2), "", "", ""][:3]
        if kind == "cgroup2" or (kind == "cgroup" and controller in options.split(",")):
            version = 2 if kind == "cgroup2" else 1
            named.append(_Mount(root / folder.lstrip("/"), version, shown))
    return named or mounts


def _paths(controller: str, root: Path) -> list[str]:
    """The groups that this process is in; the outermost one where the kernel names none."""
    rows = (line.split(":", 2) for line in _lines(root / "proc/self/cgroup"))
    return [
        row[2]
        for row in rows
        if len(row) == 3 and controller in row[1].split(",")
        if row[2].startswith("/") and ".." not in row[2].split("/")
    ] or ["/"]


def _upwards(mount: _Mount, path: str) -> Iterator[Path]:
    """The folder of a group and those around it, up to that of the mount.

    Docker mounts the container's own group, and the kernel names it by its path outside.
    """
    group = PurePosixPath(path)
    is_inside = group.is_relative_to(mount.shown)
    parts = group.relative_to(mount.shown if is_inside else "/").parts
    for length in range(len(parts), -1, -1):
        yield mount.folder.joinpath(*parts[:length])


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []


def _unescaped(field: str) -> str:
    r"""A field of `mountinfo`, which has a space as `\040`."""
    return _ESCAPED.sub(lambda found: chr(int(found[1], 8)), field)
