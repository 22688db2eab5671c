"""Whose turn it is to step the engine."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, get_ident


class Turn:
    """A lock that one thread at a time holds.

    To take it a second time in the same thread is an error that says so, where a plain lock
    would wait for ever.
    """

    def __init__(self) -> None:
        """Make one that nobody holds."""
        self._lock = Lock()
        self._owner: int | None = None

    def is_mine(self) -> bool:
        """Whether this thread holds it."""
        # Ctrl-C may have left the owner's name behind, but never the lock.
        return self._owner == get_ident() and self._lock.locked()

    def refuse_twice(self) -> None:
        """Refuse to wait for what this thread has.

        Raises:
            RuntimeError: this thread has it already.
        """
        if self.is_mine():
            raise RuntimeError(
                "the engine was asked to step, or to shut down, within its own step: a callback "
                "may add and abort requests only"
            )

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Wait for it, and give it back in the end.

        Raises:
            RuntimeError: this thread has it already.
        """
        self.refuse_twice()
        with self._lock:  # the lock's own, which Ctrl-C cannot interrupt half-way
            self._owner = get_ident()
            try:
                yield
            finally:
                self._owner = None

    @contextmanager
    def within(self, seconds: float) -> Iterator[bool]:
        """Wait for it no longer than `seconds`; gives whether it was taken.

        Raises:
            RuntimeError: this thread has it already.
        """
        self.refuse_twice()
        if not self._lock.acquire(timeout=seconds):
            yield False
            return
        try:
            self._owner = get_ident()
            yield True
        finally:
            self._owner = None
            self._lock.release()
