"""How a GGUF file says that positions turn queries and keys."""

from math import log
from typing import Any

from folovllm.errors import ModelLoadError
from folovllm.loading.gguf.architectures import Architecture
from folovllm.loading.gguf.header import GgufFile
from folovllm.loading.gguf.keys import Keys


def rope_parameters(
    file: GgufFile, architecture: Architecture, keys: Keys, head: int
) -> dict[str, Any]:
    """Return transformers' `rope_parameters`.

    Args:
        file: the file.
        architecture: how it is read.
        keys: what it says of the model.
        head: the length of a head.

    Raises:
        ModelLoadError: it says something that cannot be honoured.
    """
    turned = keys.integer("rope.dimension_count", head)
    rope: dict[str, Any] = {
        "rope_type": "default",
        "rope_theta": keys.number("rope.freq_base", 10000.0),
    }
    if architecture.partial_rope:
        rope["partial_rotary_factor"] = turned / head
    elif turned != head:
        raise ModelLoadError(
            f"{file.path} turns {turned} of the {head} dimensions of a head "
            f"({file.architecture}.rope.dimension_count); FoloVLLM cannot do that for "
            f"{file.architecture}"
        )
    rope |= _scaling(file, keys)
    if "rope_factors_long.weight" in file.tensors or "rope_factors_short.weight" in file.tensors:
        rope |= _longrope(file, keys, turned)
    return rope


def _scaling(file: GgufFile, keys: Keys) -> dict[str, Any]:
    """Return how positions are stretched, by `rope.scaling.type`."""
    factor = keys.number("rope.scaling.factor", keys.number("rope.scale_linear", 1.0))
    # llama.cpp's default; files that name a factor alone are as old as that.
    kind = keys.text("rope.scaling.type", "linear")
    if kind == "yarn":
        return _yarn(keys, factor)
    if kind == "linear" and factor != 1:
        return {"rope_type": "linear", "factor": factor}
    if kind == "longrope" and "rope_factors_long.weight" in file.tensors:
        return {}  # whose factors are there
    if kind not in {"none", "linear"}:
        raise ModelLoadError(
            f"{file.path} says {file.architecture}.rope.scaling.type = {kind!r}; FoloVLLM knows "
            "none, linear, yarn, and longrope with its factors"
        )
    return {}


def _yarn(keys: Keys, factor: float) -> dict[str, Any]:
    original = keys.integer("rope.scaling.original_context_length", keys.integer("context_length"))
    found: dict[str, Any] = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": original,
    }
    for name in ("beta_fast", "beta_slow"):
        if (key := f"rope.scaling.yarn_{name}") in keys:
            found[name] = keys.number(key)
    given = [k for k in ("rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor") if k in keys]
    if given:  # llama.cpp multiplies YaRN's own factor by it
        found["attention_factor"] = keys.number(given[0]) * (1 + 0.1 * log(factor))
    return found


def _longrope(file: GgufFile, keys: Keys, turned: int) -> dict[str, Any]:
    """Return the factors of Phi-3, one for each pair of dimensions."""
    factors = {}
    for name in ("long", "short"):
        tensor = file.tensors.get(f"rope_factors_{name}.weight")
        if tensor is None or tensor.shape != (turned // 2,) or tensor.type.name != "F32":
            raise ModelLoadError(f"{file.path} lacks rope_factors_{name} of {turned // 2} numbers")
        factors[f"{name}_factor"] = tensor.data.view("<f4").tolist()
    original = keys.integer("rope.scaling.original_context_length")
    found = {
        "rope_type": "longrope",
        "factor": keys.integer("context_length") / original,
        "original_max_position_embeddings": original,
        **factors,
    }
    if "rope.scaling.attn_factor" in keys:
        found["attention_factor"] = keys.number("rope.scaling.attn_factor")
    return found
