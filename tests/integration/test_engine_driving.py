"""The engine in other hands: by steps, from threads, several iterators at once."""

import gc
import os
import random
import subprocess
import sys
import threading

import pytest

from folovllm import EngineDeadError, SamplingParams
from folovllm.sampling_params import RequestOutputKind

pytestmark = pytest.mark.usefixtures("one_thread")

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
PROMPTS = [[random.Random(i).randrange(3, 90) for _ in range(1 + 5 * i)] for i in range(7)]


def tokens_of(llm, prompts=PROMPTS, params=GREEDY):
    return [out.outputs[0].token_ids for out in llm.generate(prompts, params, use_tqdm=False)]


@pytest.fixture(scope="module")
def expected(build_llm):
    return tokens_of(build_llm())


def join(pieces):
    """The tokens of a stream, by the prompt's place."""
    joined = {}
    for out in pieces:
        joined.setdefault(int(out.request_id.partition("-")[0]), []).extend(
            out.outputs[0].token_ids
        )
    return [joined[place] for place in sorted(joined)]


def pause(llm, monkeypatch):
    """Let each run of the model wait in its middle; gives the events of waiting and going on."""
    model = llm.llm_engine.executor.runner.model
    forward = model.forward
    inside, go_on = threading.Event(), threading.Event()

    def waiting(*args):
        logits = forward(*args)
        inside.set()
        assert go_on.wait(20)
        return logits

    monkeypatch.setattr(model, "forward", waiting)
    return inside, go_on


class Stepper(threading.Thread):
    """Steps until it is told to end and nothing is left; keeps the outputs."""

    def __init__(self, engine):
        super().__init__(daemon=True)
        self.engine, self.outputs, self.ending, self.error = engine, {}, threading.Event(), None

    def run(self):
        try:
            while not self.ending.is_set() or self.engine.has_unfinished_requests():
                for out in self.engine.step():
                    self.outputs.setdefault(out.request_id, []).append(out)
        except BaseException as error:  # noqa: BLE001 - told by end()
            self.error = error

    def end(self):
        self.ending.set()
        self.join(30)
        assert not self.is_alive()
        assert self.error is None, self.error


def test_by_steps(make_llm, expected):
    engine = make_llm().llm_engine
    cumulative = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    for i, prompt in enumerate(PROMPTS):
        engine.add_request(f"r{i}", prompt, cumulative)
    assert engine.get_num_unfinished_requests() == len(PROMPTS)
    seen = {}
    while engine.has_unfinished_requests():
        for out in engine.step():
            tokens = out.outputs[0].token_ids
            assert tokens[:-1] == seen.get(out.request_id, [])
            assert out.finished == (len(tokens) == 8)
            seen[out.request_id] = tokens
    assert [seen[f"r{i}"] for i in range(len(PROMPTS))] == expected
    assert engine.step() == []


def test_threads_add_and_abort_while_one_steps(make_llm, expected):
    llm = make_llm(num_gpu_blocks_override=25, max_num_batched_tokens=16, max_num_seqs=6)
    engine = llm.llm_engine
    stepper = Stepper(engine)
    stepper.start()
    errors = []

    def use(name):
        rng = random.Random(name)
        try:
            for i in range(25):
                place = rng.randrange(len(PROMPTS))
                request_id = f"{name}:{i}:{place}"
                engine.add_request(request_id, PROMPTS[place], GREEDY)
                if rng.random() < 0.4:
                    engine.abort_request([request_id, "unknown"])
                engine.stats()
        except BaseException as error:  # noqa: BLE001 - looked at below
            errors.append(error)

    users = [threading.Thread(target=use, args=(f"u{i}",)) for i in range(4)]
    for user in users:
        user.start()
    for user in users:
        user.join(30)
    stepper.end()
    assert not errors
    finished = 0
    for request_id, outputs in stepper.outputs.items():
        last = outputs[-1]
        assert last.error is None
        if last.finished:
            finished += 1
            assert last.outputs[0].token_ids == expected[int(request_id.rpartition(":")[2])]
    assert finished >= 40
    assert engine.stats()["finished_requests"] == 100


