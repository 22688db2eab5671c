"""The longest sequence, as vLLM reads it from a checkpoint's configuration."""

from types import SimpleNamespace

import pytest
from transformers import AutoConfig

from folovllm.loading.length import checkpoint_length, rope_limit

SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
FACTORS = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
NO_TOKENIZER_LIMIT = int(1e30)  # transformers' word for none


def configured(family="llama", positions=64, **rope):
    parameters = {"rope_parameters": {"rope_theta": 1e4, **rope}} if rope else {}
    return AutoConfig.for_model(family, max_position_embeddings=positions, **SMALL, **parameters)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (configured(), 64),
        (configured(rope_type="linear", factor=4.0), 256),
        (configured(rope_type="linear", factor=2.5), 160),
        (configured(rope_type="yarn", factor=4.0, original_max_position_embeddings=64), 256),
        (configured(rope_type="yarn", factor=4.0), 256),
        # Whether the configuration names the stretched length (DeepSeek) or not (Qwen).
        (configured(rope_type="yarn", factor=4.0, original_max_position_embeddings=16), 64),
        (
            configured(
                rope_type="llama3",
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=16,
            ),
            64,
        ),
        (configured(rope_type="dynamic", factor=4.0), 64),
        (configured(rope_type="longrope", original_max_position_embeddings=16, **FACTORS), 16),
        (configured("gemma3_text", rope_type="linear", factor=4.0), 64),
        (configured("gpt2"), 64),
        (configured("opt"), 64),
    ],
    ids=lambda value: getattr(value, "model_type", value),
)
def test_the_longest_sequence(config, expected):
    assert checkpoint_length(config)[0] == expected
    assert checkpoint_length(config, NO_TOKENIZER_LIMIT)[0] == expected


def named(**values):
    config = SimpleNamespace(model_type="some", **values)
    config.get_text_config = lambda: config
    return config


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"max_seq_len": 40}, (40, "the checkpoint's max_seq_len")),
        ({"max_position_embeddings": 50, "seq_length": 40}, (40, "the checkpoint's seq_length")),
        (
            {"max_position_embeddings": 50, "model_max_length": 90},
            (90, "the checkpoint's model_max_length"),
        ),
        ({}, (2048, "the default: the checkpoint names no max_position_embeddings")),
        (
            {"max_position_embeddings": "x", "n_positions": True, "seq_len": 0},
            (2048, "the default: the checkpoint names no max_position_embeddings"),
        ),
        (
            {"max_position_embeddings": 50, "rope_parameters": {"rope_type": "yarn"}},
            (50, "the checkpoint's max_position_embeddings"),
        ),
        (
            {
                "max_position_embeddings": 50,
                "rope_parameters": {
                    "sliding_attention": {"rope_type": "default"},
                    "full_attention": {"rope_type": "linear", "factor": 2},
                    "other": None,
                },
            },
            (100, "the checkpoint's max_position_embeddings, 50, times 2 of its linear positions"),
        ),
    ],
    ids=str,
)
def test_names_that_families_have_for_it(values, expected):
    assert checkpoint_length(named(**values)) == expected


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (32, (32, "the tokenizer's model_max_length")),
        (99, (64, "the checkpoint's max_position_embeddings")),
        ("x", (64, "the checkpoint's max_position_embeddings")),
        (None, (64, "the checkpoint's max_position_embeddings")),
        (0, (64, "the checkpoint's max_position_embeddings")),
    ],
)
def test_the_tokenizers_limit(limit, expected):
    assert checkpoint_length(configured(), limit) == expected


def test_the_tokenizers_limit_alone():
    assert checkpoint_length(named(), 128) == (128, "the tokenizer's model_max_length")
    assert checkpoint_length(named(), NO_TOKENIZER_LIMIT)[0] == 2048


@pytest.mark.parametrize(
    ("rope", "expected"),
    [
        ({}, None),
        ({"rope_type": "yarn", "factor": 2.0}, None),
        ({"rope_type": "dynamic", "factor": 2.0}, 64),
        ({"rope_type": "longrope", "original_max_position_embeddings": 16, **FACTORS}, 16),
    ],
    ids=str,
)
def test_up_to_which_length_rotary_positions_hold(rope, expected):
    limit = rope_limit(configured(**rope))
    assert (limit and limit.count) == expected


def test_the_first_limit_of_several_layers_holds():
    rope = {
        "full_attention": {"rope_type": "longrope", "original_max_position_embeddings": 9},
        "sliding_attention": {"rope_type": "dynamic"},
    }
    config = named(max_position_embeddings=50, rope_parameters=rope)
    assert rope_limit(config).count == 9
    length, reason = checkpoint_length(config)
    assert length == 9
    assert "beyond 9 tokens, those of type 'longrope' change" in reason
