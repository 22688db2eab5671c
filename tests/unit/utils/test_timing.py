import time

import pytest

from folovllm.utils.timing import Phases


@pytest.fixture
def clock(monkeypatch):
    """Sets what the clock shows next."""
    shown = []
    monkeypatch.setattr(time, "perf_counter", lambda: shown.pop(0))
    return shown.extend


def test_parts_add_up(clock):
    clock([1.0, 1.5, 3.5, 4.0])
    phases = Phases()
    for part in ("read", "place", "read"):
        phases.end(part)
    assert phases.seconds == {"read": 1.0, "place": 2.0}


def test_nothing_has_ended_at_the_start():
    assert Phases().seconds == {}
