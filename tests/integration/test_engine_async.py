"""`AsyncLLM`: many callers of an event loop, one engine thread."""

import asyncio
import gc
import threading
import time
import weakref

import pytest

from folovllm import EngineConfig, EngineDeadError, SamplingParams
from folovllm.engine.async_llm import AsyncLLM
from folovllm.sampling_params import RequestOutputKind

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPTS = [[5, 7, 9, 11, 13], [20, 21, 22, 23], [40], [5, 7, 9]]
DELTA = SamplingParams(
    temperature=0, max_tokens=8, ignore_eos=True, output_kind=RequestOutputKind.DELTA
)
LONG = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)


@pytest.fixture
def make_async(tiny_folder, clean_commands):
    """A function that makes an engine for asyncio on a tiny model; all are shut down."""
    made = []

    def make(*, keep=True, **options):
        options = {"block_size": 4, "dtype": "float32", **options}
        config = EngineConfig.from_options(model=str(tiny_folder("llama")), **options)
        llm = AsyncLLM(config, "cpu")
        if keep:
            made.append(llm)
        return llm

    yield make
    for llm in made:
        llm.shutdown()
        assert not llm._thread.is_alive()


@pytest.fixture(scope="module")
def expected(build_llm):
    outputs = build_llm().generate(PROMPTS, DELTA, use_tqdm=False)
    return [output.outputs[0].token_ids for output in outputs]


async def collect(llm, name, prompt, params=DELTA):
    return [output async for output in llm.generate(name, prompt, params)]


def tokens_in(outputs):
    return [token for output in outputs for token in output.outputs[0].token_ids]


async def settle(llm):
    """Wait until the engine has nothing to do."""
    while llm.llm_engine.has_unfinished_requests():
        await asyncio.sleep(0.001)


def test_many_at_once_get_their_own(make_async, expected):
    llm = make_async()

    async def run():
        return await asyncio.gather(*(collect(llm, f"r{i}", p) for i, p in enumerate(PROMPTS)))

    for outputs, tokens in zip(asyncio.run(run()), expected, strict=True):
        assert tokens_in(outputs) == tokens
        assert [output.finished for output in outputs] == [False] * 7 + [True]
    assert llm.is_running


