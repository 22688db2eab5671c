"""What really runs: every value of an engine that is decided by more than one source."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from folovllm.config.settings import Settings, public_value

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
Resolved: TypeAlias = tuple[T, str]
"""A value and the reason for it."""


def as_configured(part: Settings, name: str) -> Resolved[Any]:
    """Return the value of a field that nothing but the configuration decides."""
    return getattr(part, name), reason_of(part, name)


def reason_of(part: Settings, name: str) -> str:
    """Return why a field has its value: who asked for it, or that it is the default."""
    origin = part.origin(name)
    return "the default" if origin == "default" else f"asked for ({origin})"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSetup:
    """The engine's values after configuration, checkpoint and machine were asked.

    Decided once, in `folovllm.engine.resolve`, before the engine's parts are made of it.
    Everybody reads it and nobody changes it.

    Attributes:
        model: the model's name, as it was configured.
        device: where the model runs.
        dtype: of its weights.
        kv_cache_dtype: of the keys and values in the cache.
        attention_backend: what computes attention, by name.
        linear_backends: what computes linear layers: how many layers, by the backend's name.
        block_size: tokens in a block of the cache.
        max_model_len: most tokens of a sequence, prompt and output.
        max_num_batched_tokens: most tokens in a step.
        max_num_seqs: most sequences in a step.
        enable_chunked_prefill: whether a prompt may be computed in several steps.
        enable_prefix_caching: whether blocks of a prompt are kept for later ones.
        policy: who runs first, "fcfs" or "priority".
        num_blocks: blocks of the cache on the device, the null block among them.
        num_host_blocks: blocks in host memory to swap to.
        vocab_size: token ids from 0 to one less can be computed.
        eos_token_id: the tokenizer's end-of-sequence id; None if it has none.
        stop_token_ids: the further ids by which the checkpoint's generation config ends a
            sequence.
        graph_sizes: the batch sizes whose steps of decoding are captured; none without graphs.
        seed: of the random numbers of requests without a seed of their own.
        reasons: why a value is what it is, by the attribute's name.
    """

    model: str
    device: "torch.device"
    dtype: "torch.dtype"
    kv_cache_dtype: "torch.dtype"
    attention_backend: str
    linear_backends: Mapping[str, int]
    block_size: int
    max_model_len: int
    max_num_batched_tokens: int
    max_num_seqs: int
    enable_chunked_prefill: bool
    enable_prefix_caching: bool
    policy: str
    num_blocks: int
    num_host_blocks: int
    vocab_size: int
    eos_token_id: int | None
    stop_token_ids: tuple[int, ...]
    graph_sizes: tuple[int, ...]
    seed: int
    reasons: Mapping[str, str] = field(default_factory=dict)

    @property
    def cache_tokens(self) -> int:
        """How many tokens the cache holds, of one sequence or of many."""
        return (self.num_blocks - 1) * self.block_size

    @property
    def longest_sequence(self) -> int:
        """The number of tokens at which a sequence ends: the model's or the cache's limit."""
        return min(self.max_model_len, self.cache_tokens)

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """All ids of the model that end a sequence."""
        own = () if self.eos_token_id is None else (self.eos_token_id,)
        return frozenset((*own, *self.stop_token_ids))

    def as_dict(self) -> dict[str, object]:
        """Return every value but the reasons, by attribute, in the types that JSON has."""
        names = (each.name for each in fields(self) if each.name != "reasons")
        return {name: _plain(getattr(self, name)) for name in names}

    def rows(self) -> Iterator[tuple[str, str, str]]:
        """Yield name, value and reason of every attribute, as text for people."""
        for name, value in self.as_dict().items():
            yield name, _text(value), self.reasons.get(name, "")


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, tuple):
        return list(value)
    return public_value(value)


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {count}" for name, count in value.items())
    if isinstance(value, list):
        shown = value if len(value) < 8 else [*value[:4], "...", value[-1]]
        return ", ".join(map(str, shown)) or "none"
    return str(value)
