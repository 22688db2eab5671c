"""Makes an empty environment, with pip in it."""

from __future__ import annotations

import importlib.util
import sys
from typing import TYPE_CHECKING

from env import process
from env.installer import explain

if TYPE_CHECKING:
    from pathlib import Path


def create(base: str, place: Path, log: Path, prompt: str = "folovllm") -> None:
    """Make an environment at `place` with the Python `base`, without the network.

    Args:
        base: a Python's executable.
        place: the folder.
        log: for what is printed.
        prompt: what an activated shell shows.

    Raises:
        SetupError: it could not be made.
    """
    # Nox brings virtualenv, which takes a second and needs nothing of `base` but itself; Debian's
    # Python, for one, has no complete `venv` until another package is installed.
    if importlib.util.find_spec("virtualenv"):
        command = [sys.executable, "-m", "virtualenv", "--python", base, "--no-download"]
        command += ["--no-periodic-update"]
    else:
        command = [base, "-m", "venv"]
    try:
        process.run([*command, "--prompt", prompt, str(place)], log)
    except process.CommandFailed as failure:
        raise explain(f"Making an environment with {base}", failure.output, log) from failure
