"""Rendering chat templates in a process of their own, which can be ended.

A chat template is a program. It comes with a checkpoint or even with a request, and it may loop
for ever, recurse, or ask for all memory. In this process nothing can stop that: Python cannot
interrupt one long operation of its own (`'a' * 10**10`, `9**9**9`, a comparison of lists that
hold each other a hundred times), and a sandbox that counts them has a hole for each that was
forgotten. The kernel forgets none. So templates render in one small process, which Jinja alone
is imported into (20 MB, started in 0.1 s with the first conversation), under limits of memory and
processor time that it sets itself (`template_worker`). A conversation crosses a pipe both ways,
which costs 0.1 ms. What meets a limit is a `ValueError` that says so, the process is replaced,
and the engine never notices.
"""

import json
import marshal
import signal
import subprocess
import sys
import threading
import weakref
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from typing import Any, NoReturn

from folovllm.errors import FoloVLLMError

WALL_SECONDS = 10.0
"""How long to wait for an answer. A template ends after 2 seconds of a processor at most;
more pass where other processes need the processors too."""

MAX_REQUEST_BYTES = 32 * 2**20
_MAX_REPLY_BYTES = 256 * 2**20
_START_SECONDS = 60.0

# The process finds the packages where this one does, whatever was done to `sys.path`.
_PROGRAM = """\
import sys, json
sys.path[:] = json.loads(sys.argv[2])
from folovllm.text.template_worker import Connection, serve
serve(Connection(int(sys.argv[1])))
"""

_ADVICE = "; correct what it gets, or pass another chat_template"


class TemplateProcessError(FoloVLLMError, RuntimeError):
    """The process that renders templates cannot be started."""


class TemplateProcess:
    """A process that renders chat templates; several threads may use it, one at a time.

    It is started when it is first needed and ends with this object.
    """

    def __init__(self) -> None:
        """Start nothing yet."""
        self._lock = threading.Lock()
        self._worker: _Worker | None = None

    def detect(self, template: str) -> str:
        """Return the form of content that a template wants: "string" or "openai".

        Raises:
            ValueError: it is no valid Jinja, or it exceeds the limits.
        """
        return self._ask("detect", template)

    def render(self, template: str, names: dict[str, Any]) -> str:
        """Render a template.

        Args:
            template: its text.
            names: what it may refer to, in plain types alone.

        Raises:
            ValueError: the template is no valid Jinja, fails, refuses what it gets or exceeds
                the limits; the message says what happened and where.
            TemplateProcessError: the process cannot be started.
        """
        return self._ask("render", template, names)

    def close(self) -> None:
        """End the process; a later call starts another."""
        with self._lock:
            self._end()

    def _ask(self, *request: Any) -> str:
        message = _pack(request)
        with self._lock:
            if self._worker is None or self._worker.has_ended():
                self._worker = _Worker()
            reply = self._worker.ask(message)
            if reply[:1] == b"=":
                return reply[1:].decode(errors="surrogatepass")
            failure = json.loads(reply[1:])
            if failure["kind"] in ("time", "memory", "crash"):
                self._end()
        raise ValueError(_explain(failure))

    def _end(self) -> None:
        if self._worker is not None:
            self._worker.end()
            self._worker = None


class _Worker:
    """One process and the connection to it."""

    def __init__(self) -> None:
        self._connection, theirs = Pipe()
        arguments = [sys.executable, "-I", "-c", _PROGRAM, str(theirs.fileno())]
        try:
            process = subprocess.Popen(
                [*arguments, json.dumps(sys.path)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        except OSError as error:
            raise TemplateProcessError(
                f"the process that renders chat templates cannot be started: {error}"
            ) from error
        finally:
            theirs.close()
        self.process = process
        self.end = weakref.finalize(self, _end, process, self._connection)
        if self._receive(_START_SECONDS) is None:
            self.end()
            raise TemplateProcessError(
                "the process that renders chat templates ended when it was started, with code "
                f"{process.returncode}; standard error may say why"
            )

    def has_ended(self) -> bool:
        """Whether the process is gone, which somebody else did if it is."""
        return self.process.poll() is not None

    def ask(self, message: bytes) -> bytes:
        """Return the reply, or the failure of a process that did not reply."""
        with suppress(OSError):  # it ended
            self._connection.send_bytes(message)
        reply = self._receive(WALL_SECONDS)
        if reply is not None:
            return reply
        self.end()
        code = self.process.returncode
        # The kernel's end, or ours: it was still running.
        kind = "time" if code in (-signal.SIGXCPU, -signal.SIGKILL) else "crash"
        return b"!" + json.dumps({"kind": kind, "code": code}).encode()

    def _receive(self, seconds: float) -> bytes | None:
        with suppress(OSError, EOFError):  # it ended, or sent more than anybody may
            if self._connection.poll(seconds):
                return self._connection.recv_bytes(_MAX_REPLY_BYTES)
        return None


def _end(process: "subprocess.Popen[bytes]", connection: Connection) -> None:
    connection.close()
    process.kill()
    process.wait()


def _pack(request: tuple[Any, ...]) -> bytes:
    """Marshalled, which keeps every plain type as it is; JSON makes text of a number as key."""
    try:
        message = marshal.dumps(request)
    except ValueError as error:
        _refuse_data(f"are nested too deeply, or hold what is no plain data ({error})", error)
    if len(message) > MAX_REQUEST_BYTES:
        _refuse_data(f"are larger than {MAX_REQUEST_BYTES >> 20} MB")
    return message


def _refuse_data(what: str, cause: Exception | None = None) -> NoReturn:
    raise ValueError(f"the messages, tools and chat_template_kwargs {what}") from cause


def _explain(failure: dict[str, Any]) -> str:
    """Say what went wrong, where, and what to do."""
    line = failure.get("line")
    where = f" at line {line}" if line else ""
    match failure["kind"]:
        case "refusal":
            return f"the chat template refuses the messages: {failure['message']}"
        case "syntax":
            what = f"is no valid Jinja{where}: {failure['message']}"
        case "time":
            what = "takes longer than a template may (a second of a processor), and was ended"
        case "memory":
            what = "needs more memory than a template may have (160 MB)"
        case "crash":
            what = f"made the process that renders it end with code {failure['code']}"
        case "recursion":
            what = f"recurses too deeply{where}"
        case _:
            what = f"fails{where} with {failure['message']}"
    return f"the chat template {what}{_ADVICE}"
