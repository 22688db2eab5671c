"""What is sampled through the whole engine follows the model's probabilities."""

import math
from collections import Counter

import pytest
import torch
from transformers import AutoModelForCausalLM

from folovllm import SamplingParams

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPT = [5, 7, 9, 11, 13]
DRAWS = 3000


@pytest.fixture(scope="module")
def llm(build_llm):
    return build_llm("qwen3")


@pytest.fixture(scope="module")
def model(tiny_folder):
    return AutoModelForCausalLM.from_pretrained(tiny_folder("qwen3"), dtype=torch.float32)


def probabilities(model, ids, params):
    """By transformers' logits and the definitions, in float64."""
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, -1].double()
    if params.logit_bias:
        for token, bias in params.logit_bias.items():
            logits[token] += bias
    probs = (logits / params.temperature).softmax(-1)
    probs[probs < params.min_p * probs.max()] = 0
    if params.top_k > 0:
        probs[probs < probs.sort(descending=True).values[params.top_k - 1]] = 0
    probs /= probs.sum()
    ordered, places = probs.sort(descending=True)
    probs[places[ordered.cumsum(-1) - ordered >= params.top_p]] = 0
    return (probs / probs.sum()).tolist()


def check_distribution(counts, probs):
    """Pearson's test, tokens that are expected less than five times taken together."""
    total = sum(counts.values())
    assert all(probs[token] > 0 for token in counts)
    cells = [(counts[t], p * total) for t, p in enumerate(probs) if p * total >= 5]
    rest_seen = total - sum(seen for seen, _ in cells)
    rest_expected = total - sum(expected for _, expected in cells)
    if rest_expected > 1:
        cells.append((rest_seen, rest_expected))
    statistic = sum((seen - expected) ** 2 / expected for seen, expected in cells)
    assert len(cells) > 1
    halves = torch.tensor([len(cells) - 1, statistic], dtype=torch.float64) / 2
    assert torch.special.gammaincc(*halves) > 1e-4  # the chance of more than that


def draw(llm, prompt=PROMPT, **options):
    params = SamplingParams(n=DRAWS, max_tokens=1, ignore_eos=True, **options)
    [out] = llm.generate(prompt, params, use_tqdm=False)
    return Counter(completion.token_ids[0] for completion in out.outputs), params


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 3.0},
        {"temperature": 5.0, "top_k": 7},
        {"temperature": 3.0, "top_p": 0.8},
        {"temperature": 3.0, "min_p": 0.1},
        {"temperature": 3.0, "top_k": 30, "top_p": 0.9, "min_p": 0.01},
        {"temperature": 3.0, "logit_bias": {3: 9.0, 4: -5.0}},
    ],
    ids=str,
)
def test_the_first_token(llm, model, options):
    # More sequences than run at once: some are forked, the others come from the prefix cache.
    counts, params = draw(llm, seed=11, **options)
    check_distribution(counts, probabilities(model, PROMPT, params))


def test_the_second_token_given_the_first(llm, model):
    params = SamplingParams(n=DRAWS, max_tokens=2, top_k=9, seed=5, ignore_eos=True)
    [out] = llm.generate(PROMPT, params, use_tqdm=False)
    pairs = [tuple(completion.token_ids) for completion in out.outputs]
    [(first, count)] = Counter(first for first, _ in pairs).most_common(1)
    assert count > 150
    seconds = Counter(second for each, second in pairs if each == first)
    check_distribution(seconds, probabilities(model, [*PROMPT, first], params))


def test_many_requests_of_one(llm, model):
    params = SamplingParams(max_tokens=1, temperature=3.0, ignore_eos=True)
    outputs = llm.generate([PROMPT] * 2000, params, use_tqdm=False)
    counts = Counter(out.outputs[0].token_ids[0] for out in outputs)
    check_distribution(counts, probabilities(model, PROMPT, params))


def test_logprobs_are_the_models(llm, model):
    params = SamplingParams(n=20, max_tokens=1, temperature=3.0, top_k=9, logprobs=2, seed=1)
    [out] = llm.generate(PROMPT, params, use_tqdm=False)
    raw = probabilities(model, PROMPT, SamplingParams())
    ranked = sorted(raw, reverse=True)
    for completion in out.outputs:
        [token] = completion.token_ids
        [table] = completion.logprobs
        assert completion.cumulative_logprob == table[token].logprob
        for each, logprob in table.items():
            assert math.isclose(logprob.logprob, math.log(raw[each]), abs_tol=1e-4)
            assert logprob.rank == ranked.index(raw[each]) + 1


def test_a_seed_repeats_in_another_engine_and_beside_others(llm, make_llm):
    seeded = SamplingParams(n=3, temperature=2.0, seed=7, max_tokens=10, ignore_eos=True)
    other = SamplingParams(n=2, temperature=2.0, max_tokens=14, top_p=0.9)
    [alone] = llm.generate(PROMPT, seeded, use_tqdm=False)
    again = make_llm("qwen3", seed=99, max_num_batched_tokens=11)
    prompts = [[8, 8, 8], PROMPT, [60, 61], [4] * 30]
    _, beside, *_ = again.generate(prompts, [other, seeded, other, other], use_tqdm=False)
    tokens = [completion.token_ids for completion in alone.outputs]
    assert [completion.token_ids for completion in beside.outputs] == tokens
    different = SamplingParams(n=3, temperature=2.0, seed=8, max_tokens=10, ignore_eos=True)
    [out] = again.generate(PROMPT, different, use_tqdm=False)
    assert [completion.token_ids for completion in out.outputs] != tokens


def test_the_engines_seed(make_llm):
    params = SamplingParams(n=3, temperature=2.0, max_tokens=10, ignore_eos=True)
    seeds = (1, 1, 2)
    llms = [make_llm("qwen3", seed=seed) for seed in seeds]
    drawn = [[c.token_ids for c in llm.generate(PROMPT, params)[0].outputs] for llm in llms]
    assert drawn[0] == drawn[1] != drawn[2]
    assert [c.token_ids for c in llms[0].generate(PROMPT, params)[0].outputs] != drawn[0]