@pytest.mark.parametrize("num_steps", range(12))
def test_aborted_after_any_step(make_llm, expected, num_steps):
    llm = make_llm(max_num_batched_tokens=9)
    engine = llm.llm_engine
    for i, prompt in enumerate(PROMPTS):
        engine.add_request(f"r{i}", prompt, SamplingParams(n=1 + i % 3, max_tokens=8))
    engine.add_request("stays", PROMPTS[3], GREEDY)
    for _ in range(num_steps):
        engine.step()
    engine.abort_request([f"r{i}" for i in range(len(PROMPTS))])
    outputs = []
    while engine.has_unfinished_requests():
        outputs += engine.step()
    assert {out.request_id for out in outputs} == {"stays"}
    assert outputs[-1].outputs[0].token_ids == expected[3]


def test_aborted_while_the_model_runs(make_llm, monkeypatch, expected):
    llm = make_llm()
    engine = llm.llm_engine
    inside, go_on = pause(llm, monkeypatch)
    engine.add_request("a", PROMPTS[2], SamplingParams(n=2, seed=1))
    engine.add_request("b", PROMPTS[3], GREEDY)
    stepper = Stepper(engine)
    stepper.start()
    assert inside.wait(20)
    engine.abort_request("a")
    assert engine.get_num_unfinished_requests() == 1
    # Its name can be used again at once, and what runs for the old one is not the new one's.
    engine.add_request("a", PROMPTS[4], GREEDY)
    go_on.set()
    stepper.end()
    last = {request_id: outputs[-1] for request_id, outputs in stepper.outputs.items()}
    assert last["a"].outputs[0].token_ids == expected[4]
    assert last["b"].outputs[0].token_ids == expected[3]


@pytest.mark.parametrize("budget", [512, 30])
def test_aborted_before_the_model_runs(make_llm, monkeypatch, expected, budget):
    # Planned already, and not laid out yet: what it is to write must not go to others' blocks.
    llm = make_llm(num_gpu_blocks_override=64, max_num_batched_tokens=budget)
    engine = llm.llm_engine
    execute, steps = engine.executor.execute, []

    def abort_and_execute(plan):
        steps.append(plan)
        engine.abort_request(f"bad{len(steps)}")
        return execute(plan)

    monkeypatch.setattr(engine.executor, "execute", abort_and_execute)
    outputs = {}
    for i in range(1, 7):
        engine.add_request(f"bad{i}", [17] * (3 * i), SamplingParams(n=1 + i % 2))
        engine.add_request(f"{i}", PROMPTS[i], GREEDY)
    while engine.has_unfinished_requests():
        outputs.update((out.request_id, out) for out in engine.step() if out.finished)
    assert all(out.error is None for out in outputs.values())
    assert [outputs[f"{i}"].outputs[0].token_ids for i in range(1, 7)] == expected[1:]


@pytest.mark.parametrize("kind", ["error", "nan"])
def test_aborted_while_a_step_fails(make_llm, monkeypatch, expected, kind):
    llm = make_llm()
    engine = llm.llm_engine
    inside, go_on = pause(llm, monkeypatch)
    model = engine.executor.runner.model
    forward, failed = model.forward, []

    def fail_once(*args):
        logits = forward(*args)
        if failed:
            return logits
        failed.append(True)
        if kind == "error":
            raise MemoryError
        return logits * float("nan")

    monkeypatch.setattr(model, "forward", fail_once)
    engine.add_request("a", PROMPTS[2], GREEDY)
    engine.add_request("b", PROMPTS[3], GREEDY)
    stepper = Stepper(engine)
    stepper.start()
    assert inside.wait(20)
    engine.abort_request("a")
    engine.add_request("a", PROMPTS[4], GREEDY)
    go_on.set()
    stepper.end()
    assert stepper.outputs["b"][-1].error
    assert stepper.outputs["a"][-1].error is None
    assert stepper.outputs["a"][-1].outputs[0].token_ids == expected[4]


def test_iterators_beside_each_other(make_llm, expected):
    llm = make_llm(max_num_seqs=5)
    one, two = llm.stream(PROMPTS[:3], GREEDY), llm.stream(PROMPTS[3:5], GREEDY)
    first, second = [next(one)], [next(two), next(two)]
    assert tokens_of(llm) == expected
    first += one
    second += two
    assert join(first) == expected[:3]
    assert join(second) == expected[3:5]


def test_an_iterator_that_is_closed_early(make_llm, expected):
    llm = make_llm()
    stream = llm.stream(PROMPTS, GREEDY)
    other = llm.stream(PROMPTS[1], GREEDY)
    pieces = [next(other), *[next(stream) for _ in range(9)]]
    assert len(pieces) == 10
    stream.close()
    assert llm.llm_engine.get_num_unfinished_requests() == 1
    assert join([pieces[0], *other]) == [expected[1]]
    assert llm.stream(PROMPTS, GREEDY) is not None  # never begun: nothing was queued
    assert not llm.llm_engine.has_unfinished_requests()


