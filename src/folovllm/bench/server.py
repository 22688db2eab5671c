"""Any server with OpenAI's interface, as a target: streamed completions over HTTP.

A thread a request, so that none waits for another, and nothing but the standard library. Token
ids are sent as prompts, and `ignore_eos`, which vLLM, SGLang and llama.cpp know.
"""

import contextlib
import http.client
import json
import threading
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

from folovllm.bench.arrivals import Arrival, Clock, Outcome, WallClock, at_once
from folovllm.bench.results import BenchError
from folovllm.bench.throughput import Way
from folovllm.bench.workloads import Workload

QUIET = 300.0
"""Seconds after which a server that sends nothing is given up."""

_LONGEST_MESSAGE = 300


class _RequestError(Exception):
    """A request failed; the server may serve others."""


class ServerTarget:
    """A server that requests are sent to.

    Args:
        url: where it is: `http://host:port`, with or without `/v1`.
        api_key: sent along, if there is one.
        quiet: seconds after which a server that sends nothing is given up.
        clock: tells the time.

    Attributes:
        name: its host and port.
        model: what it serves, as it says itself.

    Raises:
        BenchError: the address is wrong, or nobody answers there as such a server does.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        quiet: float = QUIET,
        clock: Clock | None = None,
    ) -> None:
        """Ask it for its model."""
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise BenchError(f"a server's address looks like http://localhost:8000, got {url!r}")
        secure = parts.scheme == "https"
        self._connection = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        self._host = parts.hostname
        try:
            self._port = parts.port
        except ValueError as error:
            raise BenchError(f"{url!r} has no valid port: {error}") from error
        self._root = parts.path.rstrip("/").removesuffix("/v1") + "/v1"
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._quiet = quiet
        self._clock = clock or WallClock()
        self.name = parts.netloc.rpartition("@")[2]
        self._gone: str | None = None
        self.model = self._ask_model()

    def run(self, arrivals: Sequence[Arrival]) -> list[Outcome]:
        """See `Target`. Once the server is gone, nothing more is sent."""
        outcomes = [Outcome(arrival.due) for arrival in arrivals]
        threads = []
        start = self._clock.now()
        for arrival, outcome in zip(arrivals, outcomes, strict=True):
            if self._gone is None:
                self._clock.sleep(max(0.0, arrival.due - (self._clock.now() - start)))
            if self._gone is not None:
                outcome.error = f"not sent: {self._gone}"
                continue
            thread = threading.Thread(
                target=self._serve, args=(arrival, outcome, start), daemon=True
            )
            thread.start()
            threads.append(thread)
        for thread in threads:
            thread.join()
        return outcomes

    def check_alive(self) -> None:
        """See `Target`."""
        self._ask_model()

    def _serve(self, arrival: Arrival, outcome: Outcome, start: float) -> None:
        """Send a request and follow its answer."""
        body = {
            "model": self.model,
            "prompt": arrival.prompt,
            "max_tokens": arrival.num_outputs,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        try:
            with self._request("POST", "/completions", body) as response:
                self._follow(response, arrival.num_outputs, outcome, start)
        except _RequestError as error:
            outcome.error = str(error)
        except (OSError, http.client.HTTPException) as error:
            outcome.error = f"{self.name}: {_describe(error)}"
            if isinstance(error, ConnectionRefusedError):
                self._gone = f"the server is gone: {outcome.error}"

    def _follow(
        self, response: http.client.HTTPResponse, asked: int, outcome: Outcome, start: float
    ) -> None:
        """Read the answer's events as they come.

        Raises:
            _RequestError: it is malformed, reports an error, is cut off, or has another number of
                tokens than was asked for.
        """
        reason = usage = None
        for data in _events(response):
            if data == b"[DONE]":
                break
            now = self._clock.now() - start
            event = _parse(data)
            usage = event["usage"] or usage
            for choice in event["choices"]:
                reason = choice.get("finish_reason") or reason
                if choice.get("text") or not reason:  # the last one may bring the reason alone
                    outcome.count(1, now)
        if reason is None:
            raise _RequestError(f"{self.name}: the answer was cut off")
        if outcome.first is None:
            raise _RequestError(f"{self.name}: the answer has no token")
        if usage is not None:  # an event may bring several tokens
            outcome.num_outputs = usage["completion_tokens"]
        if usage is not None and outcome.num_outputs != asked:
            raise _RequestError(
                f"{self.name}: {outcome.num_outputs} of {asked} tokens: what ends earlier takes "
                "less time (does the server know `ignore_eos`?)"
            )
        outcome.finished = True

    @contextlib.contextmanager
    def _request(
        self, method: str, path: str, body: dict[str, Any] | None = None
    ) -> Iterator[http.client.HTTPResponse]:
        """Send a request on a connection of its own.

        Raises:
            _RequestError: the server refuses it.
            OSError: it cannot be reached.
            http.client.HTTPException: it does not speak HTTP.
        """
        connection = self._connection(self._host, self._port, timeout=self._quiet)
        try:
            content = None if body is None else json.dumps(body)
            connection.request(method, self._root + path, content, self._headers)
            response = connection.getresponse()
            if response.status != http.client.OK:
                text = _message(response.read(1 << 16))
                raise _RequestError(f"{self.name} answered {response.status}: {text}")
            yield response
        finally:
            connection.close()

    def _ask_model(self) -> str:
        """The first model that it lists."""
        try:
            with self._request("GET", "/models") as response:
                return str(json.loads(response.read())["data"][0]["id"])
        except _RequestError as error:
            raise BenchError(str(error)) from error
        except (OSError, http.client.HTTPException) as error:
            raise BenchError(f"{self.name} cannot be reached: {_describe(error)}") from error
        except (ValueError, LookupError, TypeError) as error:
            raise BenchError(
                f"{self.name} does not list its models as OpenAI's interface does ({self._root}"
                "/models)"
            ) from error


def server_way(target: ServerTarget) -> Way:
    """Generate with a server, all requests sent at once."""

    def generate(workload: Workload) -> int:
        outcomes = target.run(at_once(workload))
        if failed := [outcome.error for outcome in outcomes if not outcome.finished]:
            raise BenchError(f"{len(failed)} of {len(outcomes)} requests failed: {failed[0]}")
        return sum(outcome.num_outputs for outcome in outcomes)

    return generate


def _events(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """The data of a stream of server-sent events, as each is complete.

    By the rules of https://html.spec.whatwg.org/multipage/server-sent-events.html: an event ends
    with an empty line, and its data may stand on several; what does not end so is no event.
    """
    lines: list[bytes] = []
    while line := response.readline():
        line = line.rstrip(b"\r\n")
        if line.startswith(b"data:"):
            lines.append(line[5:].removeprefix(b" "))
        elif not line and lines:
            yield b"\n".join(lines)
            lines = []


def _parse(data: bytes) -> dict[str, Any]:
    """An event: its `choices`, and its `usage`, if any.

    Raises:
        _RequestError: it is none, or reports an error.
    """
    try:
        event = json.loads(data)
        if event.get("error"):
            raise _RequestError(f"the server reports: {_message(data)}")
        choices, usage = event.get("choices") or [], event.get("usage")
        if usage is not None:
            usage = {"completion_tokens": int(usage["completion_tokens"])}
        return {"choices": [dict(choice) for choice in choices], "usage": usage}
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise _RequestError(f"the answer is malformed: {data[:80]!r}") from error


def _message(body: bytes) -> str:
    """What an error's body says, in whatever form."""
    text = body.decode(errors="replace").strip()
    with contextlib.suppress(ValueError):
        content = json.loads(text)
        error = content.get("error", content) if isinstance(content, dict) else content
        found = error.get("message") if isinstance(error, dict) else error
        text = str(found or text)
    return " ".join(text.split())[:_LONGEST_MESSAGE] or "nothing more"


def _describe(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
