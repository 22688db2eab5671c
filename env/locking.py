"""How uv is called to make the lock, so that the same cut-off date gives the same lock."""

from __future__ import annotations

import argparse
import datetime as dt
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

from env.errors import SetupError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_HEADER = "nox -s lock -- --until {}"
_COMPILE = ("uv", "pip", "compile", "--quiet")
_PROJECT = ("pyproject.toml", "--group", "dev")
_COMMON = ("--config-file", "env/uv.toml", "--no-emit-package", "torch")


def cut_off(arguments: Sequence[str], lock: Path) -> str:
    """Return the date that newer releases are left out from.

    It is the one after `--until`, else the one in the lock's header: so adding a dependency
    moves nothing else.

    Raises:
        SetupError: there is no such date.
    """
    parser = argparse.ArgumentParser(prog="nox -s lock --", allow_abbrev=False)
    parser.add_argument("--until", metavar="YYYY-MM-DD", help="leave out later releases")
    given = parser.parse_args(list(arguments)).until or _recorded(lock)
    try:
        return dt.date.fromisoformat(given).isoformat()
    except ValueError as error:
        raise SetupError(
            f"--until takes a date such as 2026-11-14, not {given!r}"
            if given
            else f"{lock} records no date. Give one: nox -s lock -- --until 2026-11-14"
        ) from error


def lock_command(until: str, output: Path, asked: Path | None = None) -> list[str]:
    """Return the call of uv that locks for every supported Python and system into `output`.

    Args:
        until: the cut-off date.
        output: the lock to write.
        asked: a file of requirements to lock instead of the project's.
    """
    source = [str(asked)] if asked else _PROJECT
    return [
        *(
            *_COMPILE,
            *source,
            *_COMMON,
            "--universal",
            "--python-version",
            "3.10",
            "--generate-hashes",
        ),
        *("--exclude-newer", until, "--custom-compile-command", _HEADER.format(until)),
        *("--output-file", str(output)),
    ]


def minimums_command(until: str, python: str, output: Path) -> list[str]:
    """Return the call of uv that resolves the lowest versions which pyproject.toml allows."""
    return [
        *(
            *_COMPILE,
            *_PROJECT,
            *_COMMON,
            "--resolution",
            "lowest-direct",
            "--python-version",
            python,
        ),
        *("--exclude-newer", until, "--output-file", str(output)),
    ]


def index_variables() -> dict[str, str]:
    """Return pip's index and certificates as uv wants to be told them.

    Pip's further indexes and wheel folders are left out: what one machine has must not get into
    the lock.
    """
    wanted = {"index-url": "UV_DEFAULT_INDEX", "cert": "SSL_CERT_FILE"}
    found = {variable: _pip_setting(name) for name, variable in wanted.items()}
    return {variable: value for variable, value in found.items() if value}


def _pip_setting(name: str) -> str:
    from_variable = os.environ.get("PIP_" + name.upper().replace("-", "_"))
    if from_variable:
        return from_variable
    command = [sys.executable, "-m", "pip", "config", "get", f"global.{name}"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _recorded(lock: Path) -> str:
    text = lock.read_text(encoding="utf-8") if lock.is_file() else ""
    hit = re.search(re.escape(_HEADER.format("")) + r"(\S+)", text)
    return hit[1] if hit else ""
