from types import SimpleNamespace

import pytest

from folovllm.bench.floor import Floor
from folovllm.core.plan import ScheduledSequence, StepPlan
from folovllm.diagnostics.limits import DeviceLimits


def entry(start, num_tokens, samples=()):
    return ScheduledSequence("r-0", start, (1,) * num_tokens, 0, (), tuple(samples))


def plan_of(*entries):
    return StepPlan(entries)


def engine(**config):
    """1000 parameters, 10 of embeddings that are tied, 2 layers with 3 numbers a token each."""
    config = {"vocab_size": 5, "hidden_size": 2, "tie_word_embeddings": True, **config}
    text = SimpleNamespace(**config)
    model = SimpleNamespace(
        model=SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: text)),
        num_parameters=1000,
        layers=[SimpleNamespace(numbers=3)] * 2,
    )
    half = SimpleNamespace(itemsize=2)
    return SimpleNamespace(
        executor=SimpleNamespace(
            runner=SimpleNamespace(model=model), execute=lambda plan: "result"
        ),
        setup=SimpleNamespace(dtype=half, kv_cache_dtype=half),
    )


def test_reading_takes_the_time_of_few_tokens():
    played = engine()
    floor = Floor(played, DeviceLimits(bandwidth=10.0, rate=1e9))
    assert played.executor.execute(plan_of(entry(7, 1, "s"), entry(3, 2, "s"))) == "result"
    # All weights, with the head, and 8 + 5 tokens of 6 numbers, of 2 bytes each.
    assert floor.take() == pytest.approx((1000 + 13 * 6) * 2 / 10)
    assert floor.take() == 0


def test_multiplying_takes_the_time_of_many():
    played = engine()
    floor = Floor(played, DeviceLimits(bandwidth=1e9, rate=100.0))
    played.executor.execute(plan_of(entry(0, 50)))
    played.executor.execute(plan_of(entry(50, 50, "s")))
    assert floor.take() == pytest.approx(2 * (100 * 990 + 10) / 100)


def test_the_head_is_read_when_something_is_sampled():
    played = engine()
    floor = Floor(played, DeviceLimits(bandwidth=10.0, rate=1e9))
    played.executor.execute(plan_of(entry(0, 1)))
    assert floor.take() == pytest.approx((990 + 6) * 2 / 10)


def test_an_embedding_of_its_own_is_not_read():
    played = engine(tie_word_embeddings=False)
    floor = Floor(played, DeviceLimits(bandwidth=10.0, rate=1e9))
    played.executor.execute(plan_of(entry(0, 1)))
    assert floor.take() == pytest.approx((980 + 6) * 2 / 10)


def test_what_a_mixture_of_experts_reads_is_not_known():
    played = engine(num_local_experts=4)
    floor = Floor(played, DeviceLimits(1.0, 1.0))
    played.executor.execute(plan_of(entry(0, 1)))
    assert floor.take() is None
