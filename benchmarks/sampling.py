"""Times that are measured elsewhere, in turn with others, and then given to pytest-benchmark."""

from collections.abc import Callable

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from folovllm.bench.session import Session
from folovllm.errors import FoloVLLMError


class VirtualClock:
    """A timer for pytest-benchmark that goes forward by times that were measured elsewhere."""

    now = 0.0
    __name__ = "virtual_clock"

    def __call__(self) -> float:
        """What pytest-benchmark calls before and after."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Let that much time have passed."""
        self.now += seconds


CLOCK = VirtualClock()


def hand_over(benchmark: BenchmarkFixture, seconds: list[float]) -> None:
    """Give measured times to pytest-benchmark, as if it had measured them.

    The benchmark's timer must be `CLOCK`.
    """
    left = iter(seconds)
    benchmark.pedantic(lambda: CLOCK.advance(next(left)), rounds=len(seconds))


class Suite:
    """What a benchmark measured, and why something of it is missing.

    Args:
        name: of the suite.
        session: where it keeps its measurements.
        measure: does it.
    """

    def __init__(self, name: str, session: Session, measure: Callable[[], None]) -> None:
        """Measure."""
        self._name = name
        self._run = session.run
        self._missing = ""
        try:
            measure()
        except FoloVLLMError as error:
            self._missing = str(error)

    def hand_over(self, benchmark: BenchmarkFixture, case: str, way: str, metric: str) -> None:
        """Give the times of a measurement to pytest-benchmark; skip what was not to be measured."""
        for each in self._run.measurements:
            if each.key == (self._name, case, way, metric):
                benchmark.group = f"{metric}, {case}"
                benchmark.extra_info |= {"limits": each.limits, "parameters": each.parameters}
                hand_over(benchmark, each.samples)
                return
        self.check()
        pytest.skip("not measured: the model does not take it, or something else was asked for")

    def check(self) -> None:
        """Fail if something is missing."""
        if self._missing:
            pytest.fail(self._missing, pytrace=False)
