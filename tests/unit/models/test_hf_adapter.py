"""The seam to transformers' models."""

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention

from folovllm.attention.backend import AttentionOptions, LayerAttention, LayerSpec
from folovllm.errors import ModelLoadError
from folovllm.loading.length import PositionLimit
from folovllm.models.hf_adapter import (
    LayerRecorder,
    PagedModel,
    _fix_rope,
    _smaller_limit,
    _windowed_layers,
    paged_attention,
)

SMALL = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}


def make(family="llama", **options):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**SMALL, **options})
    return AutoModelForCausalLM.from_config(config).eval()


class Recorder:
    """Notes what it is asked and gives nothing but the shape."""

    def __init__(self):
        self.calls = []

    def attend(self, layer, query, key, value, options):
        self.calls.append((layer, options))
        return query.new_zeros(1, query.shape[2], query.shape[1], value.shape[-1])


def test_what_the_layers_keep():
    assert PagedModel(make()).layers == [LayerSpec(2, 4, 4)] * 2
    gemma = PagedModel(make("gemma2", head_dim=8, num_key_value_heads=1))
    assert gemma.layers == [LayerSpec(1, 8, 8)] * 2


def test_the_vocabulary_is_what_can_be_embedded():
    model = make()
    model.resize_token_embeddings(48)
    assert PagedModel(model).vocab_size == 48


@pytest.mark.parametrize("rows", [[0], [4], [1, 4, 2]])
@pytest.mark.parametrize("selects", [True, False])
def test_logits_of_some_rows(rows, selects):
    model = PagedModel(make())
    assert model.selects_logits
    ids, positions = torch.tensor([3, 5, 7, 9, 11]), torch.arange(5)
    model.selects_logits = False
    with torch.inference_mode():
        everything = model.forward(ids, positions, Recorder(), torch.arange(5))
        model.selects_logits = selects
        logits = model.forward(ids, positions, Recorder(), torch.tensor(rows))
    torch.testing.assert_close(logits, everything[rows])


def test_each_layer_says_how_it_attends():
    options = {"head_dim": 8, "sliding_window": 6, "attn_logit_softcapping": 30.0}
    model = PagedModel(make("gemma2", query_pre_attn_scalar=64, **options))
    recorder = Recorder()
    with torch.inference_mode():
        model.forward(torch.tensor([3]), torch.tensor([0]), recorder, torch.tensor([0]))
    assert recorder.calls == [
        (0, AttentionOptions(64**-0.5, 6, 30.0)),
        (1, AttentionOptions(64**-0.5, None, 30.0)),
    ]


class Layer(torch.nn.Module):
    """What attends in a model."""

    layer_idx = 3


def call(module=None, mask=None, **arguments):
    """Call our attention function as a model does; how it would attend."""
    recorder = Recorder()
    tensors = [torch.zeros(1, 2, 5, 16)] * 3
    step = {"attention_step": recorder, **arguments}
    output, weights = paged_attention(module or Layer(), *tensors, mask, **step)
    assert (output.shape, weights) == ((1, 5, 2, 16), None)
    [(layer, options)] = recorder.calls
    assert layer == 3
    return options


def test_the_scale_unless_the_model_gives_one():
    assert call().scale == 0.25
    assert call(scaling=0.5).scale == 0.5


def test_a_recorder_stands_in_for_attention():
    recorder = LayerRecorder()
    query, key, value = torch.ones(1, 4, 3, 8), torch.ones(1, 2, 3, 8), torch.ones(1, 2, 3, 5)
    output = recorder.attend(7, query, key, value, AttentionOptions(1.0))
    assert output.shape == (1, 3, 4, 5)
    assert not output.any()
    expected = LayerAttention(LayerSpec(2, 8, 5), 4, AttentionOptions(1.0))
    assert recorder.layers == {7: expected}


def refuse(model, message):
    with pytest.raises(ModelLoadError, match=message):
        PagedModel(model)


def test_refuses_by_name():
    refuse(make("falcon"), r"FalconForCausalLM \(falcon\) .*code of its own")
    refuse(make("mamba"), r"MambaForCausalLM \(mamba\) .*state-space")
    refuse(make("bert"), r"BertLMHeadModel \(bert\): BertSelfAttention .*attend to those after")
    refuse(make("lfm2", layer_types=["conv", "full_attention"]), r"its layers \[0\] keep a state")


def test_refuses_layers_that_share_their_cache():
    model = make()
    model.config.num_kv_shared_layers = 1
    refuse(model, r"llama.*keys and values of other layers")


