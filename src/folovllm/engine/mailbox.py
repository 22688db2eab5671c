"""How the world tells the stepping thread what to do: letters in a box."""

from collections.abc import Iterator
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TypeAlias

from folovllm.request import Request


@dataclass(frozen=True, slots=True)
class Add:
    """Queue a new request."""

    request: Request


@dataclass(frozen=True, slots=True)
class Abort:
    """End a request, if it is not finished."""

    request: Request


@dataclass(frozen=True, slots=True)
class Wake:
    """Do nothing: ends a wait for letters."""


Letter: TypeAlias = Add | Abort | Wake


class Mailbox:
    """Letters in the order in which they were posted.

    Any thread may post at any moment, also from a finalizer or a signal handler that interrupts
    this very class: `SimpleQueue.put` is made for that, where a lock of our own could be held by
    the code that was interrupted.
    """

    def __init__(self) -> None:
        """Make an empty box."""
        self._letters: SimpleQueue[Letter] = SimpleQueue()

    def __bool__(self) -> bool:
        """Whether there are letters."""
        return not self._letters.empty()

    def post(self, letter: Letter) -> None:
        """Leave a letter; never waits."""
        self._letters.put(letter)

    def open(self) -> Iterator[Letter]:
        """Take out the letters, also those that come meanwhile."""
        try:
            while True:
                yield self._letters.get_nowait()
        except Empty:
            return

    def wait(self) -> Letter:
        """Take out the next letter, and wait for one if there is none."""
        return self._letters.get()
