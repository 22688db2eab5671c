"""The architectures of GGUF files that can be loaded, and how each is named and stored.

What is stored otherwise than transformers has it, and the values that the files leave out, are
those of llama.cpp's `convert_hf_to_gguf.py` and of its graphs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Undo = Callable[[str, np.ndarray, Any], np.ndarray]
"""From a tensor's name in the file, its numbers and the model's configuration to the numbers that
transformers has."""

_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}

_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_QK_NORM = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_EXPERTS = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.gate_up_proj",
    "ffn_up_exps": "mlp.experts.gate_up_proj",
    "ffn_down_exps": "mlp.experts.down_proj",
}
_SHARED_EXPERT = {
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
_GEMMA_NORMS = {
    "ffn_norm": "pre_feedforward_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_GPT2 = {
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}

_EXPERT_KEYS = {
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
}


@dataclass(frozen=True)
class Architecture:
    """How files of an architecture are read.

    Attributes:
        model_type: transformers' name of it.
        keys: whole numbers of the file by what transformers calls them, beside the usual ones.
        fixed: values that the files leave out.
        eps: how transformers calls the epsilon of its norms.
        rms: its norms are RMS norms.
        layer: the names of a layer's modules, by those in the file.
        top: the names of the other modules.
        layers: where transformers keeps the layers.
        undo: changes the numbers of a tensor to transformers' way.
        partial_rope: its rotary positions may turn a part of each head.
        rope: it has rotary positions.
    """

    model_type: str
    keys: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    eps: str = "rms_norm_eps"
    rms: bool = True
    layer: Mapping[str, str] = field(default_factory=lambda: _LAYER)
    top: Mapping[str, str] = field(default_factory=lambda: _TOP)
    layers: str = "model.layers"
    undo: Undo | None = None
    partial_rope: bool = False
    rope: bool = True


def _unpermute(name: str, weights: np.ndarray, config: Any) -> np.ndarray:
    """Undo the order of the rows of queries and keys: halves of a head, which llama.cpp pairs."""
    if ".attn_q." in name:
        heads = config.num_attention_heads
    elif ".attn_k." in name:
        heads = config.num_key_value_heads
    else:
        return weights
    rows = weights.reshape(heads, -1, 2, *weights.shape[1:])
    ordered: np.ndarray = rows.swapaxes(1, 2).reshape(weights.shape)
    return ordered


def _subtract_one(name: str, weights: np.ndarray, _: Any) -> np.ndarray:
    """Undo the one that is added to the weights of norms, which transformers adds itself."""
    return weights - 1 if name.endswith("norm.weight") else weights


def _transpose(name: str, weights: np.ndarray, _: Any) -> np.ndarray:
    """Give the layers of GPT-2 as transformers' `Conv1D` has them, inputs first."""
    is_layer = name.startswith("blk.") and weights.ndim == 2
    return weights.T if is_layer else weights


def _add_row(name: str, weights: np.ndarray, _: Any) -> np.ndarray:
    """Give the gate of a shared expert the one row of a linear layer."""
    return weights[None] if "ffn_gate_inp_shexp" in name and weights.ndim == 1 else weights


ARCHITECTURES = {
    "gemma": Architecture("gemma", undo=_subtract_one),
    "gemma2": Architecture("gemma2", layer={**_LAYER, **_GEMMA_NORMS}, undo=_subtract_one),
    "gemma3": Architecture(
        "gemma3_text", layer={**_LAYER, **_GEMMA_NORMS, **_QK_NORM}, undo=_subtract_one
    ),
    "gpt2": Architecture(
        "gpt2",
        eps="layer_norm_epsilon",
        rms=False,
        layer=_GPT2,
        top={
            "token_embd": "transformer.wte",
            "position_embd": "transformer.wpe",
            "output_norm": "transformer.ln_f",
            "output": "lm_head",
        },
        layers="transformer.h",
        undo=_transpose,
        rope=False,
    ),
    "llama": Architecture("llama", undo=_unpermute),
    "nemotron": Architecture(
        "nemotron", eps="norm_eps", rms=False, undo=_subtract_one, partial_rope=True
    ),
    "phi3": Architecture(
        "phi3",
        layer={
            **_LAYER,
            "attn_qkv": "self_attn.qkv_proj",
            "ffn_up": "mlp.gate_up_proj",
        },
        partial_rope=True,
    ),
    "qwen2": Architecture("qwen2"),
    "qwen2moe": Architecture(
        "qwen2_moe",
        keys={
            **_EXPERT_KEYS,
            "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
        },
        layer={**_LAYER, **_EXPERTS, **_SHARED_EXPERT},
        undo=_add_row,
    ),
    "qwen3": Architecture("qwen3", layer={**_LAYER, **_QK_NORM}),
    "qwen3moe": Architecture(
        "qwen3_moe",
        keys=_EXPERT_KEYS,
        fixed={"norm_topk_prob": True},
        layer={**_LAYER, **_QK_NORM, **_EXPERTS},
    ),
    "stablelm": Architecture("stablelm", eps="layer_norm_eps", rms=False, partial_rope=True),
    "starcoder2": Architecture(
        "starcoder2",
        eps="norm_epsilon",
        rms=False,
        layer={**_LAYER, "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"},
    ),
}
"""By llama.cpp's names."""