def test_in_two_loops_and_beside_other_threads(make_async, expected):
    llm, results = make_async(), {}

    def own_loop(name):
        results[name] = tokens_in(asyncio.run(collect(llm, name, PROMPTS[0])))

    threads = [threading.Thread(target=own_loop, args=(f"t{i}",)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert results == {f"t{i}": expected[0] for i in range(3)}


def test_closing_the_iterator_aborts(make_async):
    llm = make_async()

    async def run():
        outputs = llm.generate("a", PROMPTS[0], LONG)
        await anext(outputs)
        await outputs.aclose()
        await settle(llm)

    asyncio.run(run())
    assert llm.llm_engine.stats()["generation_tokens"] < 40
    assert llm.llm_engine.cache_manager.usage == 0


def test_cancelling_who_waits_aborts(make_async):
    llm = make_async()

    async def run():
        task = asyncio.create_task(collect(llm, "a", PROMPTS[0], LONG))
        while llm.llm_engine.stats()["steps"] < 2:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await settle(llm)

    asyncio.run(run())
    assert llm.llm_engine.cache_manager.usage == 0


def test_aborted_by_somebody_else(make_async, expected):
    llm = make_async()

    async def run():
        seen = []
        async for output in llm.generate("a", PROMPTS[0], LONG):
            seen.append(output)
            if len(seen) == 2:
                await llm.abort(["a", "unknown"])
        assert not seen[-1].finished
        return tokens_in(await collect(llm, "a", PROMPTS[1]))  # its name is free

    assert asyncio.run(run()) == expected[1]


def test_refusals_come_before_anything_is_queued(make_async):
    llm = make_async(max_model_len=32)

    async def refused(message, prompt=PROMPTS[0], params=DELTA, name="b"):
        with pytest.raises(ValueError, match=message):
            await anext(llm.generate(name, prompt, params))

    async def run():
        with llm.llm_engine._turn.taken():  # nothing is computed meanwhile, so that "a" goes on
            running = asyncio.create_task(collect(llm, "a", PROMPTS[0]))
            while not llm.llm_engine.has_unfinished_requests():
                await asyncio.sleep(0.001)
            await refused("not empty|at least one", prompt="")
            await refused("has 32 tokens", prompt=[5] * 32)
            await refused("SamplingParams", params={"n": 1})
            await refused("'a' is in use", name="a")
            assert llm.llm_engine.get_num_unfinished_requests() == 1
        await running

    asyncio.run(run())


def test_after_a_shutdown(make_async):
    llm = make_async()

    async def run():
        waiting = asyncio.create_task(collect(llm, "a", PROMPTS[0], LONG))
        while not llm.llm_engine.has_unfinished_requests():
            await asyncio.sleep(0.001)
        await asyncio.to_thread(llm.shutdown)
        with pytest.raises(EngineDeadError, match="shut down"):
            await waiting
        with pytest.raises(EngineDeadError, match="shut down"):
            await anext(llm.generate("b", PROMPTS[0], DELTA))

    asyncio.run(run())
    assert not llm.is_running
    llm.shutdown()  # a second time is fine


def test_an_engine_that_cannot_go_on_tells_everybody(make_async, monkeypatch):
    llm = make_async()

    def spoil(*_):
        raise ZeroDivisionError("a bug")

    async def run():
        tasks = [asyncio.create_task(collect(llm, f"r{i}", PROMPTS[i], LONG)) for i in range(3)]
        while llm.llm_engine.stats()["steps"] < 2:
            await asyncio.sleep(0.001)
        monkeypatch.setattr(llm.llm_engine.scheduler, "schedule", spoil)
        for task in tasks:
            with pytest.raises(EngineDeadError, match="a bug"):
                await task
        with pytest.raises(EngineDeadError):
            await anext(llm.generate("b", PROMPTS[0], DELTA))

    asyncio.run(run())
    assert not llm.is_running


def test_an_idle_engine_does_not_step(make_async):
    llm = make_async()

    async def run():
        await collect(llm, "a", PROMPTS[0])
        await asyncio.sleep(0.05)

    asyncio.run(run())
    schedule, calls = llm.llm_engine.scheduler.schedule, []
    llm.llm_engine.scheduler.schedule = lambda: calls.append(1) or schedule()
    asyncio.run(asyncio.sleep(0.1))
    assert calls == []


def test_one_that_nobody_refers_to_is_collected(make_async):
    llm = make_async(keep=False)
    assert len(asyncio.run(collect(llm, "a", PROMPTS[0]))) == 8
    thread, collected = llm._thread, weakref.ref(llm)
    del llm
    gc.collect()
    assert collected() is None
    thread.join(20)
    assert not thread.is_alive()
    with pytest.raises(EngineDeadError, match="shut down"):
        thread._engine.step()
    assert not hasattr(thread._engine.executor, "runner")  # its memory is given back


def test_a_loop_that_is_closed_in_the_middle(make_async, expected):
    llm = make_async()
    loop = asyncio.new_event_loop()
    outputs = llm.generate("a", PROMPTS[0], LONG)
    loop.run_until_complete(anext(outputs))
    loop.close()
    while llm.llm_engine.has_unfinished_requests():
        time.sleep(0.001)
    assert llm.llm_engine.stats()["generation_tokens"] < 40
    assert llm._thread.streams == set()
    assert tokens_in(asyncio.run(collect(llm, "a", PROMPTS[1]))) == expected[1]


def test_the_engine_below_is_shut_down(make_async):
    llm = make_async()

    async def run():
        waiting = asyncio.create_task(collect(llm, "a", PROMPTS[0], LONG))
        while not llm.llm_engine.has_unfinished_requests():
            await asyncio.sleep(0.001)
        await asyncio.to_thread(llm.llm_engine.shutdown)
        with pytest.raises((EngineDeadError, IndexError)):  # or it ends without an output
            await waiting

    asyncio.run(run())
    llm._thread.join(20)
    assert not llm.is_running


def test_after_a_failure_the_memory_is_given_back(make_async, monkeypatch):
    llm = make_async()

    def spoil(*_):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(llm.llm_engine.scheduler, "schedule", spoil)
    with pytest.raises(EngineDeadError, match="a bug"):
        asyncio.run(collect(llm, "a", PROMPTS[0]))
    llm._thread.join(20)
    assert not hasattr(llm.llm_engine.executor, "runner")


def test_shut_down_by_several_threads(make_async):
    llm = make_async()
    threads = [threading.Thread(target=llm.shutdown, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads)
