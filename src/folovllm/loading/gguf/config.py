"""From what a GGUF file says of itself to transformers' configuration of the model."""

import re
from collections.abc import Collection
from math import isclose
from typing import TYPE_CHECKING, Any

from folovllm.errors import ModelLoadError
from folovllm.loading.gguf.architectures import ARCHITECTURES, Architecture
from folovllm.loading.gguf.header import GgufFile
from folovllm.loading.gguf.keys import Keys
from folovllm.loading.gguf.rope import rope_parameters
from folovllm.loading.gguf.special import special_ids

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

HARMLESS: dict[str, Collection[Any] | None] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0,),
    "attention.max_alibi_bias": (0,),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "expert_group_count": (0, 1),
    "expert_group_used_count": (0, 1),
    "pooling_type": (0,),
    "rope.scaling.attn_factor": (1,),
    "rope.scaling.finetuned": None,
    "rope.scaling.original_context_length": None,  # where positions are not stretched by it
    "tensor_data_layout": None,
    "use_parallel_residual": (True,),  # of a StableLM; what else it can be, the tensors say
}
"""Keys of an architecture that change nothing, or not where they have these values."""

# Gemma's largest models scale their scores otherwise; llama.cpp knows them by their layers.
_GEMMA_LARGEST = {"gemma2": 46, "gemma3": 62}


def make_config(file: GgufFile) -> "PreTrainedConfig":
    """Make the configuration that transformers would have of the model.

    Raises:
        ModelLoadError: the file is of an architecture that cannot be loaded, lacks what is
            needed, contradicts itself, or says something that cannot be honoured.
    """
    from transformers import AutoConfig

    architecture = find_architecture(file)
    keys = Keys(file, f"{file.architecture}.")
    _check_kind(file)
    values = {
        **_sizes(file, architecture, keys),
        **architecture.fixed,
        **{name: keys.integer(key) for key, name in architecture.keys.items()},
        **_special_ids(file),
    }
    values |= _attention(file, architecture, keys, values)
    values |= _of_family(file, keys, values)
    keys.check_rest(HARMLESS)
    model_type = architecture.model_type
    if model_type == "llama" and "sliding_window" in values:  # llama.cpp's name for Mistral too
        model_type = "mistral"
    config: PreTrainedConfig = AutoConfig.for_model(model_type, **values)
    return config


def find_architecture(file: GgufFile) -> Architecture:
    """Return how the file is read.

    Raises:
        ModelLoadError: it is of an architecture that cannot be loaded.
    """
    found = ARCHITECTURES.get(file.architecture)
    if found is None:
        raise ModelLoadError(
            f"{file.path} is of the architecture {file.architecture!r}; FoloVLLM loads GGUF files "
            f"of {', '.join(sorted(ARCHITECTURES))}. Take the model's Hugging Face checkpoint"
        )
    return found


def _check_kind(file: GgufFile) -> None:
    """Refuse parts of models."""
    kind = file.metadata.get("general.type", "model")
    if kind != "model":
        raise ModelLoadError(f"{file.path} holds no model but a part of one: {kind!r}")
    count = file.metadata.get("split.count", 1)
    if count not in {0, 1}:
        raise ModelLoadError(
            f"{file.path} is one of {count} files that a model was split into; join them with "
            "llama.cpp's `llama-gguf-split --merge`"
        )


def _sizes(file: GgufFile, architecture: Architecture, keys: Keys) -> dict[str, Any]:
    """Return the sizes that every model has."""
    hidden, length = keys.integer("embedding_length"), keys.integer("context_length")
    epsilon = f"attention.layer_norm_{'rms_' if architecture.rms else ''}epsilon"
    values = {
        "max_position_embeddings": length,
        "hidden_size": hidden,
        "num_hidden_layers": _count_layers(file, keys),
        "intermediate_size": keys.integer("feed_forward_length", 4 * hidden),
        "vocab_size": _count_tokens(file, keys, hidden),
        architecture.eps: keys.number(epsilon),
        "tie_word_embeddings": "output.weight" not in file.tensors,
    }
    if file.architecture == "gpt2":  # which calls them so in transformers too
        values["n_inner"] = values.pop("intermediate_size")
    return values


def _count_layers(file: GgufFile, keys: Keys) -> int:
    """Return the number of layers, each of which the file must have."""
    count = keys.integer("block_count")
    found = {int(match[1]) for name in file.tensors if (match := re.match(r"blk\.(\d+)\.", name))}
    if len(found) != count or max(found) != count - 1:
        raise ModelLoadError(
            f"{file.path} says {file.architecture}.block_count = {count}, and holds tensors of "
            f"{len(found)} layers"
        )
    return count


