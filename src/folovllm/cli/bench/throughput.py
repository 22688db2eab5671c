"""`folovllm bench throughput`: requests that are there at once, and who is done with them when."""

from typing import TYPE_CHECKING

from folovllm.cli.bench.common import add_suite
from folovllm.config.bench import RequestsConfig, ThroughputConfig

if TYPE_CHECKING:
    import argparse

    from folovllm.bench.session import Session
    from folovllm.config import BenchConfig, EngineConfig


def add_parser(benchmarks: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    text = "measure requests that are there at once, beside transformers' generate"
    add_suite(benchmarks, "throughput", text, _measure, RequestsConfig, ThroughputConfig)


def _measure(
    config: "EngineConfig",
    options: "BenchConfig",
    session: "Session",
    requests: RequestsConfig,
    own: ThroughputConfig,
) -> None:
    from folovllm.bench import suites

    suites.throughput(config, options, session, requests, own)
