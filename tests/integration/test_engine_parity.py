"""The engine's greedy tokens are those of transformers' `generate`, for every family."""

import random

import pytest
import torch
from transformers import AutoModelForCausalLM

from folovllm import ModelLoadError, SamplingParams

pytestmark = pytest.mark.usefixtures("one_thread")

LENGTHS = (1, 2, 5, 8, 9, 17, 30, 44)  # windows are of 8 tokens, models of 64
GREEDY = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)


def make_prompts(lengths=LENGTHS, seed=0):
    rng = random.Random(seed)
    return [[rng.randrange(3, 96) for _ in range(length)] for length in lengths]


def generate_with_transformers(folder, prompts, max_new_tokens=16):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    outputs = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=max_new_tokens,
        )
        outputs.append(out[0, len(prompt) :].tolist())
    return outputs


def test_every_family(served_family, make_llm, tiny_folder):
    prompts = make_prompts()
    expected = generate_with_transformers(tiny_folder(served_family), prompts)
    assert len({token for tokens in expected for token in tokens}) > 2
    # A budget that cuts long prompts in pieces, beside others that decode.
    llm = make_llm(served_family, max_num_batched_tokens=14)
    outputs = llm.generate(prompts, GREEDY, use_tqdm=False)
    assert [out.outputs[0].token_ids for out in outputs] == expected
    # Whole prompts, one at a time, in another order, and found in the prefix cache.
    again = make_llm(served_family)
    for prompt, tokens in reversed(list(zip(prompts, expected, strict=True))):
        [out] = again.generate(prompt, GREEDY, use_tqdm=False)
        assert out.outputs[0].token_ids == tokens
        [warm] = again.generate(prompt, GREEDY, use_tqdm=False)
        assert warm.outputs[0].token_ids == tokens
        assert warm.num_cached_tokens == (len(prompt) - 1) // 4 * 4


def test_every_familys_probabilities(served_family, make_llm, tiny_folder):
    # Greedy tokens alone could agree by chance where one token is likely everywhere.
    params = SamplingParams(
        temperature=0, max_tokens=9, ignore_eos=True, prompt_logprobs=-1, logprobs=-1
    )
    prompts = make_prompts((1, 3, 21, 44), seed=1)
    llm = make_llm(served_family, max_num_batched_tokens=14)
    model = AutoModelForCausalLM.from_pretrained(tiny_folder(served_family), dtype=torch.float32)
    for prompt, out in zip(prompts, llm.generate(prompts, params, use_tqdm=False), strict=True):
        completion = out.outputs[0]
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + completion.token_ids[:-1]])).logits[0]
        ours = out.prompt_logprobs[1:] + completion.logprobs
        table = torch.tensor([[row[i].logprob for i in range(len(row))] for row in ours])
        torch.testing.assert_close(table, logits.log_softmax(-1), atol=2e-4, rtol=2e-4)


ROPE = {"rope_theta": 1e4}
LONGROPE = {
    **ROPE,
    "rope_type": "longrope",
    "short_factor": [1.0, 1.5, 2.0, 2.5],
    "long_factor": [2.0, 4.0, 8.0, 16.0],
}
STRETCHED = {
    "linear": ("llama", {"rope_parameters": {**ROPE, "rope_type": "linear", "factor": 4.0}}, 256),
    "yarn": (
        "qwen2",
        {
            "rope_parameters": {
                **ROPE,
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
        256,
    ),
    "dynamic": ("llama", {"rope_parameters": {**ROPE, "rope_type": "dynamic", "factor": 4.0}}, 64),
    "longrope": (
        "phi3",
        {
            "rope_parameters": LONGROPE,
            "original_max_position_embeddings": 48,
            "max_position_embeddings": 192,
        },
        48,
    ),
    "gpt2": ("gpt2", {}, 64),
    "opt": ("opt", {}, 64),
}


@pytest.mark.parametrize("kind", STRETCHED)
def test_positions_up_to_the_longest_sequence(kind, make_llm, tiny_folder):
    family, options, longest = STRETCHED[kind]
    prompts = make_prompts((1, 8, longest // 2, longest - 16))
    expected = generate_with_transformers(tiny_folder(family, **options), prompts)
    for budget in (None, 14):  # whole prompts and pieces of them
        llm = make_llm(family, model=options, max_num_batched_tokens=budget)
        assert llm.llm_engine.setup.max_model_len == longest
        for _ in range(2):  # and found in the prefix cache
            outputs = llm.generate(prompts, GREEDY, use_tqdm=False)
            assert [out.outputs[0].token_ids for out in outputs] == expected


def test_a_window_that_the_layers_keep_to_themselves(make_llm, tiny_folder):
    """Transformers hands this family's window on in a mask, of which we get none."""
    window = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
    prompts = make_prompts()
    expected = generate_with_transformers(tiny_folder("qwen2_moe", **window), prompts)
    outputs = make_llm("qwen2_moe", model=window).generate(prompts, GREEDY, use_tqdm=False)
    assert [out.outputs[0].token_ids for out in outputs] == expected
    without = make_llm("qwen2_moe").generate(prompts, GREEDY, use_tqdm=False)
    assert [out.outputs[0].token_ids for out in without] != expected


def test_a_window_said_by_a_mask_alone_is_refused(make_llm):
    with pytest.raises(ModelLoadError, match=r"phimoe.* layers \[0, 1\] see a part of the text"):
        make_llm("phimoe", model={"num_local_experts": 4, "sliding_window": 8})


def test_up_to_the_models_length(make_llm, tiny_folder):
    prompts = make_prompts((63, 60, 1))
    expected = generate_with_transformers(tiny_folder("llama"), prompts, 63)
    llm = make_llm()
    params = SamplingParams(temperature=0, max_tokens=None, ignore_eos=True)
    for out, tokens in zip(llm.generate(prompts, params, use_tqdm=False), expected, strict=True):
        length = 64 - len(out.prompt_token_ids)
        assert out.outputs[0].token_ids == tokens[:length]
        assert out.outputs[0].finish_reason == "length"


def test_end_of_sequence_is_where_transformers_ends(make_llm, tiny_folder):
    folder = tiny_folder("llama")
    prompts = make_prompts(range(1, 40))
    full = generate_with_transformers(folder, prompts)
    eos_ids = (2, 9)  # the configuration's and the tokenizer's
    outputs = make_llm().generate(
        prompts, SamplingParams(temperature=0, max_tokens=16), use_tqdm=False
    )
    reasons = set()
    for out, tokens in zip(outputs, full, strict=True):
        ends = [i for i, token in enumerate(tokens) if token in eos_ids]
        completion = out.outputs[0]
        reasons.add(completion.finish_reason)
        assert completion.token_ids == tokens[: ends[0] + 1 if ends else None]
        assert completion.finish_reason == ("stop" if ends else "length")
    assert reasons == {"stop", "length"}