def _count_tokens(file: GgufFile, keys: Keys, hidden: int) -> int:
    """Return the size of the vocabulary: the rows of the embedding."""
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2 or embedding.shape[1] != hidden:
        shape = None if embedding is None else embedding.shape
        raise ModelLoadError(
            f"{file.path} has token_embd.weight of shape {shape}; expected one of "
            f"[tokens, {hidden}], by {file.architecture}.embedding_length"
        )
    rows = embedding.shape[0]
    if keys.integer("vocab_size", rows) != rows:
        raise ModelLoadError(
            f"{file.path} says {file.architecture}.vocab_size = {keys.integer('vocab_size')}, "
            f"and its embedding has {rows} rows"
        )
    return rows


def _special_ids(file: GgufFile) -> dict[str, Any]:
    """Return the special ids; those of the end are in the generation configuration."""
    ids = special_ids(file)
    return {f"{name}_token_id": ids.get(name) for name in ("bos", "eos", "pad")}


def _attention(
    file: GgufFile, architecture: Architecture, keys: Keys, values: dict[str, Any]
) -> dict[str, Any]:
    """Return the heads, and what positions do to them."""
    heads = keys.integer("attention.head_count")
    hidden, window = values["hidden_size"], _window(file, keys, values["max_position_embeddings"])
    head = keys.integer("attention.key_length", hidden // heads or 1)
    if keys.integer("attention.value_length", head) != head:
        raise ModelLoadError(f"{file.path} has keys and values of different lengths")
    found = {
        "num_attention_heads": heads,
        "num_key_value_heads": keys.integer("attention.head_count_kv", heads),
        "head_dim": head,
        **window,
    }
    if architecture.rope:
        found["rope_parameters"] = rope_parameters(file, architecture, keys, head)
    elif head * heads != hidden or found["num_key_value_heads"] != heads:
        raise ModelLoadError(f"{file.path} has {heads} heads of {head}, and {hidden} in all")
    _check_scale(file, keys, head)
    return found


def _check_scale(file: GgufFile, keys: Keys, head: int) -> None:
    """Refuse scores that are scaled otherwise than by the root of a head's length."""
    usual = head**-0.5
    if not isclose(scale := keys.number("attention.scale", usual), usual, rel_tol=1e-4):
        raise ModelLoadError(
            f"{file.path} says {file.architecture}.attention.scale = {scale:g}; FoloVLLM loads "
            f"GGUF files whose heads of {head} have {usual:g}"
        )


def _window(file: GgufFile, keys: Keys, length: int) -> dict[str, Any]:
    """Return how far back layers look."""
    if "attention.sliding_window" not in keys:
        # Gemma's have one in every file; of the others, none is none.
        return {"sliding_window": None} if file.architecture == "phi3" else {}
    window = keys.integer("attention.sliding_window", least=0)
    if file.architecture in {"gemma2", "gemma3"}:
        return {"sliding_window": window}
    if window == 0 or window >= length:
        return {"sliding_window": None} if file.architecture == "phi3" else {}
    if file.architecture in {"llama", "phi3"}:
        return {"sliding_window": window}
    raise ModelLoadError(
        f"{file.path} says {file.architecture}.attention.sliding_window = {window}, which "
        "FoloVLLM cannot honour: the file does not say of which layers"
    )


def _of_family(file: GgufFile, keys: Keys, values: dict[str, Any]) -> dict[str, Any]:
    """Return what the families have of their own."""
    family = file.architecture
    if family == "llama":
        bias = {"attention_bias": "attn_q.bias", "mlp_bias": "ffn_up.bias"}
        return {name: f"blk.0.{tensor}" in file.tensors for name, tensor in bias.items()}
    if family == "stablelm":
        parallel = "blk.0.ffn_norm.weight" not in file.tensors
        if parallel:
            keys.flag("use_parallel_residual", default=True)
        return {
            "use_qkv_bias": "blk.0.attn_q.bias" in file.tensors,
            "use_parallel_residual": parallel,
        }
    if family == "phi3" and values["rope_parameters"]["rope_type"] == "longrope":
        original = values["rope_parameters"]["original_max_position_embeddings"]
        return {"original_max_position_embeddings": original}
    return _of_gemma(family, keys, values) if family in _GEMMA_LARGEST else {}


def _of_gemma(family: str, keys: Keys, values: dict[str, Any]) -> dict[str, Any]:
    """Return the scale of the scores, the caps, and the two kinds of rotary positions."""
    largest = values["num_hidden_layers"] == _GEMMA_LARGEST[family]
    head = values["hidden_size"] // values["num_attention_heads"]
    found: dict[str, Any] = {
        "query_pre_attn_scalar": head if largest else values["head_dim"],
        "final_logit_softcapping": None,
        "attn_logit_softcapping": None,
    }
    for key in ("final_logit_softcapping", "attn_logit_softcapping"):
        default = {"final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0}
        if key in keys or family == "gemma2":
            found[key] = keys.number(key, default[key])
    if family == "gemma3":
        local = keys.number("rope.freq_base_swa", 10000.0)
        found["rope_parameters"] = {
            "full_attention": values["rope_parameters"],
            "sliding_attention": {"rope_type": "default", "rope_theta": local},
        }
    return found
