import threading

import pytest

from folovllm.engine.router import DeliveryError, Router
from folovllm.outputs import RequestOutput
from folovllm.request import Request
from folovllm.sampling_params import SamplingParams


def request(name="a") -> Request:
    return Request(name, None, [1], SamplingParams())


def output(finished=False, name="a") -> RequestOutput:
    return RequestOutput(name, None, [1], [], finished)


def test_each_output_goes_to_who_asked():
    router, mine, yours = Router(), [], []
    first, second = request("a"), request("b")
    router.open(first, mine.append)
    router.open(second, yours.append)
    one, two = output(), output(True, "b")
    assert router.deliver(first, one)
    assert router.deliver(second, two)
    assert (mine, yours) == ([one], [two])
    assert len(router) == 1
    assert first in router
    assert second not in router


def test_without_anybody_who_asked():
    router, mine = Router(), request()
    router.open(mine, None)
    assert router.deliver(mine, output(True))
    assert len(router) == 0


def test_an_id_in_use_is_refused_until_the_last_output():
    router, first = Router(), request()
    router.open(first, None)
    with pytest.raises(ValueError, match="request_id 'a' is in use by an unfinished request"):
        router.open(request(), None)
    router.deliver(first, output())
    with pytest.raises(ValueError, match="'a'"):
        router.open(request(), None)
    router.deliver(first, output(True))
    router.open(request(), None)


def test_who_is_aborted_is_told_once_and_gets_no_more():
    router, first, got = Router(), request(), []
    router.open(first, got.append)
    assert router.close("a") is first
    assert router.close("a") is None
    assert not router.deliver(first, output(True))
    assert got == [None]


def test_outputs_of_an_old_request_are_not_the_new_ones():
    router, old, new, got = Router(), request(), request(), []
    router.open(old, None)
    router.close("a")
    router.open(new, got.append)
    assert not router.deliver(old, output(True))
    assert old not in router
    assert new in router
    assert router.close("a", old) is None
    assert router.close("a", new) is new
    assert got == [None]


def test_all_at_once():
    router, requests = Router(), [request(str(i)) for i in range(3)]
    for each in requests:
        router.open(each, None)
    assert router.close_all() == requests
    assert len(router) == 0


def test_an_abort_and_the_last_output_at_the_same_moment():
    """One of the two ends the route, and the name is free for a third at once."""
    router = Router()
    for _ in range(300):
        first, got, barrier, ended = request(), [], threading.Barrier(2), []
        router.open(first, got.append)

        def end(first=first, barrier=barrier, ended=ended):
            barrier.wait()
            ended.append(router.deliver(first, output(True)))

        thread = threading.Thread(target=end)
        thread.start()
        barrier.wait()
        closed = router.close("a")
        thread.join()
        assert (closed is first) is not ended[0]
        assert len(got) == 1
        assert len(router) == 0


def failing(output):
    raise KeyError("theirs")


@pytest.mark.parametrize("finished", [False, True])
def test_who_raises_gets_no_more(finished):
    router, first = Router(), request()
    router.open(first, failing)
    with pytest.raises(DeliveryError) as error:
        router.deliver(first, output(finished))
    assert isinstance(error.value.__cause__, KeyError)
    assert len(router) == 0
    assert not router.deliver(first, output(True))
    router.open(request(), None)  # its name is free


def test_who_raises_when_it_is_aborted_is_aborted():
    router, first, second = Router(), request(), request("b")
    router.open(first, failing)
    router.open(second, failing)
    assert router.close("a") is first
    assert router.close_all() == [second]
    assert len(router) == 0


def test_find():
    router, first = Router(), request()
    assert router.find("a") is None
    router.open(first, None)
    assert router.find("a") is first
    router.close("a")
    assert router.find("a") is None