def test_refuses_a_forward_that_drops_what_it_does_not_know(monkeypatch):
    model = make()
    forward = model.model.forward

    def narrow(*args, attention_step, **options):
        return forward(*args, **options)

    monkeypatch.setattr(model.model, "forward", narrow)
    refuse(model, r"\(llama\): LlamaAttention .*does not hand keyword arguments on to it")


def test_refuses_a_forward_without_keyword_arguments(monkeypatch):
    model = make()

    def narrow(input_ids, position_ids, use_cache):
        raise AssertionError("not called")

    monkeypatch.setattr(model, "forward", narrow)
    refuse(model, r"llama.*does not hand keyword arguments on.*unexpected.*'attention_step'")


DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.5] * 2,
    "long_factor": [4.0] * 2,
    "original_max_position_embeddings": 16,
}


@pytest.mark.parametrize(
    ("family", "options", "limit", "why"),
    [
        ("llama", {}, None, None),
        ("gpt2", {}, 32, "table has 32 positions"),
        ("opt", {}, 32, "table has 32 positions"),  # and two rows more
        ("ctrl", {"dff": 24}, 32, "table has 32 positions"),  # of sines
        ("llama", {"rope_parameters": DYNAMIC}, 32, "'dynamic' change with the longest"),
        ("llama", {"rope_parameters": LONGROPE}, 16, "'longrope' change with the longest"),
    ],
    ids=str,
)
def test_how_many_positions_there_are(family, options, limit, why):
    found = PagedModel(make(family, **options)).position_limit
    assert (found and found.count) == limit
    assert found is None or why in found.why


def test_of_two_limits_the_first_holds():
    rope = PositionLimit(9, "rope")
    assert _smaller_limit(None, None) is None
    assert _smaller_limit(None, rope) is rope
    assert _smaller_limit(10, rope) is rope
    assert _smaller_limit(8, rope).count == _smaller_limit(8, None).count == 8


@pytest.mark.parametrize("rope", [DYNAMIC, LONGROPE], ids=lambda rope: rope["rope_type"])
def test_frequencies_stay_whatever_a_batch_holds(rope):
    model = PagedModel(make(rope_parameters=rope))
    rotary = model.model.model.rotary_emb
    before = rotary.inv_freq.clone()
    positions = torch.tensor([0, 500])
    with torch.inference_mode():
        model.forward(torch.tensor([3, 3]), positions, Recorder(), positions[:1])
    assert torch.equal(rotary.inv_freq, before)
    assert torch.equal(rotary.inv_freq, rotary.original_inv_freq)


def test_frequencies_of_each_kind_of_layer_stay():
    model = make()
    model.model.rotary_emb.rope_type = {"full_attention": "longrope", "other": "default"}
    _fix_rope(model)
    assert model.model.rotary_emb.rope_type == {"full_attention": "default", "other": "default"}


def test_refuses_rotary_positions_without_a_length():
    model = make()
    model.config.rope_parameters = {"rope_type": "longrope"}
    refuse(model, "does not say up to which length its rotary positions hold")


@pytest.mark.parametrize(
    ("options", "layers"),
    [
        ({"layer_types": ["full_attention", "sliding_attention"]}, [1]),
        ({"layer_types": ["chunked_attention", "full_attention"]}, [0]),
        ({"layer_types": ["full_attention"] * 2, "sliding_window": 8}, []),
        ({"sliding_window": 8}, [0, 1]),
        ({"sliding_window": None}, []),
        ({"sliding_window": 8, "use_sliding_window": False}, []),
        ({}, []),
    ],
)
def test_which_layers_see_a_part_of_the_text(options, layers):
    assert _windowed_layers(SimpleNamespace(**options), 2) == layers


def test_a_mask_of_the_models_own_is_refused():
    with pytest.raises(ModelLoadError, match=r"Layer cannot be served.* a mask of its own"):
        call(mask=torch.ones(2, 2))


@pytest.mark.parametrize(
    "arguments",
    [
        {"dropout": 0.0, "position_ids": torch.arange(5)[None], "use_cache": False},
        {"is_causal": True, "output_attentions": False, "output_router_logits": False},
        {"position_bias": None, "indices": None, "anything": None},
    ],
)
def test_arguments_that_change_nothing(arguments):
    assert call(**arguments) == AttentionOptions(0.25)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"position_bias": torch.zeros(1)}, "it passes position_bias = a tensor, which"),
        ({"alibi": 0.5}, "it passes alibi = 0.5, which FoloVLLM does not know"),
        ({"dropout": 0.1}, "it passes dropout = 0.1, which"),
        ({"output_attentions": True}, "it passes output_attentions = True"),
        ({"is_causal": False}, "its tokens attend to those after them"),
    ],
)
def test_arguments_that_are_refused(arguments, reason):
    with pytest.raises(ModelLoadError, match=f"^Layer cannot be served: {reason}"):
        call(**arguments)


