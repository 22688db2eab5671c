import signal
import threading
from types import SimpleNamespace

import pytest

from folovllm.engine.mailbox import Abort, Add, Mailbox, Wake


def letters(mailbox):
    return list(mailbox.open())


def test_in_the_order_of_posting():
    mailbox, request = Mailbox(), SimpleNamespace()
    assert not mailbox
    posted = [Add(request), Abort(request), Add(request), Wake()]
    for letter in posted:
        mailbox.post(letter)
    assert mailbox
    assert letters(mailbox) == posted
    assert letters(mailbox) == []


def test_what_is_posted_while_it_is_open_comes_too():
    mailbox, seen = Mailbox(), []
    mailbox.post(Wake())
    for letter in mailbox.open():
        seen.append(letter)
        if len(seen) < 3:
            mailbox.post(Wake())
    assert len(seen) == 3


def test_a_wait_ends_with_a_letter():
    mailbox, seen = Mailbox(), []
    waiter = threading.Thread(target=lambda: seen.append(mailbox.wait()), daemon=True)
    waiter.start()
    waiter.join(0.05)
    assert waiter.is_alive()
    mailbox.post(Wake())
    waiter.join(10)
    assert seen == [Wake()]


@pytest.mark.alone
def test_from_a_signal_handler_that_interrupts_posting_and_opening():
    mailbox, from_handler, taken = Mailbox(), [], 0

    def interrupt(_signal, _frame):
        from_handler.append(True)
        mailbox.post(Wake())

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 1e-4, 1e-4)
    try:
        posted = 0
        while len(from_handler) < 200:
            mailbox.post(Wake())
            posted += 1
            taken += len(letters(mailbox))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    taken += len(letters(mailbox))
    assert taken == posted + len(from_handler)


def test_many_threads():
    mailbox = Mailbox()

    def post(name):
        for i in range(500):
            mailbox.post(Add((name, i)))

    threads = [threading.Thread(target=post, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    requests = [letter.request for letter in mailbox.open()]
    for name in range(4):  # each thread's own order stays
        assert [i for who, i in requests if who == name] == list(range(500))
