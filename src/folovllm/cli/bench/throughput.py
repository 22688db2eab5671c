"""`folovllm bench throughput`: requests that are there at once, and who is done with them when."""

import argparse
from typing import TYPE_CHECKING

from folovllm.bench_config import RequestsConfig, ThroughputConfig
from folovllm.cli.bench.common import add_suite, run_suite
from folovllm.cli.options import given_options

if TYPE_CHECKING:
    from folovllm.bench.session import Session
    from folovllm.config import BenchConfig, EngineConfig


def add_parser(benchmarks: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    parser = add_suite(
        benchmarks,
        "throughput",
        "measure requests that are there at once, beside transformers' generate",
        RequestsConfig,
        ThroughputConfig,
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure; 0 when all of it was."""
    requests = RequestsConfig(**given_options(arguments, [RequestsConfig]))
    own = ThroughputConfig(**given_options(arguments, [ThroughputConfig]))

    def measure(config: "EngineConfig", options: "BenchConfig", session: "Session") -> None:
        from folovllm.bench import suites

        suites.throughput(config, options, session, requests, own)

    return run_suite(arguments, measure)
