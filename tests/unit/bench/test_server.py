import json
import socket
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from folovllm.bench.arrivals import Arrival
from folovllm.bench.results import BenchError
from folovllm.bench.server import ServerTarget, server_way
from folovllm.bench.sweep import Goal, SweepPlan, measure_sweep
from folovllm.bench.workloads import RandomSource, Workload, uniform
from folovllm.config.bench import Range

DONE = "data: [DONE]\n\n"


def event(text="a", reason=None, **more):
    choices = [{"index": 0, "text": text, "finish_reason": reason}]
    return f"data: {json.dumps({'choices': choices, **more})}\n\n"


class Handler(BaseHTTPRequestHandler):
    """Answers with what its server says: a status, and pieces to send, seconds to wait between."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.seen.append((self.path, dict(self.headers), None))
        self._reply(*self.server.models)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, dict(self.headers), body))
        answer = self.server.answer
        self._reply(*(answer(body) if callable(answer) else answer))

    def _reply(self, status, pieces):
        self.send_response(status)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in pieces:
            if isinstance(piece, float):
                time.sleep(piece)
            elif piece is None:  # cut off
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            else:
                data = piece.encode()
                self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_):
        pass

    def handle(self):
        with suppress(ConnectionError):  # who gave up, or was cut off
            super().handle()


@pytest.fixture
def server():
    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.daemon_threads = True
    made.seen = []
    made.models = (200, ['{"data": [{"id": "the-model"}]}'])
    made.answer = (200, [event(), event("b", "length"), DONE])
    made.url = f"http://127.0.0.1:{made.server_port}"
    thread = threading.Thread(target=made.serve_forever, args=(0.01,))
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def ask(server, *dues, num_outputs=2, **options):
    target = ServerTarget(server.url, **options)
    return target.run([Arrival(due, [5, 6], num_outputs) for due in dues or (0.0,)])


def test_what_is_sent(server):
    ask(server, api_key="secret", num_outputs=9)
    (path, headers, _), (completions, again, body) = server.seen
    assert (path, completions) == ("/v1/models", "/v1/completions")
    assert headers["Authorization"] == again["Authorization"] == "Bearer secret"
    assert body["model"] == "the-model"
    assert (body["prompt"], body["max_tokens"]) == ([5, 6], 9)
    assert (body["stream"], body["ignore_eos"], body["temperature"]) == (True, True, 0)


def test_no_key_no_header(server):
    ask(server)
    assert all("Authorization" not in headers for _, headers, _ in server.seen)


@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/"])
def test_addresses_with_and_without_the_version(server, path):
    server.url += path
    ask(server)
    assert [path for path, _, _ in server.seen] == ["/v1/models", "/v1/completions"]


def test_a_streamed_answer_is_timed_from_when_it_was_due(server):
    server.answer = (200, [0.05, event(), 0.05, event(), 0.05, event("", "length"), DONE])
    early, late = ask(server, 0.0, 0.1)
    for outcome in (early, late):
        assert outcome.finished
        assert outcome.error is None
        assert outcome.num_outputs == 2
        assert outcome.time_to_first_token >= 0.05
        assert outcome.time_per_output_token >= 0.04
        assert outcome.first > outcome.due
    assert late.due == 0.1


def test_requests_do_not_wait_for_each_other(server):
    meeting = threading.Barrier(3)

    def answer(body):
        meeting.wait(20)  # breaks unless all three are there
        return 200, [event("a", "length"), DONE]

    server.answer = answer
    assert all(outcome.finished for outcome in ask(server, 0.0, 0.0, 0.0))


def test_the_servers_own_count_of_tokens_wins(server):
    usage = 'data: {"choices": [], "usage": {"completion_tokens": 17}}\n\n'
    server.answer = (200, [event("many tokens", "length"), usage, DONE])
    [outcome] = ask(server, num_outputs=17)
    assert outcome.finished
    assert outcome.num_outputs == 17


def test_an_answer_that_ends_early_is_not_finished(server):
    usage = 'data: {"choices": [], "usage": {"completion_tokens": 16}}\n\n'
    server.answer = (200, [event("many tokens", "stop"), usage, DONE])
    [outcome] = ask(server, num_outputs=17)
    assert not outcome.finished
    assert "16 of 17 tokens" in outcome.error


def test_events_in_odd_pieces(server):
    stream = ": hello\n\n" + event() + event("b", "length", usage=None) + DONE
    server.answer = (200, [*stream.replace("\n", "\r\n")])
    [outcome] = ask(server)
    assert outcome.finished
    assert outcome.num_outputs == 2


@pytest.mark.parametrize(
    ("status", "pieces", "error"),
    [
        (400, ['{"error": {"message": "prompt is too long"}}'], "answered 400: prompt is too long"),
        (404, ['{"message": "no such model"}'], "answered 404: no such model"),
        (500, ["<h1>oh\nno</h1>"], "answered 500: <h1>oh no</h1>"),
        (503, [""], "answered 503: nothing more"),
        (200, [event(), 'data: {"choi', "\n\n"], "the answer is malformed"),
        (200, ["data: 5\n\n"], "the answer is malformed"),
        (200, ['data: {"choices": [5]}\n\n'], "the answer is malformed"),
        (200, ['data: {"choices": [], "usage": {}}\n\n'], "the answer is malformed"),
        (200, [event(), 'data: {"error": {"message": "out of blocks"}}\n\n'], "out of blocks"),
        (200, [event(), event()], "the answer was cut off"),
        (200, [event(), event(), DONE], "the answer was cut off"),
        (200, [event(), None], ""),
        (200, [], "the answer was cut off"),
        (200, [event("", "length"), DONE], "the answer has no token"),
    ],
)
def test_what_is_not_answered_to_the_end_is_not_finished(server, status, pieces, error):
    server.answer = (status, pieces if pieces != [""] else [])
    [outcome] = ask(server)
    assert not outcome.finished
    assert outcome.time_to_first_token is None
    assert error in outcome.error


def test_a_server_that_says_nothing_is_given_up(server):
    server.answer = (200, [event(), 1.0, event("b", "length"), DONE])
    [outcome] = ask(server, quiet=0.2)
    assert not outcome.finished
    assert "no answer in time" in outcome.error


def test_a_server_that_is_gone_ends_a_sweep_and_what_was_measured_stays(server):
    target = ServerTarget(server.url)
    source = RandomSource(uniform(Range(3, 3), Range(2, 2)), 50, seed=0)
    served, recorded, lines = 0, {}, []

    def answer(body):
        nonlocal served
        served += 1
        if served == 8:
            server.socket.close()
        return 200, [event(), event("b", "length"), DONE]

    server.answer = answer
    plan = SweepPlan(Goal(5, 5), rates=(50.0, 60.0, 70.0), seconds=0.08, min_requests=4)
    with pytest.raises(BenchError, match="cannot be reached: Connection "):
        measure_sweep(
            target, source, plan, lambda m: recorded.setdefault((m.case, m.metric), m), lines.append
        )
    cases = list(dict.fromkeys(case for case, _ in recorded))
    assert cases[0] == "50 requests/s"
    assert "knee" not in cases
    assert recorded["50 requests/s", "requests"].parameters["failed"] == 0


def test_nothing_more_is_sent_to_a_server_that_is_gone(server):
    target = ServerTarget(server.url)
    server.shutdown()
    server.server_close()
    first, *others = target.run([Arrival(due, [1], 1) for due in (0.0, 0.3, 60.0, 120.0)])
    assert first.error.endswith("Connection refused")
    assert all(outcome.error.startswith("not sent: the server is gone") for outcome in others)


def test_as_a_way_of_closed_batches(server):
    way = server_way(ServerTarget(server.url))
    assert way(Workload([[1], [2]], [2, 2])) == 4
    server.answer = (429, ["slow down"])
    with pytest.raises(BenchError, match=r"2 of 2 requests failed: .* answered 429: slow down"):
        way(Workload([[1], [2]], [2, 2]))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("localhost:8000", "looks like http://localhost:8000, got 'localhost:8000'"),
        ("ftp://a", "looks like"),
        ("http://", "looks like"),
        ("http://a:x", "no valid port"),
        ("http://127.0.0.1:1", "127.0.0.1:1 cannot be reached: Connection refused"),
    ],
)
def test_a_wrong_address(url, message):
    with pytest.raises(BenchError, match=message):
        ServerTarget(url)


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ((404, ["no"]), "answered 404: no"),
        ((401, ['{"error": "who are you"}']), "answered 401: who are you"),
        ((200, ["<html>"]), "does not list its models"),
        ((200, ['{"data": []}']), "does not list its models"),
        ((200, ["[]"]), "does not list its models"),
    ],
)
def test_somebody_else_at_the_address(server, models, message):
    server.models = models
    with pytest.raises(BenchError, match=message):
        ServerTarget(server.url)


def test_a_password_in_the_address_is_not_shown(server):
    target = ServerTarget(server.url.replace("//", "//me:secret@"))
    assert target.name == f"127.0.0.1:{server.server_port}"
