"""Tests that run in several processes take turns with those that need the machine alone."""

import fcntl
from threading import Thread

import pytest

from tests.conftest import turn


@pytest.fixture
def lock(tmp_path):
    return tmp_path / "turn.lock"


def is_taken(path):
    """Whether somebody stands in the door, or holds what is behind it."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_others_run_together(lock):
    with turn(lock, alone=False), turn(lock, alone=False):
        assert not is_taken(lock)
    with turn(lock, alone=True):
        pass


def test_who_is_to_be_alone_waits_and_is_not_overtaken(lock):
    order = []

    def run(name, alone):
        with turn(lock, alone=alone):
            order.append(name)

    threads = [Thread(target=run, args=("alone", True)), Thread(target=run, args=("next", False))]
    with turn(lock, alone=False):
        threads[0].start()
        while not is_taken(lock):
            pass
        threads[1].start()
        threads[1].join(0.05)
        order.append("first")
    for thread in threads:
        thread.join(30)
    assert order == ["first", "alone", "next"]


def test_a_failure_ends_the_turn(lock):
    with pytest.raises(KeyboardInterrupt), turn(lock, alone=True):
        raise KeyboardInterrupt
    with turn(lock, alone=True):
        pass