def test_a_layer_that_looks_ahead():
    layer = Layer()
    layer.is_causal = False
    assert call(layer, is_causal=True)
    with pytest.raises(ModelLoadError, match="its tokens attend to those after them"):
        call(layer)


def test_a_layer_without_a_number():
    with pytest.raises(ModelLoadError, match="has no layer_idx"):
        call(torch.nn.Module())


def test_no_window_is_not_a_window_that_was_not_passed():
    layer = Layer()
    layer.sliding_window = 8
    assert call(layer).window == 8
    assert call(layer, sliding_window=None).window is None
    assert call(layer, sliding_window=4).window == 4


def test_a_full_layer_beside_windows():
    kinds = ["full_attention", "sliding_attention"]
    model = PagedModel(make("exaone4", sliding_window=6, layer_types=kinds))
    assert [layer.options.window for layer in model.attention] == [None, 6]


def test_refuses_an_unknown_argument_at_load(monkeypatch):
    model = make()
    forward = LlamaAttention.forward

    def special(self, *args, **kwargs):
        return forward(self, *args, **kwargs, slopes=torch.ones(4))

    monkeypatch.setattr(LlamaAttention, "forward", special)
    refuse(model, r"\(llama\): LlamaAttention .*it passes slopes = a tensor")


def test_refuses_two_attentions_in_a_layer():
    refuse(make("diffllama"), r"\(diffllama\): layer 0 .*attends twice in one forward")


DBRX = {
    "vocab_size": 40,
    "d_model": 16,
    "n_heads": 4,
    "n_layers": 2,
    "max_seq_len": 32,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2},
}


@pytest.mark.parametrize("clip", [8, None])
def test_what_transformers_cannot_run_itself(clip):
    config = AutoConfig.for_model(
        "dbrx", **DBRX, attn_config={"kv_n_heads": 2, "clip_qkv": clip, "rope_theta": 1e4}
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    if clip:
        assert PagedModel(model).layers == [LayerSpec(2, 4, 4)] * 2
    else:
        refuse(model, r"\(dbrx\) cannot be run by transformers itself: .*modeling_dbrx.py, line")


def test_a_forward_that_needs_a_mask(monkeypatch):
    model = make()
    forward = LlamaAttention.forward

    def special(self, *args, attention_mask, **kwargs):
        attention_mask[:, 0]
        return forward(self, *args, attention_mask=attention_mask, **kwargs)

    monkeypatch.setattr(LlamaAttention, "forward", special)
    monkeypatch.setattr(model.config, "_attn_implementation", "eager")
    refuse(
        model, r"works with .* and fails with FoloVLLM's.*'NoneType' object is not subscriptable"
    )


def test_a_hybrid_with_attention_alone():
    options = {"num_local_experts": 4, "mamba_n_heads": 4, "mamba_d_head": 8}
    kinds = ["full_attention"] * 2
    model = make("granitemoehybrid", **options, layer_types=kinds)
    assert PagedModel(model).layers == [LayerSpec(2, 4, 4)] * 2
    kinds = ["linear_attention", "full_attention"]
    refuse(make("granitemoehybrid", **options, layer_types=kinds), "keep a state")


def test_only_what_generates_text_is_looked_at():
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    text = {**SMALL, "head_dim": 8}
    config = AutoConfig.for_model("gemma3", text_config=text, vision_config=vision)
    config.image_token_id = 39
    model = AutoModelForCausalLM.from_config(config).eval()
    assert PagedModel(model).layers == [LayerSpec(2, 8, 8)] * 2


def test_refuses_sparse_attention():
    options = {
        "kv_lora_rank": 8,
        "q_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4,
        "v_head_dim": 4,
        "n_routed_experts": 8,
        "num_key_value_heads": 4,
    }
    for family in ("deepseek_v32", "glm_moe_dsa"):
        refuse(make(family, **options), rf"\({family}\) .*those that an indexer picks")


def test_gates_that_read_a_weight_are_found():
    model = make("hunyuan_v1_moe", head_dim=8, num_experts=4, moe_topk=2)
    paged = PagedModel(model)
    gates = {layer.mlp.gate.wg for layer in model.model.layers}
    assert paged.weights_read == gates
    assert all(type(gate) is torch.nn.Linear for gate in gates)
    assert PagedModel(make()).weights_read == set()
