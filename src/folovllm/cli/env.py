"""`folovllm env`: what this machine is, what it reaches, and which settings hurt."""

import argparse
import sys

from folovllm.cli.checks import add_json_option, print_checks, write_report
from folovllm.cli.files import check_writable
from folovllm.cli.options import add_plain_command

WIDTHS = (9, 18)


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    text = "show what this machine is and reaches, and which settings hurt"
    parser = add_plain_command(commands, "env", text)
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print one line a subject; nothing that it finds is an error."""
    check_writable("--json", arguments.json)
    from folovllm.diagnostics.cpu import CpuReport
    from folovllm.machine.facts import machine_facts

    facts = machine_facts()
    checks = print_checks(CpuReport(facts).run(), WIDTHS)
    for gpu in facts["gpus"]:
        sys.stdout.write(f"GPU: {gpu['name']}; `folovllm verify-cuda` judges it\n")
    write_report(arguments.json, {"schema": 1, "machine": facts}, checks)
    return 0
