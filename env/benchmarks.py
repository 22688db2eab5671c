"""What the user asks of `nox -s bench`, and the commands that it comes to."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, NoReturn

from env.errors import SetupError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

DEFAULT = ("load", "latency", "generate", "sweep")
"""What is run where no benchmark is named; the others are by name only."""

OTHER_MACHINE, LAST = "--other-machine", "last"

RESULTS = "benchmarks/results"
OWN_RESULTS = f"{RESULTS}/pytest-benchmark.json"
"""Where pytest-benchmark writes its results; they go into the run's folder afterwards."""


@dataclass(frozen=True)
class Request:
    """What was asked for.

    Attributes:
        measure: pytest's arguments; None to measure nothing and only compare.
        compare: runs to compare: none, one with what is measured now, or two.
        judge: options of the comparison.
    """

    measure: list[str] | None
    compare: list[str]
    judge: list[str]

    def comparison(self, new: Path | None) -> list[str]:
        """What `folovllm bench` compares by; nothing where there are no two runs."""
        runs = self._runs(new)
        return ["compare", *runs, *self.judge] if len(runs) == 2 else []

    def compared_report(self, new: Path | None) -> list[str]:
        """What `folovllm bench` makes the new run's report by, with the comparison in it."""
        if new is None or len(self._runs(new)) != 2:
            return []
        other = [option for option in self.judge if option == OTHER_MACHINE]
        return ["report", str(new), "--against", *self.compare, *other]

    def _runs(self, new: Path | None) -> list[str]:
        return [*self.compare, *([str(new)] if new and self.compare else [])]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Raise instead of leaving the process: nox has to end its session properly."""
        raise SetupError(f"{message}\n{self.format_usage().strip()}")


def parse(root: Path, arguments: Sequence[str]) -> Request:
    """Read the arguments after `--`: names of benchmarks first, then options.

    Args:
        root: the checkout.
        arguments: what is not for the comparison goes to pytest.

    Raises:
        SetupError: there is no such benchmark, or the arguments contradict each other.
    """
    parser = _Parser(
        prog="nox -s bench --",
        usage="%(prog)s [BENCHMARK ...] [--compare RUN [RUN]] [--fail-over 10%%] [OPTION ...]",
        allow_abbrev=False,
        add_help=False,  # pytest's, which has the options of the benchmarks
    )
    parser.add_argument("--compare", nargs="+", default=[])
    parser.add_argument("--fail-over")
    parser.add_argument(OTHER_MACHINE, action="store_true")
    given, rest = parser.parse_known_args(list(arguments))
    known = {path.stem.removeprefix("test_") for path in (root / "benchmarks").glob("test_*.py")}
    names = list(takewhile(lambda argument: not argument.startswith("-"), rest))
    options = rest[len(names) :]
    if unknown := sorted(set(names) - known):
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    if len(given.compare) > 2 or known & set(given.compare):
        parser.error("--compare takes one run or two; benchmarks are named before the options")
    if len(given.compare) == 2 and rest:
        parser.error(f"--compare with two runs measures nothing: leave out {' '.join(rest)}")
    for run in given.compare:  # before minutes of measuring
        if not (runs(root) if run == LAST else (root / run).exists()):
            where = f"yet in {RESULTS}" if run == LAST else f"at {run}"
            parser.error(f"--compare: there is no run {where}")
    judge = ["--fail-over", given.fail_over] if given.fail_over else []
    judge += [OTHER_MACHINE] if given.other_machine else []
    if judge and not given.compare:
        parser.error(f"{judge[0]} says how to compare: name a run with --compare")
    if len(given.compare) == 2:
        return Request(None, given.compare, judge)
    files = [f"benchmarks/test_{name}.py" for name in names or [n for n in DEFAULT if n in known]]
    return Request([*files, f"--benchmark-json={OWN_RESULTS}", *options], given.compare, judge)


def runs(root: Path) -> set[Path]:
    """The folders of all runs, by their path from the checkout."""
    return {path.parent.relative_to(root) for path in (root / RESULTS).glob("*/results.json")}


def collect(root: Path, before: set[Path]) -> Path | None:
    """The folder of the run since then, with pytest-benchmark's results; None if there is none."""
    own = root / OWN_RESULTS
    new = max(runs(root) - before, default=None)
    if own.is_file():  # empty where pytest-benchmark did not come that far
        if new is None or not own.stat().st_size:
            own.unlink()
        else:
            own.replace(root / new / own.name)
    return new
