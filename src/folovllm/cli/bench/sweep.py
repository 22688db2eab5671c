"""`folovllm bench sweep`: let requests arrive at one rate after another, to the knee and beyond."""

import argparse
from typing import TYPE_CHECKING

from folovllm.bench_config import RequestsConfig, SweepConfig
from folovllm.cli.bench.common import add_suite, run_suite
from folovllm.cli.options import given_options

if TYPE_CHECKING:
    from folovllm.bench.session import Session
    from folovllm.config import BenchConfig, EngineConfig


def add_parser(benchmarks: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    parser = add_suite(
        benchmarks,
        "sweep",
        "let requests arrive at one rate after another, to the knee and beyond",
        RequestsConfig,
        SweepConfig,
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure; 0 when all of it was."""
    requests = RequestsConfig(**given_options(arguments, [RequestsConfig]))
    own = SweepConfig(**given_options(arguments, [SweepConfig]))

    def measure(config: "EngineConfig", options: "BenchConfig", session: "Session") -> None:
        from folovllm.bench import suites

        suites.sweep(config, options, session, requests, own)

    return run_suite(arguments, measure)
