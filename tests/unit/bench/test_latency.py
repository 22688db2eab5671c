from types import SimpleNamespace

import pytest

from folovllm.bench.latency import LatencyBench, LatencyPlan
from folovllm.bench.results import BenchError

SMALL = LatencyPlan(
    prompts=(4, 8), batches=(1, 3), contexts=(6,), context=5, steps=4, rounds=3, decode_rounds=2
)


class PlayedFloor:
    def take(self):
        return 0.01


@pytest.fixture
def measure(clock, engine_of):
    def measured(engine=None, plan=SMALL, max_model_len=64, max_num_seqs=8):
        engine = engine or engine_of(0.25)
        engine.setup = SimpleNamespace(
            vocab_size=50, longest_sequence=max_model_len, max_num_seqs=max_num_seqs
        )
        recorded, lines = {}, []
        LatencyBench(
            engine,
            PlayedFloor(),
            seed=0,
            record=lambda m: recorded.setdefault((m.metric, m.case), m),
            say=lines.append,
            clock=clock.now,
        ).run(plan)
        return recorded, lines, engine

    return measured


@pytest.fixture
def engine_of(engine_of):
    """Requests without an end get as many tokens as they like."""

    def made(seconds=0.25):
        engine = engine_of(seconds)
        add = engine.add_request

        def add_endless(request_id, prompt, params):
            add(request_id, prompt, params)
            engine.left[request_id] = params.max_tokens or 10**9

        engine.add_request = add_endless
        return engine

    return made


def test_what_is_recorded(measure):
    recorded, lines, engine = measure()
    assert list(recorded) == [
        ("time to first token", "prompt of 4 tokens"),
        ("time to first token", "prompt of 8 tokens"),
        ("time per output token", "batch of 1, context of 5"),
        ("time per output token", "batch of 3, context of 5"),
        ("time per output token", "batch of 1, context of 6"),
    ]
    first = recorded["time to first token", "prompt of 8 tokens"]
    assert first.samples == pytest.approx([0.25] * 3)
    assert first.limits == [0.01] * 3
    assert first.parameters == {"prompt": 8}
    each = recorded["time per output token", "batch of 3, context of 5"]
    assert each.samples == pytest.approx([0.25] * 8)
    assert each.limits == [0.01] * 8
    assert each.parameters == {"batch": 3, "context": 5}
    assert len(lines) == 5
    assert lines[0].endswith("time to first token median 250 ms (250 \N{EN DASH} 250)")
    assert not engine.left


def test_no_prompt_comes_twice(measure):
    _, _, engine = measure()
    prompts = [tuple(prompt) for _, prompt, _ in engine.added.values()]
    assert len(prompts) == 1 + 3 * 2 + 2 * (1 + 3 + 1)
    assert len(set(prompts)) == len(prompts)


def test_every_other_round_goes_backwards(measure):
    _, _, engine = measure()
    lengths = [len(prompt) for _, prompt, _ in engine.added.values()]
    assert lengths[1:7] == [4, 8, 8, 4, 4, 8]


def test_what_was_measured_before_an_error_is_kept(clock, engine_of):
    recorded = []
    engine = engine_of()
    engine.setup = SimpleNamespace(vocab_size=50, longest_sequence=64, max_num_seqs=8)
    engine.errors["0-latency-4-0"] = "out of memory"
    bench = LatencyBench(
        *(engine, PlayedFloor()), seed=0, record=recorded.append, say=str, clock=clock.now
    )
    with pytest.raises(BenchError, match="out of memory"):
        bench.run(SMALL)
    assert {each.case: len(each.samples) for each in recorded} == {
        "prompt of 4 tokens": 1,
        "prompt of 8 tokens": 1,
    }


def test_what_the_engine_does_not_take_is_said(measure):
    _, lines, _ = measure(max_num_seqs=2)
    assert "64 tokens a sequence and 2 sequences; what is beyond is left out" in lines[0]


def test_decoding_is_measured_after_the_first_tokens_of_all(measure, engine_of):
    """A step that only computes prompts takes longer, and is no time between tokens."""
    engine = engine_of()
    step = engine.step

    def slow_while_new():
        new = set(engine.left) - seen
        engine.each = 5.0 if new else 0.25
        seen.update(new)
        return step()

    seen = set()
    engine.step = slow_while_new
    recorded, _, _ = measure(engine)
    each = recorded["time per output token", "batch of 3, context of 5"]
    assert each.samples == pytest.approx([0.25] * 8)


@pytest.mark.parametrize("few", [1, 2])
def test_a_batch_that_there_is_no_room_for_is_refused(few, measure, engine_of):
    engine = engine_of()
    step = engine.step
    engine.step = lambda: step()[:few]
    with pytest.raises(BenchError, match=f"{few} of 3 sequences of 5 tokens run at once"):
        measure(engine, plan=LatencyPlan(prompts=(4,), batches=(3,), contexts=(), context=5))


def test_a_step_that_fails_is_no_sample(measure, engine_of):
    engine = engine_of()
    engine.errors["0-latency-2-0"] = "out of memory"
    with pytest.raises(BenchError, match="a step failed: out of memory"):
        measure(engine)


@pytest.mark.parametrize(
    ("max_model_len", "max_num_seqs", "prompts", "batches", "contexts", "context"),
    [
        (2048, 256, (16, 128, 512, 1024), (1, 2, 4, 8, 16, 32), (512, 1024), 128),
        (1024, 256, (16, 128, 512), (1, 2, 4, 8, 16, 32), (512,), 128),
        (2048, 4, (16, 128, 512, 1024), (1, 2, 4), (512, 1024), 128),
        (64, 256, (16,), (1, 2, 4, 8, 16, 32), (), 11),
    ],
)
def test_what_the_engine_does_not_take_is_left_out(
    max_model_len, max_num_seqs, prompts, batches, contexts, context
):
    plan = LatencyPlan().fit(max_model_len, max_num_seqs)
    assert (plan.prompts, plan.batches) == (prompts, batches)
    assert (plan.contexts, plan.context) == (contexts, context)


@pytest.mark.parametrize("plan", [LatencyPlan(prompts=(64,)), LatencyPlan(batches=(9,))])
def test_nothing_left_is_an_error(plan):
    with pytest.raises(BenchError, match=r"nothing to measure: prompts of .* takes 64 tokens"):
        plan.fit(64, 8)
