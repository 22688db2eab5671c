"""`folovllm bench load`: time to a model that is ready for its first token."""

from typing import TYPE_CHECKING

from folovllm.cli.bench.common import add_suite

if TYPE_CHECKING:
    import argparse

    from folovllm.bench.session import Session
    from folovllm.config import BenchConfig, EngineConfig


def add_parser(benchmarks: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    text = "time until a model is ready for its first token, from a cold and a warm page cache"
    add_suite(benchmarks, "load", text, _measure)


def _measure(config: "EngineConfig", options: "BenchConfig", session: "Session") -> None:
    from folovllm.bench.load import measure_load

    measure_load(config, options.bench_rounds, session.record, session.say)
