"""`folovllm bench`: one file a benchmark, and what they have in common."""

from typing import TYPE_CHECKING

from folovllm.cli.bench import compare, latency, load, report, sweep, throughput

if TYPE_CHECKING:
    import argparse

PARTS = (load, latency, throughput, sweep, report, compare)
"""The benchmarks, each a module here with an `add_parser`, in the order of the help."""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand and its own subcommands."""
    text = "measure how fast models load and run here, beside the machine's limits"
    parser = commands.add_parser("bench", help=text, description=text[:1].upper() + text[1:] + ".")
    benchmarks = parser.add_subparsers(title="benchmarks", required=True, metavar="BENCHMARK")
    for part in PARTS:
        part.add_parser(benchmarks)
