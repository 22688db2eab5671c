"""`folovllm verify-cuda`: is there a CUDA device, does it work, and as well as it should?"""

import argparse
import sys

from folovllm.cli.checks import add_json_option, print_checks, write_report
from folovllm.cli.files import check_writable
from folovllm.cli.options import add_plain_command

WIDTHS = (9, 20)


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    text = (
        "judge CUDA on this machine; ends with 0: all well, 1: broken, 2: works, but degraded, "
        "3: no CUDA device here"
    )
    parser = add_plain_command(commands, "verify-cuda", text)
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print what it comes to, one line a check, and a summary."""
    check_writable("--json", arguments.json)
    from folovllm.diagnostics.cuda import VERDICTS, CudaVerification, exit_code
    from folovllm.diagnostics.cuda_readers import gather_facts
    from folovllm.machine.facts import machine_facts

    verification = CudaVerification(gather_facts())
    headline = verification.headline()
    sys.stdout.write(f"{headline}\n")
    checks = print_checks(verification.run(), WIDTHS, headline)
    code = exit_code(checks)
    sys.stdout.write(f"{VERDICTS[code]}\n")
    report = {
        "schema": 1,
        "exit_code": code,
        "verdict": VERDICTS[code],
        "headline": headline,
        "machine": machine_facts(),
    }
    write_report(arguments.json, report, checks)
    return code
