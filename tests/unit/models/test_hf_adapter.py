"""The seam to transformers' models."""

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from folovllm.attention.backend import AttentionOptions, LayerAttention, LayerSpec
from folovllm.errors import ModelLoadError
from folovllm.models.hf_adapter import (
    LayerRecorder,
    PagedModel,
    _rope_by_length,
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
    assert model._selects_logits
    ids, positions = torch.tensor([3, 5, 7, 9, 11]), torch.arange(5)
    model._selects_logits = False
    with torch.inference_mode():
        everything = model.forward(ids, positions, Recorder(), torch.arange(5))
        model._selects_logits = selects
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


def test_the_scale_unless_the_model_gives_one():
    module = torch.nn.Module()
    module.layer_idx = 3
    recorder = Recorder()
    tensors = [torch.zeros(1, 2, 5, 16)] * 3
    output, weights = paged_attention(module, *tensors, None, attention_step=recorder)
    assert (output.shape, weights) == ((1, 5, 2, 16), None)
    paged_attention(module, *tensors, None, attention_step=recorder, scaling=0.5, dropout=0.0)
    assert [call[1].scale for call in recorder.calls] == [0.25, 0.5]


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
    refuse(make("bert"), r"BertLMHeadModel \(bert\) .*attend to those after")
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
    refuse(model, r"llama.*'attention_step'.*does not hand keyword arguments on")


@pytest.mark.parametrize(
    ("rope", "refused"),
    [
        (None, False),
        ({}, False),
        ({"rope_type": "default", "rope_theta": 1e4}, False),
        ({"rope_type": "yarn", "factor": 2.0}, False),
        ({"rope_type": "llama3", "factor": 2.0}, False),
        ({"rope_type": "dynamic", "factor": 2.0}, True),
        ({"rope_type": "longrope"}, True),
        ({"full_attention": {"rope_type": "default"}, "sliding_attention": {}}, False),
        ({"full_attention": {"rope_type": "longrope"}, "sliding_attention": {}}, True),
    ],
    ids=str,
)
def test_positions_by_length(rope, refused):
    config = AutoConfig.for_model("llama", **SMALL)
    config.rope_parameters = rope
    assert (_rope_by_length(config) is not None) is refused


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
    x = torch.zeros(1, 1, 2, 4)
    with pytest.raises(ModelLoadError, match=r"Linear cannot be served.* a mask of its own"):
        paged_attention(torch.nn.Linear(1, 1), x, x, x, torch.ones(2, 2), attention_step=None)
