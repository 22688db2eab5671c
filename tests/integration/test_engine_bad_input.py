"""What the engine refuses, at load and with each request, while it serves the others."""

import itertools

import numpy as np
import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration

from folovllm import LLM, ConfigError, ModelLoadError, SamplingParams

pytestmark = pytest.mark.usefixtures("one_thread")

GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
NO_CACHE = "keep a state that is no KV cache .state-space"
REFUSED = {
    "bert": ({}, "attend to those after them"),
    "mamba": ({}, NO_CACHE),
    "mamba2": ({"num_heads": 4, "head_dim": 16, "n_groups": 1}, NO_CACHE),
    "rwkv": ({"attention_hidden_size": 32}, NO_CACHE),
    "bloom": ({"n_layer": 2, "n_head": 4}, "attention in code of its own"),
    "falcon": ({}, "attention in code of its own"),
    "recurrent_gemma": ({"num_hidden_layers": 3}, NO_CACHE),
    "jamba": ({"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1}, NO_CACHE),
    "bamba": ({"attn_layer_indices": [1], **MAMBA}, NO_CACHE),
    "lfm2": ({"layer_types": ["conv", "full_attention"]}, NO_CACHE),
    "qwen3_next": (
        {"layer_types": ["linear_attention", "full_attention"], "num_experts": 0, **LINEAR},
        NO_CACHE,
    ),
    "falcon_h1": ({"mamba_d_ssm": 64, **MAMBA}, NO_CACHE),
}
ROPES = {
    "dynamic": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
    "longrope": {
        "rope_type": "longrope",
        "factor": 2.0,
        "rope_theta": 1e4,
        "short_factor": [1.0] * 4,
        "long_factor": [2.0] * 4,
        "original_max_position_embeddings": 32,
    },
}


@pytest.mark.parametrize("family", REFUSED)
def test_models_that_cannot_be_served(family, build_llm):
    options, why = REFUSED[family]
    with pytest.raises(ModelLoadError, match=f"{family}.*{why}"):
        build_llm(family, model=options)


def test_encoder_decoder_models(tmp_path, save_tokenizer):
    options = {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "encoder_layers": 1}
    config = BartConfig(vocab_size=96, d_model=32, decoder_layers=1, **options)
    BartForConditionalGeneration(config).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    with pytest.raises(ModelLoadError, match=r"encoder-decoder model \(bart\)"):
        LLM(str(tmp_path), device="cpu")


@pytest.mark.parametrize(("kind", "longest"), [("dynamic", 64), ("longrope", 32)])
def test_positions_beyond_which_they_depend_on_the_batch(kind, longest, build_llm):
    asked = {"model": {"rope_parameters": ROPES[kind]}, "max_model_len": longest + 1}
    with pytest.raises(
        ConfigError, match=rf"max_model_len: got {longest + 1}; LlamaForCausalLM.*{kind}.*longest"
    ):
        build_llm(**asked)


@pytest.mark.parametrize("family", ["gpt2", "opt", "ctrl"])
def test_positions_that_are_in_no_table(family, build_llm):
    with pytest.raises(
        ConfigError, match=r"max_model_len: got 65; .* takes 1 to 64: its table has 64"
    ):
        build_llm(family, max_model_len=65)


def test_options(tiny_folder):
    folder = str(tiny_folder())
    with pytest.raises(ConfigError, match=r"num_gpu_blocks_overide.*num_gpu_blocks_override"):
        LLM(folder, num_gpu_blocks_overide=3)
    with pytest.raises(ConfigError, match="tensor_parallel_size: got 2"):
        LLM(folder, tensor_parallel_size=2)
    with pytest.raises(ConfigError, match="max_num_seqs"):
        LLM(folder, max_num_seqs=0)
    with pytest.raises(ConfigError, match=r"max_num_batched_tokens.*max_model_len, 64"):
        LLM(folder, enable_chunked_prefill=False, max_num_batched_tokens=63, device="cpu")
    with pytest.raises(ConfigError, match=r"cpu_kvcache_space: got 1e\+06 GiB"):
        LLM(folder, cpu_kvcache_space=1e6, device="cpu")
    with pytest.raises(ConfigError, match="no room for a KV cache"):
        LLM(folder, cpu_kvcache_space=1e-9, device="cpu")
    with pytest.raises(ConfigError, match="no room for a KV cache"):
        LLM(folder, num_gpu_blocks_override=1, device="cpu")


@pytest.fixture(scope="module")
def llm(build_llm):
    return build_llm(num_gpu_blocks_override=9)  # eight blocks of four tokens


@pytest.fixture(scope="module")
def alone(llm):
    return llm.generate([5, 7, 9], GREEDY, use_tqdm=False)[0].outputs[0].token_ids


def params(**options):
    return SamplingParams(max_tokens=4, **options)


BAD_PROMPTS = {
    "empty text": ("", "not empty"),
    "empty list": ([[5], []], "at least one token id"),
    "too long": ([5] * 64, "max_model_len is 64"),
    "beyond the vocabulary": ([5, 96], "token ids below 96"),
    "negative": ([5, -1], "prompt"),
    "a fraction": ([5, 1.5], "prompt"),
    "both": ({"prompt": "cat", "prompt_token_ids": [1]}, "got both"),
    "neither": ({}, "got neither"),
    "an unknown key": ({"promt": "cat"}, "'prompt'"),
    "None": (None, "prompt"),
    "a number": (5, "prompt"),
    "half a character": ("\ud83d", "valid Unicode"),
    "nested": ([[[5]]], "prompt"),
}
BAD_PARAMS = {
    "stop id": ({"stop_token_ids": [96]}, "stop_token_ids"),
    "allowed": ({"allowed_token_ids": [1, 96]}, "allowed_token_ids"),
    "bias": ({"logit_bias": {96: 1.0}}, "logit_bias"),
    "logprobs": ({"logprobs": 97}, "logprobs"),
    "prompt_logprobs": ({"prompt_logprobs": 97}, "prompt_logprobs"),
}


@pytest.mark.parametrize("case", BAD_PROMPTS)
def test_bad_prompts(llm, alone, case, nothing_left):
    prompt, message = BAD_PROMPTS[case]
    self_contained = isinstance(prompt, list)
    with pytest.raises(ValueError, match=message):
        llm.generate(prompt, params(), use_tqdm=False)
    if not self_contained:  # one bad among good ones: nothing is generated
        with pytest.raises(ValueError, match=message):
            llm.generate(["cat", prompt, "mat"], params(), use_tqdm=False)
    with pytest.raises(ValueError, match=message):
        list(llm.stream(prompt, params()))
    nothing_left(llm)
    assert llm.generate([5, 7, 9], GREEDY, use_tqdm=False)[0].outputs[0].token_ids == alone


@pytest.mark.parametrize("case", BAD_PARAMS)
def test_bad_parameters(llm, alone, case, nothing_left):
    options, message = BAD_PARAMS[case]
    with pytest.raises(ValueError, match=message):
        llm.generate(["cat", "mat"], [params(), params(**options)], use_tqdm=False)
    nothing_left(llm)
    assert llm.generate([5, 7, 9], GREEDY, use_tqdm=False)[0].outputs[0].token_ids == alone


@pytest.mark.parametrize(
    "options",
    [
        {"stop": "x", "detokenize": False},
        {"min_tokens": 5},
        {"temperature": 0, "best_of": 3},
        {"n": 3, "best_of": 2},
    ],
)
def test_parameters_that_contradict_each_other(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        params(**options)


def test_all_or_nothing(llm, nothing_left):
    steps = llm.stats()["steps"]
    good = [[5, 7]] * 5
    for bad in ([96], [5] * 64):
        with pytest.raises(ValueError, match=r"below 96|max_model_len"):
            llm.generate([*good, bad], params(), use_tqdm=False)
    with pytest.raises(ValueError, match=r"sampling_params: got 2 for 5"):
        llm.generate(good, [params()] * 2, use_tqdm=False)
    with pytest.raises(ValueError, match=r"priority: got 1 for 5"):
        llm.generate(good, params(), use_tqdm=False, priority=[1])
    with pytest.raises(ValueError, match="priority"):
        llm.generate(good[:1], params(), use_tqdm=False, priority=["high"])
    with pytest.raises(ValueError, match=r"prompts\[1\]: sampling_params"):
        llm.generate(good[:2], [params(), {"n": 1}], use_tqdm=False)
    assert llm.stats()["steps"] == steps
    nothing_left(llm)


def test_a_prompt_too_long_for_the_cache(llm, nothing_left):
    with pytest.raises(ValueError, match=r"33 tokens.* need 9 blocks of 4; the KV cache has 8"):
        llm.generate([5] * 33, params(), use_tqdm=False)
    nothing_left(llm)


@pytest.mark.parametrize(("length", "max_tokens"), [(1, None), (28, 999), (31, 8), (32, None)])
def test_an_output_ends_where_the_cache_is_full(llm, nothing_left, length, max_tokens):
    whole = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True, n=1)
    [out] = llm.generate([5] * length, whole, use_tqdm=False)
    assert len(out.outputs[0].token_ids) == max(32 - length, 1)
    assert out.outputs[0].finish_reason == "length"
    nothing_left(llm)


def test_an_id_twice(llm, alone, nothing_left):
    engine = llm.llm_engine
    engine.add_request("same", [5, 7, 9], GREEDY)
    engine.step()
    with pytest.raises(ValueError, match="'same' is in use"):
        engine.add_request("same", [8], GREEDY)
    while engine.has_unfinished_requests():
        outputs = engine.step()
    assert outputs[0].outputs[0].token_ids == alone
    engine.add_request("same", [5], GREEDY)  # it is free again
    engine.abort_request("same")
    nothing_left(llm)


def test_bad_requests_beside_a_running_one(llm, alone, nothing_left):
    stream = llm.stream([5, 7, 9], GREEDY)
    tokens = list(next(stream).outputs[0].token_ids)
    for prompt, message in BAD_PROMPTS.values():
        with pytest.raises(ValueError, match=message):
            llm.generate(prompt, params(), use_tqdm=False)
    for out in stream:
        tokens += out.outputs[0].token_ids
    assert tokens == alone
    nothing_left(llm)


def failing():
    """An iterator that fails on its way."""
    yield "a"
    raise KeyError("gone")


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (np.array(5), "prompts must be a prompt, or a list of prompts, got array"),
        (torch.tensor(5), "prompts must be a prompt, or a list of prompts, got tensor"),
        (failing(), "reading it raised KeyError: 'gone'"),
        ([[1], failing()], r"prompts\[1\] must be .* raised KeyError"),
        (itertools.repeat("a"), "prompts, got more than 16777216 of them"),
    ],
)
def test_prompts_that_cannot_be_read(prompts, message, make_llm):
    with pytest.raises(ValueError, match=message):
        make_llm().generate(prompts, GREEDY, use_tqdm=False)


def test_arrays_and_tensors_are_prompts(make_llm):
    llm = make_llm()
    expected = llm.generate([5, 7], GREEDY, use_tqdm=False)[0].outputs[0].token_ids
    for ids in (np.array([5, 7]), torch.tensor([5, 7]), torch.tensor([[5, 7]])):
        [output] = llm.generate(ids, GREEDY, use_tqdm=False)
        assert output.outputs[0].token_ids == expected


def test_wrong_lists_of_parameters_and_ranks(make_llm):
    llm = make_llm()
    for params in (5, "hot", {"n": 1}, failing()):
        with pytest.raises(ValueError, match="sampling_params"):
            llm.generate([[5]], params, use_tqdm=False)
    with pytest.raises(ValueError, match="priority"):
        llm.generate([[5]], GREEDY, use_tqdm=False, priority=5)
