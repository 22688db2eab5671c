"""`folovllm verify`: does this installation really run a model?"""

import argparse
import sys
from typing import TYPE_CHECKING

from folovllm.cli.checks import (
    add_json_option,
    check_writable,
    passed,
    print_checks,
    write_report,
)
from folovllm.cli.options import add_command, runnable_config

if TYPE_CHECKING:
    from collections.abc import Iterable

    from folovllm.diagnostics.checks import Check


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    text = "check packages, torch and device, load a model and let it answer"
    parser = add_command(commands, "verify", text)
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print one line a check and a summary; 0 when all is well, else 1."""
    check_writable(arguments.json)
    config = runnable_config(arguments)
    from folovllm.diagnostics.verify import Verification

    checks = show(Verification(config).run())
    write_report(arguments.json, {"schema": 1, "ok": passed(checks)}, checks)
    return 0 if passed(checks) else 1


def show(checks: "Iterable[Check]") -> "list[Check]":
    """Print each check as it is done, then a summary, and return them all."""
    done = print_checks(checks)
    good = sum(check.status == "ok" for check in done)
    verdict = "this installation works" if passed(done) else "this installation does not work"
    sys.stdout.write(f"{good} of {len(done)} checks passed: {verdict}\n")
    return done