@pytest.mark.parametrize("where", ["schedule", "update", "add_request"])
def test_an_iterator_that_is_collected_in_the_middle_of_a_step(
    make_llm, monkeypatch, expected, where
):
    llm = make_llm()
    method = getattr(llm.llm_engine.scheduler, where)

    def collect_first(*args):
        gc.collect()
        return method(*args)

    def forget_an_iterator():
        stream = llm.stream(PROMPTS[:3], GREEDY)
        next(stream)
        cycle = [stream]
        cycle.append(cycle)

    gc.disable()
    try:
        forget_an_iterator()
        monkeypatch.setattr(llm.llm_engine.scheduler, where, collect_first)
        tokens = []
        thread = threading.Thread(target=lambda: tokens.extend(tokens_of(llm)), daemon=True)
        thread.start()
        thread.join(20)
        assert tokens == expected
    finally:
        gc.enable()


def test_an_exception_in_the_middle_of_generate(make_llm, expected):
    llm = make_llm()

    class Bar:
        def __init__(self, **options):
            self.closed = False

        def set_postfix_str(self, *args, **options):
            raise ZeroDivisionError

        def close(self):
            self.closed = True

    params = [SamplingParams(max_tokens=1 + i) for i in range(len(PROMPTS))]
    with pytest.raises(ZeroDivisionError):
        llm.generate(PROMPTS, params, use_tqdm=Bar)
    assert not llm.llm_engine.has_unfinished_requests()
    assert tokens_of(llm) == expected


def test_aborted_by_somebody_else(make_llm):
    llm = make_llm()
    stream = llm.stream(PROMPTS, GREEDY)
    out = next(stream)
    llm.llm_engine.abort_request(list(llm.llm_engine._router._routes))
    rest = list(stream)
    assert not any(piece.finished for piece in [out, *rest])


def test_priority(make_llm):
    llm = make_llm(policy="priority", max_num_seqs=1)
    engine = llm.llm_engine
    for name, priority in (("low", 5), ("first", 0), ("urgent", -3), ("second", 0)):
        engine.add_request(name, [5, 6], GREEDY, priority=priority)
    finished = []
    while engine.has_unfinished_requests():
        finished += [out.request_id for out in engine.step() if out.finished]
    assert finished == ["urgent", "first", "second", "low"]


def test_kinds_of_output(make_llm, expected):
    engine = make_llm().llm_engine
    for kind in RequestOutputKind:
        params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, output_kind=kind)
        engine.add_request(kind.name, PROMPTS[1], params)
    got = {kind.name: [] for kind in RequestOutputKind}
    while engine.has_unfinished_requests():
        for out in engine.step():
            got[out.request_id].append(out.outputs[0].token_ids)
    tokens = expected[1]
    assert got["CUMULATIVE"] == [tokens[: i + 1] for i in range(8)]
    assert got["DELTA"] == [[token] for token in tokens]
    assert got["FINAL_ONLY"] == [tokens]


def test_stats_and_metrics(make_llm):
    llm = make_llm()
    outputs = llm.generate([PROMPTS[6]] * 3, GREEDY, use_tqdm=False)
    stats = llm.stats()
    # The blocks of the first are found by the others in the same step.
    cached = (len(PROMPTS[6]) - 1) // 4 * 4
    assert [out.num_cached_tokens for out in outputs] == [0, cached, cached]
    assert stats["prefix_hits"] == 2 * cached
    assert stats["prefix_queries"] == 3 * len(PROMPTS[6])
    assert stats["prompt_tokens"] == 3 * len(PROMPTS[6]) - 2 * cached
    assert stats["generation_tokens"] == 24
    assert stats["steps"] == 8
    assert stats["finished_requests"] == 3
    assert (stats["running"], stats["waiting"], stats["cache_usage"]) == (0, 0, 0)
    for out in outputs:
        metrics = out.metrics
        assert 0 <= metrics.time_in_queue <= metrics.time_to_first_token
        assert metrics.time_per_output_token > 0
        assert metrics.finished_time >= metrics.last_token_time
        assert (metrics.num_generation_tokens, metrics.num_preemptions) == (8, 0)


