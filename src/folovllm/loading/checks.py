"""What the small files of a checkpoint must hold: wrong types are refused by file and key.

Transformers answers many of them with a `KeyError` or a `TypeError` far from the file, and some
not before the first request.
"""

import json
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Any

from folovllm.errors import ModelLoadError
from folovllm.loading.checkpoint import Checkpoint
from folovllm.loading.files import check_regular, read_json

Test = Callable[[Any], bool]


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_id(value: Any) -> bool:
    # Some checkpoints write -1 for none.
    return _is_integer(value) and -1 <= value < 1 << 31


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_id_or_ids(value: Any) -> bool:
    return _is_id(value) or (isinstance(value, list) and all(_is_id(item) for item in value))


def _is_token(value: Any) -> bool:
    return _is_text(value) or (_is_object(value) and _is_text(value.get("content")))


def _are_tokens(value: Any) -> bool:
    items = value.values() if _is_object(value) else value
    return isinstance(value, list | dict) and all(_is_token(item) for item in items)


def _are_templates(value: Any) -> bool:
    """Tell whether it is a chat template, or several with names."""
    if not isinstance(value, list):
        return _is_text(value) or (_is_object(value) and all(map(_is_text, value.values())))
    return all(
        _is_object(item) and _is_text(item.get("name")) and _is_text(item.get("template"))
        for item in value
    )


def _are_added_tokens(value: Any) -> bool:
    return _is_object(value) and all(
        id_.isdecimal() and _is_object(token) and _is_text(token.get("content"))
        for id_, token in value.items()
    )


def _is_count_of_layers(value: Any) -> bool:
    return _is_integer(value) and value >= 1


_ID, _IDS = (_is_id, "a token id"), (_is_id_or_ids, "a token id or a list of them")
_NUMBER, _TEXT, _FLAG = (_is_number, "a number"), (_is_text, "a text"), (_is_flag, "true or false")
_OBJECT, _TOKEN = (_is_object, "an object"), (_is_token, "a token")
_LAYERS = (_is_count_of_layers, "a whole number of at least 1")

Rules = Mapping[str, tuple[Test, str]]

_SPECIAL_IDS: Rules = {"eos_token_id": _IDS, "bos_token_id": _IDS, "pad_token_id": _ID}

_LAYER_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")

CONFIG: Rules = {
    **_SPECIAL_IDS,
    **dict.fromkeys(_LAYER_KEYS, _LAYERS),
    "text_config": _OBJECT,
    "quantization_config": _OBJECT,
    "auto_map": _OBJECT,
    "model_type": _TEXT,
    "dtype": _TEXT,
    "torch_dtype": _TEXT,
}

GENERATION: Rules = {
    **_SPECIAL_IDS,
    "decoder_start_token_id": _IDS,
    "do_sample": _FLAG,
    **dict.fromkeys(
        (
            *("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_length"),
            *("max_new_tokens", "min_length", "min_new_tokens", "num_beams"),
        ),
        _NUMBER,
    ),
}

TOKENIZER: Rules = {
    **dict.fromkeys(
        (
            *("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token"),
            "mask_token",
        ),
        _TOKEN,
    ),
    "additional_special_tokens": (_are_tokens, "a list of tokens"),
    "extra_special_tokens": (_are_tokens, "a list of tokens, or tokens by name"),
    "added_tokens_decoder": (_are_added_tokens, "tokens by their ids"),
    "chat_template": (_are_templates, "a template, or several with names"),
    "model_max_length": _NUMBER,
    "padding_side": (lambda value: value in ("left", "right"), "left or right"),
    "tokenizer_class": _TEXT,
    **dict.fromkeys(
        (
            *("add_bos_token", "add_eos_token", "add_prefix_space", "legacy"),
            "clean_up_tokenization_spaces",
        ),
        _FLAG,
    ),
    "auto_map": _OBJECT,
}


def check_config(checkpoint: Checkpoint, *, trusted: bool) -> None:
    """Refuse a `config.json` that is damaged, or of a model that cannot generate text.

    Args:
        checkpoint: whose.
        trusted: whether Python code that it brings may be run.

    Raises:
        ModelLoadError: it is refused; the message names the file and the key.
    """
    where, config = checkpoint.folder / "config.json", checkpoint.config
    _check(where, config, CONFIG)
    text = config.get("text_config") or {}
    _check(where, text, CONFIG, "text_config.")
    # Whoever builds the model of a damaged count of layers builds for minutes.
    for key in _LAYER_KEYS:
        count = max(config.get(key) or 0, text.get(key) or 0)
        if checkpoint.shards and count > len(checkpoint.tensors):
            raise ModelLoadError(
                f"{where} says {key} = {count}, and the weights are {len(checkpoint.tensors)} "
                "tensors; the checkpoint is damaged"
            )
    _check_architecture(checkpoint, config, trusted=trusted)


def check_generation_config(folder: Path) -> None:
    """Refuse a `generation_config.json` that is damaged; one that is not there passes.

    Raises:
        ModelLoadError: it is damaged; the message names the file and the key.
    """
    _check_file(folder / "generation_config.json", GENERATION)


def check_tokenizer_files(folder: Path) -> None:
    """Refuse the files of a tokenizer that are damaged; those that are not there pass.

    Raises:
        ModelLoadError: one is damaged; the message names the file and the key.
    """
    check_regular(folder)
    _check_file(folder / "tokenizer_config.json", TOKENIZER)
    _check_file(folder / "special_tokens_map.json", TOKENIZER)
    added = folder / "added_tokens.json"
    if added.exists():
        content = read_json(added)
        _check(added, content, dict.fromkeys(content, _ID))


def _check_file(path: Path, rules: Rules) -> None:
    if path.exists():
        _check(path, read_json(path), rules)


def _check(path: Path, content: dict[str, Any], rules: Rules, prefix: str = "") -> None:
    """Compare what a file says with the rules; null is what is not said."""
    for key, (test, expected) in rules.items():
        value = content.get(key)
        if value is not None and not test(value):
            shown = json.dumps(value)
            shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
            raise ModelLoadError(f"{path} says {prefix}{key} = {shown}; expected {expected}")


def _check_architecture(checkpoint: Checkpoint, config: dict[str, Any], *, trusted: bool) -> None:
    """Refuse what transformers does not know, or knows as no causal language model."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    known: Container[object] = CONFIG_MAPPING
    model_type = config.get("model_type")
    where = checkpoint.folder / "config.json"
    if "auto_map" in config and model_type not in known:
        if not trusted:
            raise ModelLoadError(
                f"{checkpoint.name} brings Python code of its own "
                f"({json.dumps(config['auto_map'])}); read it, and if you trust it set "
                "trust_remote_code=True (FOLOVLLM_TRUST_REMOTE_CODE=1)"
            )
    elif model_type not in known:
        raise ModelLoadError(
            f"{where} names the architecture {model_type!r}, which transformers "
            f"{transformers.__version__} does not know; is it misspelt, or newer than that?"
        )
    elif config.get("is_encoder_decoder"):
        raise ModelLoadError(
            f"{where} is that of an encoder-decoder model ({model_type}); FoloVLLM generates text "
            "with decoder-only models"
        )
    elif str(model_type) not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ModelLoadError(
            f"{where} names the architecture {model_type!r}, which is no causal language model; "
            "FoloVLLM generates text with decoder-only models"
        )
