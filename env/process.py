"""Runs the long commands of the set-up: output to a log, a sign of life on a terminal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path
    from types import FrameType

_TICK = 0.5  # seconds between two looks at the log
_GRACE = 5  # seconds that a child gets to end by itself


class CommandFailed(Exception):  # noqa: N818 - a result that callers explain, not yet an error
    """A command ended with another code than 0; `output` is all that it printed."""

    def __init__(self, command: Sequence[str], code: int, output: str) -> None:
        """Keep what is needed to explain the failure."""
        super().__init__(f"{' '.join(command)} ended with code {code}")
        self.output = output


def run(command: Sequence[str], log: Path, variables: Mapping[str, str] | None = None) -> str:
    """Run a command with its output going to the end of `log`; return that output.

    The child writes to the file itself, so what it said is there even if we are killed. It is
    ended when we are interrupted.

    Raises:
        CommandFailed: it ended with another code than 0.
    """
    with log.open("ab") as sink:
        sink.write(f"\n$ {' '.join(command)}\n".encode())
        sink.flush()
        start = sink.tell()
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env=clean_environment(variables),
        )
        try:
            code = _wait(child, log)
        finally:
            _end(child)
    with log.open("rb") as source:
        source.seek(start)
        output = source.read().decode(errors="replace")
    if code:
        raise CommandFailed(command, code, output)
    return output


def clean_environment(variables: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment less what would lead a child out of its own."""
    leading_out = {"PYTHONPATH", "PYTHONHOME", "PIP_USER", "PIP_TARGET", "PIP_PREFIX"}
    kept = {name: value for name, value in os.environ.items() if name not in leading_out}
    return {**kept, "PIP_NO_INPUT": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", **(variables or {})}


@contextmanager
def ending_cleanly() -> Iterator[None]:
    """Make SIGTERM unwind the stack as Ctrl-C does, so that children end and leftovers go."""

    def leave(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - as `signal` calls it
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _wait(child: subprocess.Popen[bytes], log: Path) -> int:
    """Wait for the child; on a terminal show its last line and the time meanwhile."""
    if not sys.stdout.isatty():
        return child.wait()
    start = time.monotonic()
    while child.returncode is None:
        with suppress(subprocess.TimeoutExpired):
            child.wait(_TICK)
        line = f"    {time.monotonic() - start:4.0f} s  {_last_line(log)}"
        # The line, "erase to its end", back to its start: what follows is written over it.
        print(f"{line[: os.get_terminal_size().columns - 1]}\x1b[K", end="\r", flush=True)
    print("\x1b[K", end="", flush=True)
    return child.returncode


def _last_line(log: Path) -> str:
    with log.open("rb") as source:
        source.seek(max(0, log.stat().st_size - 2000))
        lines = source.read().decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is not None:
        return
    child.terminate()
    try:
        child.wait(_GRACE)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
