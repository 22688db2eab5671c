"""Checks on the terminal and in a JSON file, the same way for every command that has some."""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from folovllm.cli.files import unwritable
from folovllm.diagnostics.checks import Check
from folovllm.utils.files import UnusableFileError, write_text


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """Let the command write its results to a file as well."""
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the results there")


def print_checks(
    checks: Iterable[Check], widths: tuple[int, int] = (8, 13), headline: str | None = None
) -> list[Check]:
    """Print each check as it is done, its advice below it, and return them all.

    Args:
        checks: as they are done.
        widths: of the columns with the status and the name.
        headline: what was printed before; with one, its advice is not repeated, and neighbours
            that are skipped for the same reason share a line.
    """
    done: list[Check] = []
    shown = _noted(checks, done)
    status, name = widths
    for check in shown if headline is None else _folded(shown):
        line = f"{check.status:<{status}}{check.name:<{name}}{check.seconds:6.2f} s  "
        line += f"{check.detail}\n"
        if check.advice and check.advice not in (headline or ""):
            line += f"{'':{status + name + 10}}to do: {check.advice}\n"
        sys.stdout.write(line)
        sys.stdout.flush()
    return done


def _noted(checks: Iterable[Check], done: list[Check]) -> Iterator[Check]:
    for check in checks:
        done.append(check)
        yield check


def _folded(checks: Iterable[Check]) -> Iterator[Check]:
    for reason, group in groupby(checks, lambda c: c.detail if c.status == "skipped" else None):
        if reason is None:
            yield from group
            continue
        first, *others = group
        names = ", ".join(check.name for check in (first, *others))
        many = Check(f"{1 + len(others)} checks", "skipped", f"{reason}: {names}", 0.0)
        yield many if others else first


def passed(checks: Iterable[Check]) -> bool:
    """Whether all is well."""
    return all(check.status == "ok" for check in checks)


def write_report(path: Path | None, report: dict[str, Any], checks: Iterable[Check]) -> None:
    """Write the checks as JSON, after what else the report has.

    Raises:
        ConfigError: nothing can be written there.
    """
    if path is None:
        return
    content = {**report, "checks": [check.as_json() for check in checks]}
    try:
        write_text(path, json.dumps(content, indent=2) + "\n")
    except UnusableFileError as error:
        raise unwritable("--json", path, error) from error
