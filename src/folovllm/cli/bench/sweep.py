"""`folovllm bench sweep`: let requests arrive at one rate after another, to the knee and beyond."""

from typing import TYPE_CHECKING

from folovllm.cli.bench.common import add_suite
from folovllm.config.bench import RequestsConfig, SweepConfig

if TYPE_CHECKING:
    import argparse

    from folovllm.bench.session import Session
    from folovllm.config import BenchConfig, EngineConfig


def add_parser(benchmarks: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    text = "let requests arrive at one rate after another, to the knee and beyond"
    add_suite(benchmarks, "sweep", text, _measure, RequestsConfig, SweepConfig)


def _measure(
    config: "EngineConfig",
    options: "BenchConfig",
    session: "Session",
    requests: RequestsConfig,
    own: SweepConfig,
) -> None:
    from folovllm.bench import suites

    suites.sweep(config, options, session, requests, own)