def test_shut_down_twice_and_with_requests(make_llm):
    llm = make_llm()
    engine, told = llm.llm_engine, []
    engine.add_request("a", PROMPTS[1], GREEDY, deliver=told.append)
    engine.step()
    stream = llm.stream(PROMPTS, GREEDY)
    next(stream)
    engine.shutdown()
    assert told[-1] is None
    engine.shutdown()
    assert engine.cache_manager.usage == 0
    assert not any(out.finished for out in stream)
    for act in (engine.step, lambda: engine.add_request("b", [5], GREEDY)):
        with pytest.raises(EngineDeadError, match=r"^the engine was shut down$"):
            act()
    engine.abort_request("a")


def test_shut_down_while_a_thread_waits_for_work(make_llm):
    engine, ends = make_llm().llm_engine, []

    def work():
        try:
            while True:
                engine.wait_for_work()
                engine.step()
        except EngineDeadError as error:
            ends.append(str(error))

    workers = [threading.Thread(target=work, daemon=True) for _ in range(2)]
    for worker in workers:
        worker.start()
    closer = threading.Thread(target=engine.shutdown, daemon=True)
    closer.start()
    closer.join(20)
    assert not closer.is_alive()
    for worker in workers:
        engine.wake()
        worker.join(20)
    assert ends == ["the engine was shut down"] * 2


def test_an_iterator_that_another_thread_closes(make_llm, monkeypatch, expected):
    llm = make_llm()
    inside, go_on = pause(llm, monkeypatch)
    stream = llm.stream(PROMPTS, GREEDY)
    reader = threading.Thread(target=lambda: next(stream), daemon=True)
    reader.start()
    assert inside.wait(20)
    with pytest.raises(ValueError, match="already executing"):
        stream.close()
    go_on.set()
    reader.join(20)
    closer = threading.Thread(target=stream.close)
    closer.start()
    closer.join(20)
    assert not llm.llm_engine.has_unfinished_requests()
    assert tokens_of(llm) == expected


def test_a_request_submitted_twice(make_llm):
    engine = make_llm().llm_engine
    request = engine.input_processor.process("a", PROMPTS[1], GREEDY)
    engine.submit(request)
    with pytest.raises(ValueError, match="submitted before"):
        engine.submit(request)
    while engine.has_unfinished_requests():
        engine.step()
    with pytest.raises(ValueError, match="submitted before"):
        engine.submit(request)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_fork_is_told_that_the_engine_is_not_its_own(make_llm, monkeypatch, expected):
    """Also where another thread was in the middle of a step: its lock stays taken for ever."""
    llm = make_llm()
    engine = llm.llm_engine
    inside, go_on = pause(llm, monkeypatch)
    engine.add_request("a", PROMPTS[1], GREEDY)
    stepper = Stepper(engine)
    stepper.start()
    assert inside.wait(20)
    pid = os.fork()
    if pid == 0:  # nothing of pytest may run here
        refused = 0
        for act in (engine.step, lambda: engine.add_request("b", [5], GREEDY)):
            try:
                act()
            except EngineDeadError as error:
                refused += "forked" in str(error)
        engine.abort_request("a")
        engine.shutdown()
        os._exit(0 if refused == 2 else 1)
    assert os.waitpid(pid, 0)[1] == 0
    go_on.set()
    stepper.end()
    assert stepper.outputs["a"][-1].outputs[0].token_ids == expected[1]


EXITS = {
    "stream": "stream = llm.stream([[5, 7]], params); next(stream)",
    "thread": """
import threading
threading.Thread(target=lambda: llm.generate([[5]] * 40, params), daemon=True).start()
while not llm.stats()["steps"]: pass
""",
    "async": """
import asyncio
from folovllm import AsyncLLM
engine = AsyncLLM(llm.llm_engine.config, "cpu")
async def run():
    async for _ in engine.generate("a", [5, 7], params): break
    outputs = engine.generate("b", [5, 7], params)
    await anext(outputs)
loop = asyncio.new_event_loop()
loop.run_until_complete(run())
loop.close()
""",
}


@pytest.mark.parametrize("kind", EXITS)
def test_the_interpreter_ends_in_the_middle(tiny_folder, kind):
    code = (
        "from folovllm import LLM, SamplingParams\n"
        f"llm = LLM({str(tiny_folder())!r}, device='cpu', block_size=4)\n"
        "params = SamplingParams(max_tokens=None, ignore_eos=True)\n" + EXITS[kind]
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert "Fatal" not in result.stderr
