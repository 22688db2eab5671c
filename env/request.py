"""What the user asks of the set-up: the arguments after `nox -s setup --`."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from env import accelerators
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
    accelerators: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    build: bool = False
    require: bool = False
    dry_run: bool = False


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
    parser.add_argument(
        "--with",
        dest="accelerators",
        metavar="NAME",
        action="append",
        default=[],
        help="an optional accelerator; it stays until it is taken out",
    )
    parser.add_argument(
        "--without", metavar="NAME", action="append", default=[], help="take one out again"
    )
    parser.add_argument("--build", action="store_true", help="compile what has no wheel")
    parser.add_argument("--require", action="store_true", help="fail where one would be skipped")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done")
    given = parser.parse_args(list(arguments))
    if given.python is not None and not re.fullmatch(r"\d+\.\d+(\.\d+)?", given.python):
        parser.error(f"--python takes a version such as 3.12, not {given.python!r}")
    wanted, unwanted = _named(given.accelerators), _named(given.without)
    both = [name for name in wanted if name in unwanted]
    if both:
        parser.error(f"{both[0]} is asked for both with and without")
    return Request(
        python=given.python,
        torch=given.torch,
        recreate=given.recreate,
        accelerators=wanted,
        without=unwanted,
        build=given.build,
        require=given.require,
        dry_run=given.dry_run,
    )


def _named(given: Sequence[str]) -> tuple[str, ...]:
    """Return the names of accelerators, each once; one argument may name several (`a,b`)."""
    names = [name for each in given for name in each.split(",")]
    return tuple(dict.fromkeys(accelerators.find(name).name for name in names))
