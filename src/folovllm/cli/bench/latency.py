"""`folovllm bench latency`: measure the wait for the first token and for the next one."""

import argparse
from typing import TYPE_CHECKING

from folovllm.bench_config import LatencyConfig
from folovllm.cli.bench.common import add_suite, run_suite
from folovllm.cli.options import given_options

if TYPE_CHECKING:
    from folovllm.bench.session import Session
    from folovllm.config import BenchConfig, EngineConfig


def add_parser(benchmarks: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    parser = add_suite(
        benchmarks,
        "latency",
        "measure the wait for the first token and for the next one",
        LatencyConfig,
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure; 0 when all of it was."""
    own = LatencyConfig(**given_options(arguments, [LatencyConfig]))

    def measure(config: "EngineConfig", options: "BenchConfig", session: "Session") -> None:
        from folovllm.bench import suites

        suites.latency(config, options, session, own)

    return run_suite(arguments, measure)
