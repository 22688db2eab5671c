"""Whose turn it is to step the engine."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import RLock, get_ident


class Turn:
    """A lock that one thread at a time holds, and that a thread cannot take twice.

    To take it twice would wait for ever with a plain lock; here it is an error that says so. A
    reentrant lock is below it because that one knows whose it is: wherever Ctrl-C interrupts,
    giving back what was not taken does no harm, and what was taken is given back.
    """

    def __init__(self) -> None:
        """Make one that nobody holds."""
        self._lock = RLock()
        self._owner: int | None = None

    def is_mine(self) -> bool:
        """Whether this thread holds it."""
        return self._owner == get_ident()

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

    def __enter__(self) -> None:
        """Wait for it.

        Raises:
            RuntimeError: this thread has it already.
        """
        self.refuse_twice()
        try:
            self._lock.acquire()
            self._owner = get_ident()
        except BaseException:  # Ctrl-C
            self._give_back()
            raise

    def __exit__(self, *_: object) -> None:
        """Give it back."""
        self._give_back()

    @contextmanager
    def within(self, seconds: float) -> Iterator[bool]:
        """Wait for it no longer than `seconds`; gives whether it was taken.

        Raises:
            RuntimeError: this thread has it already.
        """
        self.refuse_twice()
        try:
            if taken := self._lock.acquire(timeout=seconds):
                self._owner = get_ident()
            yield taken
        finally:
            self._give_back()

    def _give_back(self) -> None:
        if self.is_mine():
            self._owner = None
        with suppress(RuntimeError):  # it was not taken
            self._lock.release()
