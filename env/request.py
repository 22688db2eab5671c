"""What the user asks of the set-up: the arguments after `nox -s setup --`."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from env.errors import SetupError

if TYPE_CHECKING:
    from collections.abc import Sequence

TORCH_CHOICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class Request:
    """What was asked for. `None` means: as the environment that is there, else the default."""

    python: str | None = None
    torch: str | None = None
    recreate: bool = False


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Raise instead of leaving the process: nox has to end its session properly."""
        raise SetupError(f"{message}\n{self.format_usage().strip()}")


def parse(arguments: Sequence[str]) -> Request:
    """Read the arguments after `--`.

    Raises:
        SetupError: an argument is unknown or has a value that it can't have.
    """
    parser = _Parser(prog="nox -s setup --", allow_abbrev=False)
    parser.add_argument("--python", metavar="X.Y", help="Python version, such as 3.12")
    parser.add_argument(
        "--torch", choices=TORCH_CHOICES, help="torch build; auto: cuda if there is an NVIDIA GPU"
    )
    parser.add_argument("--recreate", action="store_true", help="build anew even if up to date")
    given = parser.parse_args(list(arguments))
    if given.python is not None and not re.fullmatch(r"\d+\.\d+(\.\d+)?", given.python):
        parser.error(f"--python takes a version such as 3.12, not {given.python!r}")
    return Request(python=given.python, torch=given.torch, recreate=given.recreate)
