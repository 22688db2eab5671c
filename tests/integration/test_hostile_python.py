"""Over a thousand hostile uses of the Python interface: none harms the engine or a neighbour.

Each input may be taken or refused by a `ValueError`. Beside each of them a neighbour runs: after
it, the neighbour's output is what it is alone, and the engine lives and holds nothing.
"""

import asyncio
import threading
from contextlib import suppress

import pytest

from folovllm import EngineConfig, SamplingParams
from folovllm.engine.async_llm import AsyncLLM
from folovllm.sampling_params import RequestOutputKind
from tests.integration.hostile import FIELDS, HALF, MESSAGES, PROMPTS, VALUES, Odd, Word

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]

REFUSALS = (ValueError, NotImplementedError)
NEIGHBOUR = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
MOST_STEPS = 400


class Watched:
    """An engine with a neighbour beside each input, made anew where an input broke it."""

    def __init__(self, build, nothing_left):
        self._build, self._nothing_left = build, nothing_left
        self.bad, self.count = [], 0
        self._start()

    def _start(self):
        self.llm = self._build()
        self.engine = self.llm.llm_engine
        [alone] = self.llm.generate([5, 7, 9], NEIGHBOUR, use_tqdm=False)
        self._alone = alone.outputs[0].token_ids

    def try_input(self, name, use):
        """Use the engine in some way, then see how it and the neighbour are."""
        self.count += 1
        inbox = []
        try:
            self.engine.add_request("neighbour", [5, 7, 9], NEIGHBOUR, deliver=inbox.append)
            self.engine.step()
            with suppress(*REFUSALS):
                use(self.llm)
            self.finish()
            assert inbox[-1].outputs[0].token_ids == self._alone
            self._nothing_left(self.llm)
        except BaseException as error:  # noqa: BLE001 - told by `end`
            self.bad.append(f"{name}: {type(error).__name__}: {error}"[:200])
            self._start()

    def finish(self):
        """Step until nothing is left to do."""
        for _ in range(MOST_STEPS):
            if not self.engine.has_unfinished_requests():
                return
            self.engine.step()
        raise AssertionError("a request does not end")

    def end(self):
        bad, self.bad = self.bad, []
        assert not bad, "\n".join(bad)


@pytest.fixture(scope="module")
def watched(build_llm, nothing_left):
    watched = Watched(lambda: build_llm(num_gpu_blocks_override=60), nothing_left)
    yield watched
    print(f"{watched.count} inputs")


@pytest.fixture
def attempt(watched):
    yield watched.try_input
    watched.end()


def some(field, share):
    """Every second or third value, beginning elsewhere for each field: they are refused alike."""
    return list(VALUES.items())[FIELDS.index(field) % share :: share]


def short(**options):
    return SamplingParams(**{"max_tokens": 3, **options})


@pytest.mark.parametrize("field", FIELDS)
def test_parameters_at_construction(attempt, field):
    for name, make in some(field, 3):
        attempt(
            f"{field}={name}",
            lambda llm, make=make: llm.generate([4, 5], short(**{field: make()}), use_tqdm=False),
        )


@pytest.mark.parametrize("field", FIELDS)
def test_parameters_changed_before_they_are_used(attempt, field):
    for name, make in some(field, 2):

        def use(llm, make=make):
            params = short()
            setattr(params, field, make())
            llm.llm_engine.add_request("bad", [4, 5], params)

        attempt(f"{field}={name}", use)


RICH = {
    "temperature": 0,
    "stop": ["cat cat cat"],
    "stop_token_ids": [95],
    "logit_bias": {7: 3},
    "bad_words": ["mat"],
    "logprobs": 1,
    "output_kind": RequestOutputKind.DELTA,
}


