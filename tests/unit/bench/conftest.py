"""Time and engines that a test plays."""

import pytest

from folovllm.outputs import CompletionOutput, RequestOutput


class PlayedClock:
    """Time that goes on when somebody says so."""

    def __init__(self):
        self.time = 100.0
        self.slept = []

    def now(self):
        return self.time

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.time += max(seconds, 1e-9)  # a difference may be too small for a sum to show


class PlayedEngine:
    """Gives each of its requests a token a step; how long a step takes is said beforehand."""

    def __init__(self, clock, seconds=0.1):
        self.clock = clock
        self.seconds = iter(seconds) if isinstance(seconds, list) else None
        self.each = seconds
        self.left = {}
        self.added = {}
        self.errors = {}
        self.refused = {}

    def add_request(self, request_id, prompt, params):
        if request_id in self.refused:
            raise ValueError(self.refused[request_id])
        self.added[request_id] = (self.clock.now(), prompt, params)
        self.left[request_id] = params.max_tokens

    def has_unfinished_requests(self):
        return bool(self.left)

    def abort_request(self, request_ids):
        for request_id in request_ids:
            self.left.pop(request_id, None)

    def step(self):
        if not self.left:
            return []
        self.clock.time += next(self.seconds) if self.seconds else self.each
        return [self._move(request_id) for request_id in list(self.left)]

    def _move(self, request_id):
        self.left[request_id] -= 1
        error = self.errors.get(request_id)
        finished = self.left[request_id] == 0 or error is not None
        if finished:
            del self.left[request_id]
        outputs = [CompletionOutput(0, "x", [7], finish_reason="length" if finished else None)]
        return RequestOutput(request_id, None, [1], outputs, finished, error=error)


@pytest.fixture
def clock():
    return PlayedClock()


@pytest.fixture
def engine_of(clock):
    """A function that makes an engine whose steps take so many seconds, all or each."""
    return lambda seconds=0.1: PlayedEngine(clock, seconds)
