"""How long the parts of some work take."""

import time


class Phases:
    """A stopwatch that is told whenever a part of the work is done.

    Attributes:
        seconds: of each part so far, in the order in which they first ended.
    """

    def __init__(self) -> None:
        """Start."""
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def end(self, part: str) -> None:
        """Count the time since the last part ended, or since the start, as this part's."""
        now = time.perf_counter()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._last
        self._last = now