def test_parameters_changed_after_they_are_used(attempt):
    """They are those of when the request was added, whatever becomes of the caller's."""

    def tokens(engine, change):
        params, outputs = short(**RICH), []
        engine.add_request("changed", [4, 5], params, deliver=outputs.append)
        for step in range(MOST_STEPS):
            if step == 1:
                change(params)
            if outputs and outputs[-1].finished:
                return [(out.outputs[0].token_ids, out.outputs[0].text) for out in outputs]
            engine.step()
        raise AssertionError("it does not end")

    def change_all(params, make):
        for field in FIELDS:
            setattr(params, field, make())

    for name, make in VALUES.items():

        def use(llm, make=make):
            expected = tokens(llm.llm_engine, lambda _: None)
            assert tokens(llm.llm_engine, lambda params: change_all(params, make)) == expected

        attempt(name, use)


def test_lists_changed_after_they_are_used(attempt):
    def use(llm):
        params = short(**RICH)
        llm.llm_engine.add_request("changed", [4, 5], params)
        for values in (params.stop, params.stop_token_ids, params.bad_words):
            values[:] = [None, HALF, Odd()]
        params.logit_bias["x"] = "y"
        del params.temperature

    attempt("lists", use)


@pytest.mark.parametrize("door", ["generate", "stream", "add_request"])
def test_prompts(attempt, door):
    def use(llm, make):
        if door == "generate":
            llm.generate(make(), short(), use_tqdm=False)
        elif door == "stream":
            list(llm.stream(make(), short()))
        else:
            llm.llm_engine.add_request("bad", make(), short())

    for name, make in PROMPTS.items():
        attempt(f"{door}: {name}", lambda llm, make=make: use(llm, make))


@pytest.mark.parametrize("name", MESSAGES)
def test_messages(attempt, name):
    template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    attempt(
        name,
        lambda llm: llm.chat(MESSAGES[name](), short(), use_tqdm=False, chat_template=template),
    )


@pytest.mark.parametrize(
    "argument", ["request_id", "priority", "arrival_time", "deliver", "params", "submit", "abort"]
)
def test_arguments_of_the_engine(attempt, argument):
    def use(llm, make):
        engine, value = llm.llm_engine, make()
        if argument == "abort":
            engine.add_request("bad", [4, 5], short())
            engine.abort_request(value)
        elif argument == "submit":
            engine.submit(value)
        else:
            given = {"request_id": "bad", "params": short(), argument: value}
            engine.add_request(prompt=[4, 5], **given)

    more = {
        "long": lambda: "r" * 5_000_000,
        "names": lambda: ["bad", "unknown", Word("bad")],
        "neighbour": lambda: "neighbour " if argument == "abort" else "neighbour",
        "subnormal": lambda: 5e-324,
        "64 bits": lambda: 2**63,
    }
    for name, make in {**VALUES, **more}.items():
        attempt(f"{argument}={name}", lambda llm, make=make: use(llm, make))


NO_BARS = ("class", "odd", "array", "tensor", "meta tensor", "word")
"""Values that are neither a yes or no nor a function: `use_tqdm` raises what they raise."""


@pytest.mark.parametrize("argument", ["sampling_params", "priority", "use_tqdm"])
def test_arguments_of_generate(attempt, argument):
    values = {
        name: make
        for name, make in VALUES.items()
        if argument != "use_tqdm"
        or name not in ("class", "odd", "array", "tensor", "meta tensor", "word")
    }
    for name, make in values.items():

        def use(llm, make=make):
            given = {"sampling_params": short(), "use_tqdm": False, argument: make()}
            llm.generate([[4, 5], [6]], **given)

        attempt(f"{argument}={name}", use)
    attempt("params for one", lambda llm: llm.generate([[4], [5]], [short()], use_tqdm=False))
    attempt("some params", lambda llm: llm.generate([[4], [5]], [short(), 5], use_tqdm=False))


def raising(error):
    def fail(*_):
        raise error

    return fail


class OwnError(Exception):
    """An error of a user's own whose text cannot be made."""

    def __str__(self):
        raise OSError("no text")


