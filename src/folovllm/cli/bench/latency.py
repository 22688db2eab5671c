"""`folovllm bench latency`: measure the wait for the first token and for the next one."""

from typing import TYPE_CHECKING

from folovllm.cli.bench.common import add_suite
from folovllm.config.bench import LatencyConfig

if TYPE_CHECKING:
    import argparse

    from folovllm.bench.session import Session
    from folovllm.config import BenchConfig, EngineConfig


def add_parser(benchmarks: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    text = "measure the wait for the first token and for the next one"
    add_suite(benchmarks, "latency", text, _measure, LatencyConfig)


def _measure(
    config: "EngineConfig",
    options: "BenchConfig",
    session: "Session",
    own: LatencyConfig,
) -> None:
    from folovllm.bench import suites

    suites.latency(config, options, session, own)
