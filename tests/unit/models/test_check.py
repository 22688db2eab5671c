"""The comparison of the model that runs with transformers' own forward."""

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from folovllm.attention.sdpa import SdpaBackend
from folovllm.errors import ModelLoadError
from folovllm.linear.packing import LinearPacker
from folovllm.models.check import LIMITS, ModelCheck, _difference
from folovllm.models.fusion import fuse
from folovllm.models.hf_adapter import PagedModel

SMALL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def make(family="llama", dtype=torch.float32, **options):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**SMALL, **options})
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    for parameter in model.parameters():  # biases and norms too: zeros and ones hide mistakes
        nn.init.normal_(parameter.data, std=0.2)
    return PagedModel(model)


def speed_up(model):
    linears = LinearPacker(model.device, None, model.weights_read)
    fuse(model.model, linears.merge)
    linears.pack(model.model)


def check(model, change=lambda model: None, block_size=4, backend=None):
    """Make the check, change the model, run the check."""
    made = ModelCheck(model, block_size)
    speed_up(model)
    change(model)
    made.run(backend or SdpaBackend())
    return made


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mixtral"])
def test_a_model_that_is_right(family, dtype, caplog):
    caplog.set_level("INFO", "folovllm.models.check")
    options = {"num_local_experts": 4} if family == "mixtral" else {}
    made = check(make(family, dtype, **options))
    assert len(made.layers) == 3
    assert len(made.expected) == 5  # before, between and behind three layers; logits
    assert "checked against transformers' own forward on 7 tokens" in caplog.text
    assert not any(layer._forward_pre_hooks or layer._forward_hooks for layer in made.layers)


@pytest.mark.parametrize("block_size", [1, 2, 16, 256, 1024])
def test_any_size_of_blocks(block_size):
    check(make(max_position_embeddings=512), block_size=block_size)


def test_no_more_tokens_than_positions():
    made = check(make("gpt2", max_position_embeddings=8), block_size=16)
    assert len(made.ids) == 8


def refuse(match, model=None, **options):
    with pytest.raises(ModelLoadError, match=match):
        check(model or make(), **options)


def test_a_fused_layer_that_is_wrong_is_named():
    def change(model):
        merged = model.model.model.layers[1].mlp.gate_proj.merged
        forward = merged.linear.forward
        merged.linear.forward = lambda rows: forward(rows) * 1.1

    refuse(
        r"^LlamaForCausalLM \(llama\) cannot be served.*beginning in its layer 1: 14 of 14 tokens",
        change=change,
    )


def test_wrong_embeddings_and_a_wrong_head():
    def embeddings(model):
        model.model.get_input_embeddings().weight.data *= 1.01

    def head(model):
        model.model.lm_head.bias = torch.ones(96)

    refuse("beginning before its first layer", change=embeddings)
    refuse("beginning behind its last layer", change=head)


class Forgetful(SdpaBackend):
    """Forgets what is in the cache: right only for whole prompts."""

    def attend(self, metadata, cache, query, key, value, options):
        for pages in cache:
            pages.zero_()
        return super().attend(metadata, cache, query, key, value, options)


class Windowless(SdpaBackend):
    def attend(self, metadata, cache, query, key, value, options):
        options = type(options)(options.scale, None, options.softcap, options.sinks)
        return super().attend(metadata, cache, query, key, value, options)


def test_a_wrong_cache():
    refuse("beginning in its layer 0: 5 of 14 tokens", backend=Forgetful())


def test_windows_matter():
    kinds = ["full_attention", "full_attention", "sliding_attention"]
    model = make("exaone4", sliding_window=6, layer_types=kinds)
    assert len(check(model).ids) == 9
    model = make("exaone4", sliding_window=6, layer_types=kinds)
    refuse("beginning in its layer 2", model, backend=Windowless())


def test_an_error_in_a_step_is_told():
    def change(model):
        del model.model.model.layers[1].mlp.down_proj

    refuse(r"cannot be run over a paged cache: AttributeError: .*down_proj", change=change)


def test_what_transformers_cannot_run(monkeypatch):
    model = make()

    def fail(*args, **kwargs):
        raise ValueError("no such thing")

    monkeypatch.setattr(model.model, "forward", fail)
    with pytest.raises(ModelLoadError, match="by transformers itself: ValueError: no such thing"):
        ModelCheck(model, 4)


def test_weights_that_are_not_numbers_are_not_the_engines_fault():
    model = make()
    model.model.model.layers[1].mlp.down_proj.weight.data[:] = float("nan")
    check(model)


def test_what_becomes_nan_here_alone():
    def change(model):
        model.model.model.layers[2].input_layernorm.scale = torch.full((32,), float("nan"))

    refuse("beginning in its layer 2", change=change)


def test_a_choice_between_equal_experts_may_turn(monkeypatch):
    model = make("mixtral", num_local_experts=4)
    made = ModelCheck(model, 4)
    errors = torch.zeros(5, 14)
    errors[2, 3] = 0.5
    made._judge(errors)  # one token in one layer
    errors[1:, 3] = 0.5
    with pytest.raises(ModelLoadError, match="in its layer 0: 1 of 14"):
        made._judge(errors)  # one token in most layers
    errors[:] = 0
    errors[2] = 0.5
    with pytest.raises(ModelLoadError, match="in its layer 1: 14 of 14"):
        made._judge(errors)  # most tokens in one layer
    monkeypatch.setattr(model.model.config, "num_local_experts", 0)
    errors[:] = 0
    errors[2, 3] = 0.5
    with pytest.raises(ModelLoadError, match="in its layer 1: 1 of 14"):
        made._judge(errors)


def test_how_far_a_row_is_off():
    inf, nan = float("inf"), float("nan")
    right = torch.tensor([[3.0, 4.0], [0, 0], [nan, 1], [-inf, 2], [1, 1]])
    found = torch.tensor([[3.0, 4.5], [0, 0], [5, 5], [-inf, 3], [nan, 1]])
    torch.testing.assert_close(
        _difference(found, right), torch.tensor([0.1, 0, 0, 0.5, nan]), equal_nan=True
    )
