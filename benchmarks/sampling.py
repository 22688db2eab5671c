"""Times that are measured elsewhere, in turn with others, and then given to pytest-benchmark."""

from collections.abc import Callable
from typing import TypeAlias

from pytest_benchmark.fixture import BenchmarkFixture

Say: TypeAlias = Callable[[str], None]
"""Prints a line at once."""


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
