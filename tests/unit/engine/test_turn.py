import signal
import threading

import pytest

from folovllm.engine.turn import Turn


def take_elsewhere(turn, seconds=0.0):
    """Whether another thread gets it within some time."""
    got = []

    def take():
        with turn.within(seconds) as taken:
            got.append(taken)

    thread = threading.Thread(target=take)
    thread.start()
    thread.join(10)
    return got[0]


def test_one_thread_at_a_time():
    turn = Turn()
    with turn.taken():
        assert turn.is_mine()
        assert not take_elsewhere(turn)
    assert not turn.is_mine()
    assert take_elsewhere(turn)
    with turn.within(1) as taken:
        assert taken
        assert not take_elsewhere(turn)
    assert take_elsewhere(turn)


def test_twice_in_one_thread_is_refused_and_changes_nothing():
    turn = Turn()
    with turn.taken():
        with pytest.raises(RuntimeError, match="within its own step"):
            turn.taken().__enter__()
        with pytest.raises(RuntimeError, match="within its own step"), turn.within(1):
            pass
        assert turn.is_mine()
        assert not take_elsewhere(turn)
    assert take_elsewhere(turn)


def test_given_back_after_an_error():
    turn = Turn()
    with pytest.raises(KeyError), turn.taken():
        raise KeyError
    with pytest.raises(KeyError), turn.within(1):
        raise KeyError
    assert take_elsewhere(turn)


@pytest.mark.alone
def test_ctrl_c_at_any_moment_leaves_it_free():
    turn, caught = Turn(), 0

    def interrupt(_signal, _frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        while caught < 200:
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-4 + caught * 1e-6)
                while True:
                    with turn.taken():
                        pass
            except KeyboardInterrupt:
                caught += 1
            assert not turn.is_mine()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert take_elsewhere(turn)
