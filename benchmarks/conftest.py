"""What the benchmarks share: the engine's options, one session for all, and a summary at the end.

The session's results are in `benchmarks/results/<date>-<machine>/`, beside what pytest-benchmark
makes of them itself.
"""

import logging
from pathlib import Path
from typing import Any

import pytest

from folovllm.bench.results import Say
from folovllm.bench.session import Session, device_limits, results_folder, settings_of
from folovllm.cli.options import given_options, option_of, planned_config, runnable_config
from folovllm.config import ENGINE_CLASSES, BenchConfig, EngineConfig
from folovllm.config.bench import SUITE_CLASSES
from folovllm.config.settings import Settings
from folovllm.errors import FoloVLLMError
from folovllm.machine.threads import allowed_cores

SUMMARY = pytest.StashKey[list[str]]()
SESSION = pytest.StashKey[Session]()
BENCH = pytest.StashKey[BenchConfig]()
OWN = pytest.StashKey[dict[type[Settings], Any]]()
NOT_HERE = ("bench_json", "bench_html")
"""What a command is told in options, and what here has its place."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the engine's options and those of `folovllm bench`."""
    group = parser.getgroup("benchmarks", "benchmarks: as `folovllm bench` takes them")
    fields = {name: f for cls in ENGINE_CLASSES.values() for name, f in cls.model_fields.items()}
    for cls in (BenchConfig, *SUITE_CLASSES):
        fields |= {name: f for name, f in cls.model_fields.items() if name not in NOT_HERE}
    for name, field in fields.items():
        flag, how = option_of(name, field, "bench_")
        group.addoption(flag, **how)
    group.addoption(
        "--results",
        type=Path,
        default=Path(__file__).with_name("results"),
        metavar="FOLDER",
        help="folder for the results, each run in one of its own (default: benchmarks/results)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Check the options before anything is measured."""
    try:
        config.stash[BENCH] = BenchConfig(**given_options(config.option, [BenchConfig]))
        config.stash[OWN] = {
            cls: cls(**given_options(config.option, [cls])) for cls in SUITE_CLASSES
        }
        planned_config(config.option)
    except FoloVLLMError as error:
        raise pytest.UsageError(str(error)) from error
    config.stash[SUMMARY] = []
    logging.getLogger("folovllm").setLevel(logging.WARNING)


@pytest.fixture(scope="session")
def engine_config(pytestconfig: pytest.Config) -> EngineConfig:
    """The engine to measure, by options, variables and defaults; the default model is fetched."""
    try:
        return runnable_config(pytestconfig.option)
    except FoloVLLMError as error:
        pytest.exit(f"{error}", returncode=1)


@pytest.fixture(scope="session")
def bench_config(pytestconfig: pytest.Config) -> BenchConfig:
    """The settings of the benchmarks themselves."""
    return pytestconfig.stash[BENCH]


@pytest.fixture(scope="session")
def own(pytestconfig: pytest.Config) -> dict[type[Settings], Any]:
    """The settings of single benchmarks, by their class."""
    return pytestconfig.stash[OWN]


@pytest.fixture(scope="session")
def session(
    pytestconfig: pytest.Config, engine_config: EngineConfig, bench_config: BenchConfig, say: Say
) -> Session:
    """The run that all benchmarks of this call are part of."""
    settings = settings_of(engine_config, rounds=bench_config.bench_rounds)
    root: Path = pytestconfig.getoption("--results")
    made = Session(
        settings,
        lambda facts: results_folder(root, facts),
        lambda: device_limits(engine_config),
        say,
    )
    try:
        made.begin()
    except FoloVLLMError as error:
        pytest.exit(f"{error}", returncode=1)
    pytestconfig.stash[SESSION] = made
    return made


@pytest.fixture(scope="session")
def rounds(bench_config: BenchConfig) -> int:
    """How many samples to take of each case, where a suite has no number of its own."""
    return bench_config.bench_rounds or 5


@pytest.fixture(scope="session")
def summary(pytestconfig: pytest.Config) -> list[str]:
    """Lines to print at the very end, below the tables."""
    return pytestconfig.stash[SUMMARY]


@pytest.fixture(scope="session")
def threads() -> int:
    """Compute threads for every side: the cores that this process may use."""
    return allowed_cores()


@pytest.fixture(scope="session")
def say(pytestconfig: pytest.Config) -> Say:
    """Prints while samples are taken, which takes minutes in which pytest says nothing."""
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    reporter = pytestconfig.pluginmanager.getplugin("terminalreporter")

    def write(line: str) -> None:
        with capture.global_and_fixture_disabled():
            reporter.ensure_newline()
            reporter.write_line(line)

    return write


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """End the run; it stays partial when a benchmark failed or somebody pressed Ctrl-C."""
    run = session.config.stash.get(SESSION, None)
    if run is not None:
        run.end(complete=exitstatus == pytest.ExitCode.OK)


@pytest.hookimpl(trylast=True)  # below pytest-benchmark's tables
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what there is to say, and where the results are."""
    for line in terminalreporter.config.stash[SUMMARY]:
        terminalreporter.write_line(line)
    run = terminalreporter.config.stash.get(SESSION, None)
    if run is not None:
        terminalreporter.write_line(f"results: {run.place}")


def pytest_benchmark_update_machine_info(config: Any, machine_info: dict[str, Any]) -> None:
    """The same facts in pytest-benchmark's own file."""
    run = config.stash.get(SESSION, None)
    if run is not None:
        machine_info["folovllm"] = run.run.machine
