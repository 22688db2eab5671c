"""The seam between a model's attention layers and the paged KV cache.

A backend writes the keys and values of a step's tokens to their slots and attends through block
tables. The model calls it by way of an `AttentionStep`, which travels through its forward as a
keyword argument: no layer reaches for a global.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from folovllm.attention.batch import Batch


class LayerSpec(NamedTuple):
    """What an attention layer keeps in the cache for each token."""

    num_kv_heads: int
    key_size: int
    value_size: int

    @property
    def numbers(self) -> int:
        """How many numbers that is."""
        return self.num_kv_heads * (self.key_size + self.value_size)


class LayerCache(NamedTuple):
    """The cache of one layer: `[num_blocks, block_size, num_kv_heads, size]` each."""

    keys: torch.Tensor
    values: torch.Tensor


@dataclass(frozen=True, slots=True)
class AttentionOptions:
    """How a layer attends, beside its tensors.

    Attributes:
        scale: what the products of queries and keys are multiplied by.
        window: each token sees this many of the last tokens, itself included; None is all.
        softcap: scores become softcap * tanh(scores / softcap); None leaves them.
        sinks: a learned score a query head that takes part in the softmax and has no value;
            `[num_heads]`.
    """

    scale: float
    window: int | None = None
    softcap: float | None = None
    sinks: torch.Tensor | None = None


class LayerAttention(NamedTuple):
    """How a layer of a model attends."""

    spec: LayerSpec
    num_heads: int
    options: AttentionOptions


@dataclass(frozen=True, slots=True)
class AttentionNeeds:
    """What a model on a device asks of a backend.

    Attributes:
        device: where it runs.
        dtype: of its queries, keys and values.
        layers: how each of them attends.
        block_size: tokens in a block of the cache; None leaves that to the backend.
    """

    device: torch.device
    dtype: torch.dtype
    layers: tuple[LayerAttention, ...]
    block_size: int | None


class AttentionCapture(Protocol):
    """A backend's part of captured steps of decoding: what they read, and how it gets there.

    A captured step reads the same addresses each time it is replayed. The worker packs the
    arrays of a step behind its own and copies them to the device at once, always to the same
    place; so all of them but the last, whose shape may change, lie at fixed addresses.
    """

    def arrays(self, batch: Batch) -> list[np.ndarray]:
        """Return what the device needs of a step of decoding.

        Of batches of one size, all arrays but the last have the same shapes.
        """
        ...

    def load(self, tensors: Sequence[torch.Tensor]) -> None:
        """Move the last of a step's arrays to where the captured steps read it.

        Args:
            tensors: the arrays of the step, on the device.
        """
        ...

    def metadata(self, tensors: Sequence[torch.Tensor]) -> Any:
        """Return what `AttentionBackend.attend` takes while steps of a size are captured.

        Args:
            tensors: where the arrays of a batch of that size lie; the last is not read.
        """
        ...


class AttentionBackend(Protocol):
    """What a backend must be able to do.

    Attributes:
        name: what it is chosen by.
        block_size: tokens in a block of the cache where nobody asked for another number.
        captures: whether steps of decoding can be captured as CUDA graphs.
    """

    name: str
    block_size: int
    captures: bool

    def refusal(self, needs: AttentionNeeds) -> str | None:
        """Why it cannot serve, with what would help, as the end of a sentence; None: it can."""
        ...

    def build(self, batch: Batch, device: torch.device) -> Any:
        """Prepare, once a step, what all layers share; with one copy to the device."""
        ...

    def capture(
        self, size: int, width: int, max_seq_len: int, device: torch.device
    ) -> AttentionCapture:
        """Take the memory that captured steps of decoding read; only where it `captures`.

        Args:
            size: the most sequences of a step.
            width: the most blocks of a sequence.
            max_seq_len: the most tokens of a sequence.
            device: where.
        """
        ...

    def attend(
        self,
        metadata: Any,
        cache: LayerCache,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        options: AttentionOptions,
    ) -> torch.Tensor:
        """Write keys and values to the cache, then attend.

        Args:
            metadata: what `build` made of the step.
            cache: the layer's.
            query: `[1, num_heads, T, key_size]`.
            key: `[1, num_kv_heads, T, key_size]`.
            value: `[1, num_kv_heads, T, value_size]`.
            options: how.

        Returns:
            `[1, T, num_heads, value_size]`.
        """
        ...


@dataclass(slots=True)
class AttentionStep:
    """One step's attention, as the model's layers see it."""

    backend: AttentionBackend
    caches: Sequence[LayerCache]
    metadata: Any

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        options: AttentionOptions,
    ) -> torch.Tensor:
        """Attend in a layer; shapes as in `AttentionBackend.attend`."""
        return self.backend.attend(self.metadata, self.caches[layer], query, key, value, options)


def write_to_cache(
    cache: LayerCache, slots: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> None:
    """Store a step's keys and values, `[1, num_kv_heads, T, size]` each, at their slots `[T]`."""
    cache.keys.flatten(0, 1).index_copy_(0, slots, key[0].transpose(0, 1))
    cache.values.flatten(0, 1).index_copy_(0, slots, value[0].transpose(0, 1))
