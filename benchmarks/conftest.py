"""What the benchmarks share: options, the machine's description, and a summary at the end."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import pytest

from benchmarks.sampling import Say
from folovllm.utils.threads import allowed_cores

SUMMARY = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rounds",
        type=int,
        default=5,
        metavar="N",
        help="benchmarks: samples of each case, taken in turn (default: 5)",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--rounds") < 1:
        raise pytest.UsageError("--rounds must be at least 1")
    config.stash[SUMMARY] = []


@pytest.fixture(scope="session")
def rounds(pytestconfig: pytest.Config) -> int:
    """How many samples to take of each case."""
    return int(pytestconfig.getoption("--rounds"))


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


@pytest.hookimpl(trylast=True)  # below pytest-benchmark's tables
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in terminalreporter.config.stash[SUMMARY]:
        terminalreporter.write_line(line)


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    machine_info["allowed_cores"] = allowed_cores()
    machine_info["kernel"] = platform.release()
    machine_info["memory_bytes"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    machine_info["packages"] = {}
    for package in ("torch", "transformers", "safetensors", "folovllm"):
        try:
            machine_info["packages"][package] = version(package)
        except PackageNotFoundError:  # runs from its sources
            machine_info["packages"][package] = None
