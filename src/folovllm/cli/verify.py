"""`folovllm verify`: does this installation really run a model?"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from folovllm.cli.files import check_writable, unwritable
from folovllm.cli.options import add_command, runnable_config

if TYPE_CHECKING:
    from collections.abc import Iterable

    from folovllm.diagnostics.verify import Check


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    text = "check packages, torch and device, load a model and let it answer"
    parser = add_command(commands, "verify", text)
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the results there")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print one line a check and a summary; 0 when all is well, else 1."""
    if arguments.json:
        check_writable("--json", arguments.json)
    config = runnable_config(arguments)
    from folovllm.diagnostics.verify import Verification

    checks = show(Verification(config).run())
    if arguments.json:
        _write(arguments.json, checks)
    return 0 if passed(checks) else 1


def show(checks: "Iterable[Check]") -> "list[Check]":
    """Print each check as it is done, then a summary, and return them all."""
    done = []
    for check in checks:
        done.append(check)
        line = f"{check.status:<8}{check.name:<13}{check.seconds:6.2f} s  {check.detail}\n"
        sys.stdout.write(line)
        sys.stdout.flush()
    good = sum(check.status == "ok" for check in done)
    verdict = "this installation works" if passed(done) else "this installation does not work"
    sys.stdout.write(f"{good} of {len(done)} checks passed: {verdict}\n")
    return done


def passed(checks: "Iterable[Check]") -> bool:
    """Whether all is well."""
    return all(check.status == "ok" for check in checks)


def _write(path: Path, checks: "list[Check]") -> None:
    content = {"schema": 1, "ok": passed(checks), "checks": [asdict(check) for check in checks]}
    try:
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise unwritable("--json", path, error) from error
