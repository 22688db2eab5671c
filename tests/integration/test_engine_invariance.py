"""A request's tokens do not depend on how the engine comes to them."""

import random
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from folovllm import SamplingParams

pytestmark = pytest.mark.usefixtures("one_thread")

# Plain; sliding window; soft cap with windows in every other layer; experts; sinks; latent.
FAMILIES = ("llama", "mistral", "gemma2", "mixtral", "gpt_oss", "deepseek_v3")
LENGTH = 21
PROMPT = [random.Random(5).randrange(3, 96) for _ in range(LENGTH)]
OTHERS = [[random.Random(i).randrange(3, 96) for _ in range(3 * i + 1)] for i in range(9)]


def greedy(max_tokens=12, **options):
    return SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True, **options)


def sampled(seed=1, max_tokens=12, **options):
    return SamplingParams(
        temperature=1.5, seed=seed, max_tokens=max_tokens, ignore_eos=True, **options
    )


def tokens_of(llm, prompts, params, **options):
    outputs = llm.generate(prompts, params, use_tqdm=False, **options)
    assert all(out.error is None and out.finished for out in outputs)
    return [[completion.token_ids for completion in out.outputs] for out in outputs]


def set_budget(llm, num_tokens):
    scheduler = llm.llm_engine.scheduler
    scheduler._setup = replace(scheduler._setup, max_num_batched_tokens=num_tokens)


def preempt_always(llm, monkeypatch):
    """Take the blocks of all that runs before each step."""
    scheduler = llm.llm_engine.scheduler
    schedule = scheduler.schedule

    def preempt_and_schedule():
        while scheduler.num_running:
            scheduler._preempt(scheduler._running.pop_last())
        return schedule()

    monkeypatch.setattr(scheduler, "schedule", preempt_and_schedule)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def plain(build_llm, family):
    """An engine of a family without a prefix cache, and what it generates request by request."""
    llm = build_llm(family, enable_prefix_caching=False)
    prompts = [PROMPT, *OTHERS]
    expected = [tokens_of(llm, prompt, greedy())[0] for prompt in prompts]
    return llm, prompts, expected


def test_batched(plain):
    llm, prompts, expected = plain
    assert tokens_of(llm, prompts, greedy()) == expected
    assert tokens_of(llm, prompts[::-1], greedy()) == expected[::-1]


