"""The process that renders chat templates for `template_process`: `python -m` of this module.

It answers one request after another over a connection, within limits that it sets itself:

- memory: `RLIMIT_AS`, so that what asks for more gets a `MemoryError`. (macOS does not enforce
  it; there only the time is limited.)
- time: seconds of its own processor, so that a busy machine fails no honest template. A timer
  ends what runs in Python; what runs in C for long, as the power of two large numbers does, the
  kernel ends with the process (`RLIMIT_CPU`).
- depth: Python's own limit of recursion.

A process that met a limit of memory or time is not used again.
"""

import json
import marshal
import resource
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import Template, TemplateSyntaxError

from folovllm.text.content_format import detect_content_format
from folovllm.text.template_environment import (
    FILE_NAME,
    RefusedMessagesError,
    compile_template,
    make_environment,
)

MEMORY_BYTES = 160 * 2**20
"""How much more memory a process may take than it has when it begins."""

CPU_SECONDS = 0.9
"""How long one template may keep a processor busy."""

_MAX_MESSAGE = 500
_NUM_COMPILED = 16


class OutOfTimeError(BaseException):
    """The template took too long. No `Exception`, so that nothing on the way catches it."""


class Renderer:
    """Renders templates, and remembers those that were compiled last."""

    def __init__(self) -> None:
        """Make the environment."""
        self._environment = make_environment()
        self._compile = lru_cache(_NUM_COMPILED)(self._compile_new)

    def detect(self, source: str) -> str:
        """Return the form of content that a template wants."""
        return detect_content_format(self._environment.parse(source))

    def render(self, source: str, names: dict[str, Any]) -> str:
        """Render a template with values for its names."""
        return self._compile(source).render(names)

    def _compile_new(self, source: str) -> Template:
        return compile_template(self._environment, source)


def serve(connection: Connection) -> None:
    """Answer requests until the other side is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the engine, which ends us
    signal.signal(signal.SIGPROF, _end)
    _limit_memory()
    renderer = Renderer()
    connection.send_bytes(b"")  # ready
    while True:
        try:
            what, *arguments = marshal.loads(connection.recv_bytes())  # noqa: S302 - from our parent
        except EOFError:
            return
        connection.send_bytes(_answer(getattr(renderer, what), *arguments))


def _answer(function: Any, *arguments: Any) -> bytes:
    """Call a function; return `=` and its text, or `!` and the JSON of what went wrong."""
    try:
        with _limit_time():
            text = function(*arguments)
            return b"=" + str(text).encode(errors="surrogatepass")
    except OutOfTimeError:
        failure: dict[str, Any] = {"kind": "time"}
    except MemoryError:
        failure = {"kind": "memory"}
    except RecursionError as error:
        failure = {"kind": "recursion", "line": _find_line(error)}
    except TemplateSyntaxError as error:
        failure = {"kind": "syntax", "line": error.lineno, "message": _abridge(error.message)}
    except RefusedMessagesError as error:
        failure = {"kind": "refusal", "message": _abridge(error)}
    except Exception as error:  # noqa: BLE001 - it is somebody else's program, and raises anything
        message = f"{type(error).__name__}: {_abridge(error)}"
        failure = {"kind": "failure", "line": _find_line(error), "message": message}
    return b"!" + json.dumps(failure).encode()


@contextmanager
def _limit_time() -> Iterator[None]:
    # Whole seconds are the kernel's unit: it ends the process up to one of them later.
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = int(time.process_time() + CPU_SECONDS) + 1
    soft = soft if hard == resource.RLIM_INFINITY else min(soft, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _end(*_: object) -> NoReturn:
    raise OutOfTimeError


def _limit_memory() -> None:
    with suppress(OSError, ValueError):  # no Linux, or a lower limit was set by somebody else
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
        limit = pages * resource.getpagesize() + MEMORY_BYTES
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def _abridge(error: object) -> str:
    text = str(error)
    return text if len(text) <= _MAX_MESSAGE else f"{text[:_MAX_MESSAGE]}..."


def _find_line(error: BaseException) -> int | None:
    """Return the template's line that raised an error."""
    frames = traceback.walk_tb(error.__traceback__)
    lines = [line for frame, line in frames if frame.f_code.co_filename == FILE_NAME]
    return lines[-1] if lines else None


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
