"""uv as a second way to the CPU build of torch: it knows PyTorch's own index by itself."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from env import process
from env.errors import SetupError
from env.installer import explain

if TYPE_CHECKING:
    from pathlib import Path

    from env.installer import Installer

PINNED = "uv==0.13.9"

# Quick to give up, as that index is out of reach on many machines; and with the system's
# certificates, as behind a company's proxy.
_VARIABLES = {"UV_HTTP_RETRIES": "1", "UV_SYSTEM_CERTS": "1", "UV_NO_PROGRESS": "1"}


class Uv:
    """uv in a folder of its own, got by pip when it is first needed."""

    def __init__(self, pip: Installer, python: Path, folder: Path, log: Path) -> None:
        """Take the environment's pip and Python, a folder for uv, and the log."""
        self._pip, self._folder, self._log = pip, folder, log
        # --no-config: a user's own index for uv is not what is meant here.
        self._install = [str(folder / "bin" / "uv"), "pip", "install", "--no-config"]
        self._install += ["--python", str(python), "--torch-backend", "cpu", "--no-deps", "-r"]

    def has_cpu_torch(self, file: Path) -> bool:
        """Tell whether uv finds the build that `file` requires, without fetching it."""
        try:
            self._pip.install("Getting uv", "--no-deps", "--target", str(self._folder), PINNED)
            process.run([*self._install, str(file), "--dry-run"], self._log, _VARIABLES)
        except (SetupError, process.CommandFailed):
            return False  # why stands in the log; the caller says what can be done
        return True

    def install_cpu_torch(self, file: Path) -> None:
        """Install the build that `file` requires.

        Raises:
            SetupError: uv failed.
        """
        try:
            process.run([*self._install, str(file)], self._log, _VARIABLES)
        except process.CommandFailed as failure:
            raise explain("Installing torch", failure.output, self._log) from failure

    def remove(self) -> None:
        """Take uv out of the environment again."""
        shutil.rmtree(self._folder, ignore_errors=True)
