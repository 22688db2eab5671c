"""Whether an engine can go on."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from folovllm.engine.failures import describe
from folovllm.errors import EngineDeadError


class Health:
    """Why an engine cannot go on, if it cannot: in this process, or at all."""

    def __init__(self) -> None:
        """Begin well, in the process that makes it."""
        self._process = os.getpid()
        self._reason: str | None = None

    @property
    def is_good(self) -> bool:
        """Whether the engine can go on."""
        return self._reason is None and not self.is_forked

    @property
    def is_forked(self) -> bool:
        """Whether this process was forked from the one that the engine belongs to."""
        return os.getpid() != self._process

    def check(self) -> None:
        """Refuse to go on with an engine that cannot.

        Raises:
            EngineDeadError: it cannot; the message says why.
        """
        if self._reason is not None:
            raise EngineDeadError(self._reason)
        if self.is_forked:
            raise EngineDeadError(
                f"the engine belongs to process {self._process}, which this one was forked from: "
                "make another here, or start processes by multiprocessing's 'spawn'"
            )

    def fail(self, cause: str) -> None:
        """Note that a step left the engine in a state in which it cannot go on."""
        self._reason = f"the engine cannot go on since a step failed: {cause}"

    def end(self) -> None:
        """Note that the engine was shut down, which is no news if it could not go on anyway."""
        self._reason = self._reason or "the engine was shut down"

    @contextmanager
    def keeping_books(self) -> Iterator[None]:
        """Note that the engine cannot go on if an error leaves its records half changed."""
        self.check()
        try:
            yield
        except BaseException as error:
            self.fail(f"{describe(error)}, while it kept its books")
            raise
