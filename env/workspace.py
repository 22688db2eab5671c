"""The folder `.venvs` and the link `.venv`: where environments are built, and which one is used.

An environment embeds its path, so it can't be built elsewhere and moved. Each is built in place
in `.venvs/`, and `.venv` is a link that is switched in one step once the new one has proved good.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from env.errors import SetupError

if TYPE_CHECKING:
    from collections.abc import Iterator

_PREFIX = "main-"  # environments of the set-up; others in .venvs are not its business
_RECORD = "folovllm-environment.json"


class Workspace:
    """The environments of one checkout."""

    def __init__(self, root: Path) -> None:
        """Take the checkout's folder; `.venvs` is made if it isn't there."""
        self.root = root
        self.link = root / ".venv"
        self.folder = root / ".venvs"
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
        """Check that `.venv` is absent or ours.

        Raises:
            SetupError: it is a folder, or a link to somewhere else: someone else's work.
        """
        if self.link.is_symlink():
            ours = self.link.readlink().parent == Path(self.folder.name)
        else:
            ours = not self.link.exists()
        if not ours:
            raise SetupError(
                f"{self.link} was not made by this set-up, so it is left alone.\n"
                f"Move it away or remove it, then run the set-up again: mv {self.link} "
                f"{self.link}-old"
            )

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
        place = self.folder / f"{_PREFIX}{time.time_ns():x}"
        place.mkdir()
        try:
            yield place
        finally:
            self.sweep()

    def switch(self, place: Path, record: dict[str, Any]) -> None:
        """Make `place` the environment in use, in one step. Its record makes it a whole one."""
        (place / _RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        _speak_of_the_link(place, self.link)
        new = self.folder / "new-link"
        new.unlink(missing_ok=True)
        new.symlink_to(place.relative_to(self.root))  # relative to where it is moved to
        new.replace(self.link)

    def sweep(self) -> None:
        """Remove every environment but the one in use: replaced, failed, or of a killed run."""
        used = self.link.readlink().name if self.link.is_symlink() else None
        for place in self.folder.glob(f"{_PREFIX}*"):
            if place.name != used:
                # A killed run's pip may still be writing there; the next sweep gets the rest.
                shutil.rmtree(place, ignore_errors=True)


def _speak_of_the_link(place: Path, link: Path) -> None:
    """Make the activation scripts name the link, so that active shells survive a switch."""
    for script in (place / "bin").glob("activate*"):
        text = script.read_text(encoding="utf-8")
        script.write_text(text.replace(str(place), str(link)), encoding="utf-8")
