"""How long a sequence a checkpoint was made for, by its configuration.

The rules are vLLM's (`_get_and_verify_max_len` in `vllm/config/model.py`): the number of
positions, times the factor by which its rotary positions are stretched.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

from folovllm.config.setup import Resolved

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

DEFAULT_LENGTH = 2048
"""The longest sequence of a checkpoint that names none."""

_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "max_sequence_length",
    "max_seq_length",
    "seq_len",
)
"""Names that model families have for the number of positions; the smallest value holds."""

_NOT_STRETCHED = {"default", "su", "longrope", "llama3"}
"""Kinds of rotary positions whose configuration names the stretched length already."""

_BY_LENGTH = {"dynamic": "max_position_embeddings", "longrope": "original_max_position_embeddings"}
"""Kinds whose frequencies change beyond a length, and what names that length."""


@dataclass(frozen=True, slots=True)
class PositionLimit:
    """A number of positions beyond which a model cannot be run.

    Attributes:
        count: positions from 0 to one less can be asked for.
        why: what there is no more of, for a message.
    """

    count: int
    why: str


def checkpoint_length(config: "PreTrainedConfig", tokenizer_limit: object = None) -> Resolved[int]:
    """Return the longest sequence that a checkpoint was made for, and what says so.

    Args:
        config: the checkpoint's configuration.
        tokenizer_limit: `model_max_length` of its tokenizer, a huge number where it has none;
            None leaves the tokenizer out.
    """
    text = config.get_text_config()
    length, source = _positions(text)
    if (limit := _count(tokenizer_limit)) and (length is None or limit < length):
        length, source = limit, "the tokenizer's model_max_length"
    if length is None or length > 1e20:
        return DEFAULT_LENGTH, "the default: the checkpoint names no max_position_embeddings"
    length, source = _stretch(text, length, source)
    fixed = rope_limit(config)
    if fixed is not None and fixed.count < length:
        return fixed.count, f"the checkpoint's rotary positions: {fixed.why}"
    return length, source


def rope_limit(config: "PreTrainedConfig") -> PositionLimit | None:
    """Return up to which length the frequencies of rotary positions stay the same.

    Beyond it dynamic and longrope positions depend on the longest sequence of a batch. A
    sequence's tokens would depend on its neighbours, and on what of its own is cached already.
    """
    text: Any = config.get_text_config()
    limits = []
    for part in _rope_parts(text):
        kind = str(part.get("rope_type"))
        if kind in _BY_LENGTH:
            name = _BY_LENGTH[kind]
            count = _count(part.get(name)) or _count(getattr(text, name, None))
            why = f"beyond {count} tokens, those of type {kind!r} change with the longest sequence"
            limits.append(PositionLimit(count or 0, f"{why} of a batch"))
    return min(limits, key=lambda limit: limit.count, default=None)


def _positions(config: Any) -> tuple[int | None, str]:
    """Return the number of positions that a configuration names, and the name."""
    if own := _count(getattr(config, "model_max_length", None)):  # Command-R's, the longer one
        return own, "the checkpoint's model_max_length"
    found = {key: count for key in _KEYS if (count := _count(getattr(config, key, None)))}
    if not found:
        return None, ""
    key = min(found, key=lambda name: found[name])
    return found[key], f"the checkpoint's {key}"


def _stretch(config: Any, length: int, source: str) -> Resolved[int]:
    """Multiply a length by the factor of rotary positions that are stretched."""
    if "gemma3" in str(config.model_type):
        return length, source  # names the stretched length
    factor, kind = 1.0, ""
    for part in _rope_parts(config):
        rope_type = str(part.get("rope_type", "default"))
        if rope_type in _NOT_STRETCHED or not _is_number(part.get("factor")):
            continue
        factor, kind = part["factor"], rope_type
        original = _count(part.get("original_max_position_embeddings"))
        if rope_type == "yarn" and original:
            length, source = original, "the checkpoint's original_max_position_embeddings"
    if factor == 1 or not kind:
        return length, source
    return int(length * factor), f"{source}, {length}, times {factor:g} of its {kind} positions"


def _rope_parts(config: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the rotary parameters, of each kind of layer where those differ."""
    rope = getattr(config, "rope_parameters", None) or {}
    nested = [part for part in rope.values() if isinstance(part, Mapping)]
    yield from nested or ([rope] if rope else [])


def _count(value: object) -> int | None:
    """Return a number of tokens; None where a configuration has something else there."""
    return int(value) if _is_number(value) and 1 <= value < float("inf") else None


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
