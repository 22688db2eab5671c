"""Writes models of transformers as GGUF files, as llama.cpp's `convert_hf_to_gguf.py` does."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers.pre_tokenizers import ByteLevel

BYTES = sorted(set(ByteLevel.alphabet()))

TOP = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "transformer.wte": "token_embd",
    "transformer.wpe": "position_embd",
    "transformer.ln_f": "output_norm",
}
LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.qkv_proj": "attn_qkv",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "mlp.experts.down_proj": "ffn_down_exps",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
    "ln_1": "attn_norm",
    "ln_2": "ffn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
}
GEMMA = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
ARCHITECTURES = {
    "qwen2_moe": "qwen2moe",
    "qwen3_moe": "qwen3moe",
    "gemma3_text": "gemma3",
    "mistral": "llama",
}


def tensors_of(model: Any) -> dict[str, np.ndarray]:
    """The tensors of a model by llama.cpp's names, with what its converter does to them."""
    config, found = model.config, {}
    family = config.model_type
    layer_names = {**LAYER, **(GEMMA if family.startswith(("gemma2", "gemma3")) else {})}
    state = dict(model.named_parameters())  # tied ones once
    for name, tensor in state.items():
        array, (module, kind) = tensor.detach().float().numpy(), _split(name)
        parts = module.split(".")
        if not parts[-1] or ("layers" not in parts[:2] and "h" not in parts[:2]):
            target = TOP[module]
        else:
            target = f"blk.{parts[2]}." + layer_names.get(".".join(parts[3:]), "")
        if module.endswith("experts.gate_up_proj"):
            gate, up = np.split(array, 2, axis=1)
            blk = f"blk.{parts[2]}"
            found |= {f"{blk}.ffn_gate_exps.weight": gate, f"{blk}.ffn_up_exps.weight": up}
            continue
        if family in {"llama", "mistral"} and target.endswith(("attn_q", "attn_k")):
            heads = config.num_attention_heads
            heads = heads if target.endswith("q") else config.num_key_value_heads
            halves = array.reshape(heads, 2, -1, *array.shape[1:])
            array = halves.swapaxes(1, 2).reshape(array.shape)
        if family.startswith(("gemma", "nemotron")) and target.endswith("norm"):
            array = array + 1 if kind == "weight" else array
        if family == "gpt2" and target.startswith("blk.") and array.ndim == 2:
            array = array.T
        if target.endswith("inp_shexp"):
            array = array[0]
        found[f"{target}.{kind}"] = np.ascontiguousarray(array)
    return found


def _split(name: str) -> tuple[str, str]:
    if name.endswith((".weight", ".bias")):
        module, kind = name.rsplit(".", 1)
        return module, kind
    return name, "weight"


def metadata_of(config: Any) -> dict[str, Any]:
    """What llama.cpp's converter says of a model."""
    rope = getattr(config, "rope_parameters", None) or {}
    rope = rope.get("full_attention", rope)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    eps = [
        getattr(config, name, None)
        for name in ("rms_norm_eps", "layer_norm_epsilon", "norm_eps", "layer_norm_eps")
    ] + [getattr(config, "norm_epsilon", None)]
    rms = getattr(config, "rms_norm_eps", None) is not None
    found = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": getattr(config, "num_key_value_heads", None),
        f"attention.layer_norm_{'rms_' if rms else ''}epsilon": next(e for e in eps if e),
        "rope.freq_base": rope.get("rope_theta"),
        "rope.dimension_count": int(head * rope.get("partial_rotary_factor", 1)) if rope else None,
        "attention.key_length": head,
        "attention.value_length": head,
        "expert_count": getattr(config, "num_experts", None),
        "expert_used_count": getattr(config, "num_experts_per_tok", None),
        "expert_feed_forward_length": getattr(config, "moe_intermediate_size", None),
        "expert_shared_feed_forward_length": getattr(
            config, "shared_expert_intermediate_size", None
        ),
        "attn_logit_softcapping": getattr(config, "attn_logit_softcapping", None),
        "final_logit_softcapping": getattr(config, "final_logit_softcapping", None),
        "attention.sliding_window": getattr(config, "sliding_window", None),
    }
    if config.model_type == "gpt2":  # whatever else its configuration was given
        found["attention.head_count_kv"] = config.num_attention_heads
        found["feed_forward_length"] = 4 * config.hidden_size
    return {key: value for key, value in found.items() if value is not None}


TOKENIZER = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": ["<|endoftext|>", *BYTES, "ab", "cd"],
    "tokenizer.ggml.token_type": [3] + [1] * (len(BYTES) + 2),
    "tokenizer.ggml.merges": ["a b", "c d"],
    "tokenizer.ggml.bos_token_id": 0,
    "tokenizer.ggml.eos_token_id": 0,
}


def write_gguf(
    path: Path, architecture: str, metadata: dict[str, Any], tensors: dict[str, np.ndarray]
) -> Path:
    """Write a file; what is None in the metadata is left out."""
    from gguf import GGUFWriter  # not there on every machine that the other models serve

    writer = GGUFWriter(path, architecture)
    for key, value in metadata.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value) if value >= 0 else writer.add_int32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif value is not None:
            writer.add_array(key, value)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def save_as_gguf(model: torch.nn.Module, path: Path, **changes: Any) -> Path:
    """Write a model; `changes` are keys of its architecture, dots written as two underscores."""
    config: Any = model.config
    architecture = ARCHITECTURES.get(config.model_type, config.model_type)
    own = {**metadata_of(config), **{k.replace("__", "."): v for k, v in changes.items()}}
    metadata = {f"{architecture}.{key}": value for key, value in own.items()}
    return write_gguf(path, architecture, {**metadata, **TOKENIZER}, tensors_of(model))
