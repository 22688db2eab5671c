"""`folovllm bench compare`: two runs side by side, and whether the later one is good enough."""

import argparse
import re
import sys
from pathlib import Path

from folovllm.cli.options import add_plain_command

RESULTS = Path("benchmarks/results")
"""Where `nox -s bench` keeps its runs."""


def add_parser(benchmarks: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    text = "compare two runs: faster, slower or within noise, row by row"
    parser = add_plain_command(benchmarks, "compare", text)
    parser.add_argument(
        "earlier", metavar="A", help='folder of the earlier run, or "last": the newest before B'
    )
    parser.add_argument(
        "later", metavar="B", help=f'folder of the later run, or "last": the newest in {RESULTS}'
    )
    parser.add_argument(
        "--fail-over",
        metavar="SHARE",
        type=share,
        help="end with 1 if something is slower by more than that, beyond noise, such as 10%%",
    )
    parser.add_argument(
        "--other-machine", action="store_true", help="compare even runs of different machines"
    )
    parser.set_defaults(run=run)


def share(text: str) -> float:
    """Read a percentage: "10%" is 0.1.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?%", text.strip())
    if not found:
        raise argparse.ArgumentTypeError(f"a percentage such as 10%, got {text!r}")
    return float(found[1]) / 100


def run(arguments: argparse.Namespace) -> int:
    """Print the comparison; 1 if a row is past the limit, else 0.

    Raises:
        BenchError: a run cannot be read, they are of different machines, or have nothing in common.
    """
    from folovllm.bench.compare import compare_runs, find_run
    from folovllm.bench.results import BenchError, read_run
    from folovllm.bench.summary import comparison_text
    from folovllm.bench.wording import change, percent

    later = find_run(arguments.later, RESULTS)
    folder = later if later.is_dir() else later.parent
    earlier = find_run(arguments.earlier, folder.absolute().parent, before=later)
    comparison = compare_runs(
        read_run(earlier), read_run(later), other_machine=arguments.other_machine
    )
    sys.stdout.write(comparison_text(comparison))
    if not comparison.rows:
        raise BenchError("the runs have measured nothing in common")
    if arguments.fail_over is None:
        return 0
    past = comparison.past(arguments.fail_over)
    limit = percent(arguments.fail_over)
    for row in past:
        name, ratio = ", ".join(row.later.key), change(row.change.ratio)
        sys.stdout.write(f"past the limit of {limit}: {name}: {ratio}\n")
    return 1 if past else 0
