"""The folder `.venvs` and the link `.venv`: where environments are built, and which one is used.

An environment embeds its path, so it can't be built elsewhere and moved. Each is built in place
in `.venvs/`, and `.venv` is a link that is switched in one step once the new one has proved good.
An accelerator with an environment of its own has its link in `.venvs/`, under its name.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from env.errors import SetupError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_RECORD = "folovllm-environment.json"


class Workspace:
    """One of a checkout's environments: the one in use, and those being made to replace it."""

    def __init__(self, root: Path, apart: str | None = None) -> None:
        """Take the checkout's folder; `.venvs` is made if it isn't there.

        Args:
            root: the checkout.
            apart: the accelerator whose own environment is meant; None: `.venv`.
        """
        self.root = root
        self.folder = root / ".venvs"
        self.link = self.folder / apart if apart else root / ".venv"
        # Of this environment only: others in .venvs are not its business.
        self.prefix = f"{apart or 'main'}-"
        self.log = self.folder / "setup.log"
        self.report = self.folder / "setup-report.json"
        self.folder.mkdir(exist_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other set-ups of this checkout out; wait, and say so, if one is at work.

        The system lets go of the lock when the process ends, however it ends.
        """
        with (self.folder / "lock").open("a+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                print(f"Another set-up (process {file.read()}) is at work: waiting", flush=True)
                fcntl.flock(file, fcntl.LOCK_EX)
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield

    def check_link(self) -> None:
        """Check that the link is absent or ours.

        Raises:
            SetupError: it is a folder, or a link to somewhere else: someone else's work.
        """
        if self.link.is_symlink():
            ours = self.used is not None and self.used.parent == self.folder
        else:
            ours = not self.link.exists()
        if not ours:
            raise SetupError(
                f"{self.link} was not made by this set-up, so it is left alone.\n"
                f"Move it away or remove it, then run the set-up again: mv {self.link} "
                f"{self.link}-old"
            )

    @property
    def used(self) -> Path | None:
        """The folder of the environment in use, or of one that is gone; None if there is no link.

        Not resolved: this is how the environment's scripts name their Python.
        """
        return self.link.parent / self.link.readlink() if self.link.is_symlink() else None

    def record(self) -> dict[str, Any] | None:
        """Return what the environment in use was made from; None if there is no whole one."""
        try:
            content = (self.link / _RECORD).read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            return None
        record: dict[str, Any] = json.loads(content)
        return record

    @contextmanager
    def new_environment(self) -> Iterator[Path]:
        """Give a folder to build in, removed again unless it was switched to."""
        place = self.folder / f"{self.prefix}{time.time_ns():x}"
        place.mkdir()
        try:
            yield place
        finally:
            self.sweep()

    def clone(self, place: Path) -> None:
        """Make `place` a copy of the environment in use, in a second: its files are shared.

        Pip replaces a file and never writes into one, so what it does in the copy does not show
        in the original. What is written into here has to be a file of its own.
        """
        old = self.link.parent / self.link.readlink()
        for source in old.iterdir():
            if source.is_symlink() or not source.is_dir():
                if source.name != _RECORD:
                    shutil.copy2(source, place, follow_symlinks=False)
            elif source.name != "bin":
                shutil.copytree(*(source, place / source.name), symlinks=True, copy_function=_share)
        shutil.copytree(old / "bin", place / "bin", symlinks=True)
        for script in (place / "bin").iterdir():
            if not script.is_symlink():
                text = script.read_bytes()
                script.write_bytes(text.replace(str(old).encode(), str(place).encode()))

    def remove(self) -> None:
        """Take the environment away."""
        if self.link.is_symlink():
            self.link.unlink()
        self.sweep()

    def switch(self, place: Path, record: dict[str, Any]) -> None:
        """Make `place` the environment in use, in one step. Its record makes it a whole one."""
        (place / _RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        _speak_of_the_link(place, self.link)
        new = self.folder / "new-link"
        new.unlink(missing_ok=True)
        new.symlink_to(place.relative_to(self.link.parent))  # relative to where it is moved to
        new.replace(self.link)

    def sweep(self) -> None:
        """Remove every environment but the one in use: replaced, failed, or of a killed run."""
        for place in self.folder.glob(f"{self.prefix}*"):
            if place != self.used:
                # A killed run's pip may still be writing there; the next sweep gets the rest.
                shutil.rmtree(place, ignore_errors=True)


def _share(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)


def _speak_of_the_link(place: Path, link: Path) -> None:
    """Make the activation scripts name the link, so that active shells survive a switch."""
    for script in (place / "bin").glob("activate*"):
        text = script.read_text(encoding="utf-8")
        script.write_text(text.replace(str(place), str(link)), encoding="utf-8")
