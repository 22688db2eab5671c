"""GGUF files give the model that they were made of, or are refused by what cannot be honoured."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from folovllm import LLM, ModelConfig, ModelLoader, ModelLoadError
from folovllm.loading.gguf.architectures import ARCHITECTURES
from tests.integration.gguf_files import (
    TOKENIZER,
    metadata_of,
    save_as_gguf,
    tensors_of,
    write_gguf,
)

VOCABULARY = len(TOKENIZER["tokenizer.ggml.tokens"])
FAMILIES = {
    "gemma": {"head_dim": 16},
    "gemma2": {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16},
    "gemma3_text": {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16},
    "gpt2": {},
    "llama": {},
    "mistral": {"sliding_window": 8, "head_dim": 16},
    "nemotron": {},
    "phi3": {"sliding_window": 8},
    "qwen2": {},
    "qwen2_moe": {"num_experts": 4, "shared_expert_intermediate_size": 24},
    "qwen3": {"head_dim": 16},
    "qwen3_moe": {"num_experts": 4, "head_dim": 16, "norm_topk_prob": True},
    "stablelm": {"use_qkv_bias": True},
    "starcoder2": {},
}
IDS = torch.arange(3, 30)[None]


@pytest.fixture
def make_model(tiny_config):
    """A function that makes a tiny model of a family with random weights, biases and norms."""

    def make(family="llama", **options):
        torch.manual_seed(0)
        options = {"vocab_size": VOCABULARY, **FAMILIES.get(family, {}), **options}
        config = tiny_config(family, bos_token_id=0, eos_token_id=0, pad_token_id=0, **options)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter.data, std=0.2)
        return model

    return make


def loader(path):
    return ModelLoader(ModelConfig(model=str(path), dtype="float32"))


def logits(model):
    with torch.inference_mode():
        return model(IDS).logits


def assert_same(path, model):
    loaded = loader(path).load_model("cpu")
    assert torch.allclose(logits(loaded), logits(model), atol=1e-5)
    return loaded


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_architecture(make_model, tmp_path, family, tied):
    if family == "mistral" and tied:
        pytest.skip("as llama")
    moe = {"num_experts_per_tok": 2, "moe_intermediate_size": 24} if "moe" in family else {}
    model = make_model(family, tie_word_embeddings=tied, **moe)
    loaded = assert_same(save_as_gguf(model, tmp_path / "m.gguf"), model)
    assert loaded.config.model_type == family
    assert loaded.config.max_position_embeddings == 64


def test_every_architecture_is_tried():
    assert {ARCHITECTURES[name].model_type for name in ARCHITECTURES} == FAMILIES.keys() - {
        "mistral"
    }


@pytest.mark.parametrize("bias", [True, False])
def test_biases_of_llama(make_model, tmp_path, bias):
    model = make_model(attention_bias=bias, mlp_bias=bias)
    assert_same(save_as_gguf(model, tmp_path / "m.gguf"), model)


ROPES = [
    ({"rope_type": "linear", "factor": 8.0}, {"type": "linear", "factor": 8.0}),
    ({"rope_type": "linear", "factor": 8.0}, {"factor": 8.0}),  # as old files say it
    ({"rope_type": "default"}, {"type": "none", "factor": 8.0}),
    (
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
        {"type": "yarn", "factor": 4.0, "original_context_length": 16},
    ),
    (
        {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 16,
            "beta_fast": 16.0,
            "beta_slow": 2.0,
            "attention_factor": 1.5 * (1 + 0.1 * np.log(4.0)),
        },
        {
            "type": "yarn",
            "factor": 4.0,
            "original_context_length": 16,
            "yarn_beta_fast": 16.0,
            "yarn_beta_slow": 2.0,
            "attn_factor": 1.5,
        },
    ),
]


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3_text"])
@pytest.mark.parametrize(("rope", "said"), ROPES)
def test_stretched_positions(make_model, tmp_path, family, rope, said):
    parameters = {"rope_theta": 10000.0, **rope}
    if family == "gemma3_text":
        local = {"rope_type": "default", "rope_theta": 10000.0}
        parameters = {"full_attention": parameters, "sliding_attention": local}
    model = make_model(family, rope_parameters=parameters)
    changes = {f"rope.scaling.{key}": value for key, value in said.items()}
    assert_same(save_as_gguf(model, tmp_path / "m.gguf", **changes), model)


def test_the_rope_freqs_of_llama_3(make_model, tmp_path):
    rope = {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    model = make_model(rope_parameters=rope)
    plain = 10000.0 ** -(torch.arange(0, 8, 2) / 8)
    factors = (plain / model.model.rotary_emb.inv_freq).numpy()
    assert factors.min() == 1
    assert factors.max() == 8
    own = {f"llama.{key}": value for key, value in metadata_of(model.config).items()}
    tensors = {**tensors_of(model), "rope_freqs.weight": factors}
    path = write_gguf(tmp_path / "m.gguf", "llama", {**own, **TOKENIZER}, tensors)
    assert_same(path, model)


def test_the_two_sets_of_factors_of_phi_3(make_model, tmp_path):
    short, long = [1.0, 1.1, 1.2, 1.3], [1.0, 2.0, 4.0, 8.0]
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": short,
        "long_factor": long,
        "original_max_position_embeddings": 16,
        "attention_factor": 1.25,
    }
    model = make_model(
        "phi3", rope_parameters=rope, original_max_position_embeddings=16, sliding_window=None
    )
    own = {f"phi3.{key}": value for key, value in metadata_of(model.config).items()}
    own |= {
        "phi3.rope.scaling.attn_factor": 1.25,
        "phi3.rope.scaling.original_context_length": 16,
    }
    factors = {
        "rope_factors_short.weight": np.array(short, np.float32),
        "rope_factors_long.weight": np.array(long, np.float32),
    }
    tensors = {**tensors_of(model), **factors}
    assert_same(write_gguf(tmp_path / "m.gguf", "phi3", {**own, **TOKENIZER}, tensors), model)


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("llama", {"expert_count": 8}, "llama.expert_count = 8"),
        ("llama", {"rope__dimension_count": 4}, "turns 4 of the 8 dimensions"),
        ("llama", {"rope__scaling__type": "dynamic"}, "rope.scaling.type = 'dynamic'"),
        ("llama", {"rope__scaling__type": "longrope"}, "rope.scaling.type = 'longrope'"),
        ("llama", {"rope__scaling__attn_factor": 1.5}, "rope.scaling.attn_factor = 1.5"),
        ("llama", {"attention__key_length": 8, "attention__value_length": 4}, "different lengths"),
        ("llama", {"attention__clamp_kqv": 8.0}, "llama.attention.clamp_kqv = 8.0"),
        ("llama", {"attention__scale": 1.0}, "attention.scale = 1"),
        ("llama", {"logit_scale": 2.0}, "llama.logit_scale = 2.0"),
        ("llama", {"never__heard_of": "x"}, "llama.never.heard_of = 'x'"),
        ("llama", {"vocab_size": 7}, "its embedding has"),
        ("llama", {"block_count": 3}, "holds tensors of 2 layers"),
        ("llama", {"attention__head_count": 8}, "is expected"),
        ("llama", {"feed_forward_length": 64}, "is expected"),
        ("llama", {"attention__head_count": [4, 4]}, "attention.head_count = [4, 4]"),
        ("llama", {"attention__layer_norm_rms_epsilon": 0.0}, "a number above 0"),
        ("llama", {"attention__layer_norm_rms_epsilon": None}, "lacks llama.attention"),
        ("qwen2", {"attention__sliding_window": 8}, "qwen2.attention.sliding_window = 8"),
        ("qwen3_moe", {"expert_weights_scale": 2.5}, "qwen3moe.expert_weights_scale"),
    ],
)
def test_what_cannot_be_honoured_is_refused(make_model, tmp_path, family, changes, words):
    moe = {"num_experts_per_tok": 2, "moe_intermediate_size": 24} if "moe" in family else {}
    path = save_as_gguf(make_model(family, **moe), tmp_path / "m.gguf", **changes)
    with pytest.raises(ModelLoadError) as raised:
        loader(path).load_model("cpu")
    assert words in str(raised.value)
    assert str(path) in str(raised.value)


HARMLESS = [
    {"expert_count": 0, "expert_used_count": 0},
    {"attention__causal": True},
    {"attention__clamp_kqv": 0.0},
    {"rope__scaling__finetuned": False},
    {"rope__scaling__type": "none"},
    {"rope__scaling__original_context_length": 64, "rope__scaling__attn_factor": 1.0},
    {"vocab_size": VOCABULARY},
    {"attention__sliding_window": 4096},  # which is longer than the model's context
]


@pytest.mark.parametrize("changes", HARMLESS, ids=str)
def test_what_changes_nothing_is_taken(make_model, tmp_path, changes):
    model = make_model()
    assert_same(save_as_gguf(model, tmp_path / "m.gguf", **changes), model)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"blk.0.attn_q.weight": None}, "lacks 1 tensors"),
        ({"blk.0.attn_sinks.weight": np.ones(4, np.float32)}, "blk.0.attn_sinks.weight"),
        ({"rope_freqs.weight": np.ones(3, np.float32)}, "expected [4] numbers"),
        ({"rope_freqs.weight": np.zeros(4, np.float32)}, "numbers above 0"),
        ({"rope_factors_long.weight": np.ones(4, np.float32)}, "lacks rope_factors_short"),
        ({"output_norm.weight": np.ones(33, np.float32)}, "[32] is expected"),
        ({"output_norm.weight": np.ones(32, np.int32)}, "I32"),
    ],
)
def test_tensors_that_do_not_fit(make_model, tmp_path, changes, words):
    model = make_model()
    own = {f"llama.{key}": value for key, value in metadata_of(model.config).items()}
    tensors = {**tensors_of(model), **changes}
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    path = write_gguf(tmp_path / "m.gguf", "llama", {**own, **TOKENIZER}, tensors)
    with pytest.raises(ModelLoadError) as raised:
        loader(path).load_model("cpu")
    assert words in str(raised.value)


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"general.type": "adapter"}, "a part of one: 'adapter'"),
        ({"general.type": "mmproj"}, "a part of one: 'mmproj'"),
        ({"split.count": 4}, "one of 4 files"),
    ],
)
def test_parts_of_models(make_model, tmp_path, metadata, words):
    model = make_model()
    own = {f"llama.{key}": value for key, value in metadata_of(model.config).items()}
    metadata = {**own, **TOKENIZER, **metadata}
    path = write_gguf(tmp_path / "m.gguf", "llama", metadata, tensors_of(model))
    with pytest.raises(ModelLoadError, match=words):
        loader(path).load_model("cpu")


def test_an_architecture_that_is_not_known(make_model, tmp_path):
    path = write_gguf(tmp_path / "m.gguf", "mamba", TOKENIZER, tensors_of(make_model()))
    with pytest.raises(ModelLoadError, match="architecture 'mamba'"):
        loader(path).load_model("cpu")


def test_quantized_types_are_read(make_model, tmp_path):
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.quants import dequantize, quantize

    model = make_model()
    path, kinds = tmp_path / "m.gguf", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "BF16", "F16"]
    writer = GGUFWriter(path, "llama")
    own = {f"llama.{key}": value for key, value in metadata_of(model.config).items()}
    for key, value in own.items():
        writer.add_float32(key, value) if isinstance(value, float) else writer.add_uint32(
            key, value
        )
    expected = {}
    for i, (name, tensor) in enumerate(tensors_of(model).items()):
        kind = GGMLQuantizationType[kinds[i % len(kinds)] if tensor.ndim == 2 else "F32"]
        kind = kind if tensor.shape[-1] % 32 == 0 else GGMLQuantizationType.F32
        packed = quantize(tensor, kind)
        expected[name] = dequantize(packed, kind)
        writer.add_tensor(name, packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    loaded = tensors_of(loader(path).load_model("cpu"))
    assert loaded.keys() == expected.keys()
    for name, tensor in expected.items():
        assert np.array_equal(loaded[name], tensor), name


def test_the_file_is_read_once(make_model, tmp_path, monkeypatch):
    from folovllm.loading.gguf import header

    path = save_as_gguf(make_model(), tmp_path / "m.gguf")
    read, original = [], header.read_gguf
    monkeypatch.setattr(header, "read_gguf", lambda path: read.append(path) or original(path))
    loader(path).load_model_and_tokenizer("cpu")
    assert read == [path]


def test_the_ids_that_end_a_turn(make_model, tmp_path):
    model = make_model()
    own = {f"llama.{key}": value for key, value in metadata_of(model.config).items()}
    said = {**own, **TOKENIZER, "tokenizer.ggml.eot_token_id": 5}
    path = write_gguf(tmp_path / "m.gguf", "llama", said, tensors_of(model))
    llm = LLM(str(path), device="cpu")
    assert llm.llm_engine.setup.eos_token_ids == {0, 5}


def test_the_sampling_that_a_file_recommends(make_model, tmp_path):
    model = make_model()
    own = {f"llama.{key}": value for key, value in metadata_of(model.config).items()}
    sampling = {"temp": 0.5, "top_k": 20, "top_p": 0.75, "penalty_repeat": 1.25}
    said = {f"general.sampling.{key}": value for key, value in sampling.items()}
    metadata = {**own, **TOKENIZER, **said}
    path = write_gguf(tmp_path / "m.gguf", "llama", metadata, tensors_of(model))
    params = LLM(str(path), device="cpu").get_default_sampling_params()
    assert (params.temperature, params.top_k, params.top_p) == (0.5, 20, 0.75)
    assert params.repetition_penalty == 1.25