@pytest.mark.parametrize(
    "error", [KeyError("x"), OwnError(), StopIteration(), MemoryError()], ids=repr
)
def test_callbacks_that_raise(attempt, error):
    def deliver(llm, **options):
        params = short(ignore_eos=True, **options)
        llm.llm_engine.add_request("bad", [4, 5], params, deliver=raising(error))

    def aborted(llm):
        deliver(llm)
        llm.llm_engine.abort_request("bad")

    def stopped(llm):
        with pytest.raises((type(error), RuntimeError)):  # a generator's StopIteration
            list(llm.stream([4, 5], short(), is_stopped=raising(error)))

    for kind in RequestOutputKind:
        attempt(kind.name, lambda llm, kind=kind: deliver(llm, output_kind=kind))
        attempt(f"{kind.name} n", lambda llm, kind=kind: deliver(llm, output_kind=kind, n=3))
    attempt("aborted", aborted)
    attempt("stopped", stopped)


def test_callbacks_that_use_the_engine(attempt):
    def adding(llm):
        def add(output):
            if output is not None and output.finished:
                llm.llm_engine.add_request("more", [6], short(), deliver=lambda _: None)

        llm.llm_engine.add_request("first", [4, 5], short(), deliver=add)

    def aborting(llm):
        engine = llm.llm_engine
        engine.add_request("first", [4], short(), deliver=lambda _: engine.abort_request("other"))
        engine.add_request("self", [4], short(), deliver=lambda _: engine.abort_request("self"))
        engine.add_request("other", [5], short(n=2))

    def within(act):
        def use(llm):
            refused = []

            def deliver(_):
                try:
                    act(llm)
                except RuntimeError as error:
                    refused.append(error)

            llm.llm_engine.add_request("first", [4, 5], short(), deliver=deliver)
            llm.llm_engine.step()
            assert refused
            assert "within its own step" in str(refused[0])

        return use

    attempt("adding", adding)
    attempt("aborting", aborting)
    attempt("stepping", within(lambda llm: llm.llm_engine.step()))
    attempt("generating", within(lambda llm: llm.generate([4], short(), use_tqdm=False)))
    attempt("waiting", within(lambda llm: llm.llm_engine.wait_for_work()))
    attempt("shutting down", within(lambda llm: llm.llm_engine.shutdown()))


def test_threads_with_bad_inputs(attempt):
    """Each thread tries all values of its field, one engine steps for all."""

    def bad(llm, field):
        for name, make in VALUES.items():
            params = short()
            setattr(params, field, make())
            try:
                llm.llm_engine.add_request(f"{field} {name}", [4, 5], params)
            except REFUSALS:
                continue
            setattr(params, field, object())

    def use(llm):
        threads = [threading.Thread(target=bad, args=(llm, field)) for field in FIELDS[:12]]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            llm.llm_engine.step()

    attempt("threads", use)


def test_async(tiny_folder):
    """The same values through the iterators of `AsyncLLM`, in one engine."""
    options = {"block_size": 4, "dtype": "float32", "num_gpu_blocks_override": 60}
    config = EngineConfig.from_options(model=str(tiny_folder("llama")), **options)
    llm, bad = AsyncLLM(config, "cpu"), []

    async def collect(name="good", prompt=(5, 7, 9), params=NEIGHBOUR, **options):
        outputs = [out async for out in llm.generate(name, prompt, params, **options)]
        return outputs[-1].outputs[0].token_ids

    async def use(argument, value):
        given = {argument: value}
        if argument in FIELDS:
            params = short()
            setattr(params, argument, value)
            given = {"params": params}
        neighbour = asyncio.create_task(collect("neighbour"))
        with suppress(*REFUSALS):
            await collect(**{"name": "bad", **given})
        return await neighbour

    async def run():
        alone = await collect()
        for argument in ("name", "prompt", "params", "priority", "stop", "temperature"):
            for name, make in VALUES.items():
                try:
                    assert await use(argument, make()) == alone
                    assert not llm.llm_engine.has_unfinished_requests()
                except Exception as error:  # noqa: BLE001 - told below
                    bad.append(f"{argument}={name}: {error!r}"[:200])

    try:
        asyncio.run(run())
    finally:
        llm.shutdown()
    assert not bad, "\n".join(bad)
