"""What the benchmarks' commands have in common: options, the session, what is shown at the end."""

import argparse
import sys
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from folovllm.cli.files import check_writable
from folovllm.cli.options import (
    add_command,
    add_settings,
    given_options,
    quieten_log,
    runnable_config,
)
from folovllm.config import BenchConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from folovllm.bench.results import Run
    from folovllm.config.settings import Settings

Suite: TypeAlias = "Callable[..., None]"
"""Measures something, and hands it to the session's `record`. It takes the engine's configuration,
that of all benchmarks, the session, and settings of its own."""

PREFIX = "bench_"
"""Of the names of benchmarks' settings: `bench_rounds` is --rounds and FOLOVLLM_BENCH_ROUNDS."""


def add_suite(
    benchmarks: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    text: str,
    measure: Suite,
    *classes: "type[Settings]",
) -> None:
    """Add a benchmark that takes the engine's options and those of all benchmarks.

    Args:
        benchmarks: what `add_parser` of this package made.
        name: what the user types.
        text: what it measures, for the help.
        measure: does it.
        classes: with settings of its own, whose names begin with `bench_`; they belong into
            `CONFIG_CLASSES`.
    """
    parser = add_command(benchmarks, name, text)
    add_settings(parser, (BenchConfig, *classes), PREFIX)
    parser.set_defaults(run=partial(run_suite, measure, classes))


def run_suite(
    measure: Suite, classes: "Sequence[type[Settings]]", arguments: argparse.Namespace
) -> int:
    """Measure, keep the results where `--json` says, and show them; 0 when all was measured.

    What was measured before an error or Ctrl-C is kept and shown, too.

    Raises:
        ConfigError: an option is wrong.
        BenchError: something could not be measured.
    """
    own = [each(**given_options(arguments, [each])) for each in classes]
    options = BenchConfig(**given_options(arguments, [BenchConfig]))
    if options.bench_html:
        from folovllm.bench.report import require_plots

        require_plots()
    check_writable("--html", options.bench_html)
    config = runnable_config(arguments)
    quieten_log()
    from folovllm.bench.session import Session, device_limits, settings_of

    settings = settings_of(config, rounds=options.bench_rounds)
    session = Session(settings, options.bench_json, lambda: device_limits(config), say)
    try:
        with session:
            measure(config, options, session, *own)
    finally:
        if session.run.measurements:
            show(session.run, options.bench_html)
    return 0


def say(line: str) -> None:
    """Show progress, apart from the results."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def show(run: "Run", html: "Path | None") -> None:
    """Print a run's table, and write its report where asked for.

    Raises:
        BenchError: the report cannot be written.
    """
    from folovllm.bench.report import write_html
    from folovllm.bench.summary import render_text

    sys.stdout.write(render_text(run))
    sys.stdout.flush()
    if html:
        write_html(run, html)