def test_every_chunk_size(plain):
    llm, _, [expected, *_] = plain
    try:
        for size in range(1, LENGTH + 1):
            set_budget(llm, size)
            steps = llm.stats()["steps"]
            assert tokens_of(llm, PROMPT, greedy(4)) == [[expected[0][:4]]]
            assert llm.stats()["steps"] - steps == -(-LENGTH // size) + 3
    finally:
        set_budget(llm, 512)


def test_every_chunk_size_beside_others(plain):
    llm, prompts, expected = plain
    try:
        for size in (1, 2, 3, 5, 7, 11, 16):
            set_budget(llm, size)
            short = [[tokens[:3] for tokens in each] for each in expected]
            assert tokens_of(llm, prompts[:6], greedy(3)) == short[:6]
    finally:
        set_budget(llm, 512)


def test_cold_and_warm(make_llm, family, plain):
    _, prompts, expected = plain
    llm = make_llm(family)
    assert tokens_of(llm, prompts, greedy()) == expected
    for num_tokens in (512, 7, 1):
        set_budget(llm, num_tokens)
        assert tokens_of(llm, prompts, greedy()) == expected
    assert llm.stats()["prefix_hits"] > 3 * 16


def test_a_conversation_that_goes_on(make_llm, family, plain):
    whole, _, _ = plain
    llm = make_llm(family)
    prompt = PROMPT
    for turn in range(3):
        [[answer]] = tokens_of(llm, prompt, greedy(7))
        assert tokens_of(whole, prompt, greedy(7)) == [[answer]]
        prompt = [*prompt, *answer, 40 + turn]
    [out] = llm.generate(prompt, greedy(1), use_tqdm=False)
    assert out.num_cached_tokens >= len(prompt) - 12  # the answers' blocks are found as well


@pytest.mark.parametrize("host_blocks", [0, 64], ids=["recompute", "swap"])
@pytest.mark.parametrize("caching", [False, True])
def test_preempted_at_every_step(make_llm, family, plain, monkeypatch, host_blocks, caching):
    _, prompts, expected = plain
    llm = make_llm(family, host_blocks=host_blocks, enable_prefix_caching=caching)
    preempt_always(llm, monkeypatch)
    out = llm.generate(prompts, greedy(), use_tqdm=False)
    assert [[c.token_ids for c in o.outputs] for o in out] == expected
    assert all(o.metrics.num_preemptions >= 11 for o in out)
    # Forked sequences lose their shared blocks as well.
    assert tokens_of(llm, PROMPT, greedy(n=3)) == [expected[0] * 3]


@pytest.mark.parametrize("host_blocks", [0, 10])
@pytest.mark.parametrize("caching", [False, True])
def test_a_cache_that_is_too_small_for_all(make_llm, family, plain, host_blocks, caching):
    _, prompts, expected = plain
    llm = make_llm(
        family,
        host_blocks=host_blocks,
        enable_prefix_caching=caching,
        num_gpu_blocks_override=13,
        max_num_batched_tokens=19,
    )
    assert tokens_of(llm, prompts, greedy()) == expected
    assert llm.stats()["preemptions"] > 0


def test_forked(make_llm, family, plain):
    _, prompts, expected = plain
    llm = make_llm(family, max_num_seqs=7, max_num_batched_tokens=17)
    several = tokens_of(llm, prompts, greedy(n=5))
    assert several == [tokens * 5 for tokens in expected]


def test_streamed(plain):
    llm, prompts, expected = plain
    pieces = [[] for _ in prompts]
    for out in llm.stream(prompts, greedy()):
        pieces[int(out.request_id.partition("-")[0])] += out.outputs[0].token_ids
    assert [[tokens] for tokens in pieces] == expected


def test_sampled_with_a_seed(make_llm, monkeypatch):
    alone = make_llm()
    one = tokens_of(alone, PROMPT, sampled(n=4))
    assert len({tuple(tokens) for tokens in one[0]}) == 4
    assert tokens_of(alone, PROMPT, sampled(n=2))[0] == one[0][:2]
    for options in (
        {"max_num_batched_tokens": 3},
        {"enable_prefix_caching": False, "max_num_seqs": 2},
        {"num_gpu_blocks_override": 13, "host_blocks": 9},
    ):
        llm = make_llm(**options)
        params = [sampled(n=4), *[sampled(seed=None)] * len(OTHERS)]
        assert tokens_of(llm, [PROMPT, *OTHERS], params)[0] == one[0]
    for host_blocks in (0, 64):
        llm = make_llm(host_blocks=host_blocks)
        preempt_always(llm, monkeypatch)
        assert tokens_of(llm, PROMPT, sampled(n=4)) == one


@pytest.fixture(scope="module")
def engines(build_llm):
    """A large and roomy engine, and small ones of every kind, for many batches each."""
    small = {"num_gpu_blocks_override": 17, "max_num_batched_tokens": 9, "max_num_seqs": 5}
    return build_llm("gemma2", enable_prefix_caching=False), [
        build_llm("gemma2", **small),
        build_llm("gemma2", **small, host_blocks=12),
        build_llm("gemma2", **small, enable_prefix_caching=False, policy="priority"),
    ]


request = st.tuples(
    st.integers(1, 40),  # how much of a common text
    st.lists(st.integers(3, 6), max_size=3),  # and what of its own
    st.builds(
        SamplingParams,
        temperature=st.sampled_from([0.0, 1.0]),
        seed=st.integers(0, 3),
        n=st.just(1) | st.integers(1, 4),
        max_tokens=st.integers(1, 9),
        top_k=st.sampled_from([-1, 5]),
        repetition_penalty=st.sampled_from([1.0, 1.5]),
        ignore_eos=st.booleans(),
        min_tokens=st.integers(0, 1),
        prompt_logprobs=st.none() | st.just(0),
    ),
    st.integers(-2, 2),
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(request, min_size=1, max_size=8), st.integers(0, 2))
def test_any_batch_in_any_engine(engines, nothing_left, requests, which):
    roomy, small = engines[0], engines[1][which]
    text = (PROMPT * 3)[:40]
    prompts = [text[:length] + tail for length, tail, _, _ in requests]
    params = [each[2] for each in requests]
    priority = [each[3] for each in requests]
    together = tokens_of(small, prompts, params, priority=priority)
    for prompt, each, tokens in zip(prompts, params, together, strict=True):
        assert tokens_of(roomy, prompt, each) == [tokens]
    nothing_left(small)
