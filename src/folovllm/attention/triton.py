"""Attention by Triton kernels of our own, which read pages where they are.

It needs nothing but the Triton that CUDA builds of torch bring. With `TRITON_INTERPRET=1` Triton
runs the kernels on a CPU, number by number: far too slow for anything but tests.
"""

import importlib.util
import os

import torch

from folovllm.attention.backend import (
    AttentionNeeds,
    AttentionOptions,
    BatchLayout,
    LayerAttention,
    LayerCache,
)
from folovllm.attention.paged import PagedMetadata, paged_metadata
from folovllm.attention.triton_tiles import LARGEST_HEAD, choose_launch, most_rows

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
OLDEST = (8, 0)
"""Triton's own lower bound; for GPUs before Ampere it makes code without matrix instructions."""


class TritonBackend:
    """Calls `triton_kernels`, which is imported when it is first used."""

    name = "triton"
    block_size = 16
    captures = True

    def refusal(self, needs: AttentionNeeds) -> str | None:
        """Why it cannot serve: the device, the data type or a layer's sizes."""
        if importlib.util.find_spec("triton") is None:
            return "needs Triton, which CUDA builds of torch bring: install one of those"
        if needs.dtype not in DTYPES:
            return f"computes in float16, bfloat16 and float32, not in {_name(needs.dtype)}"
        if _interpreting():
            why = _interpreter_refusal(needs.dtype)
        else:
            why = _device_refusal(needs.device)
        refusals = (_layer_refusal(layer, needs.dtype) for layer in needs.layers)
        return why or next(filter(None, refusals), None)

    def build(self, layout: BatchLayout) -> PagedMetadata:
        """Make the tensors that the kernels read."""
        return paged_metadata(layout)

    def attend(
        self,
        metadata: PagedMetadata,
        cache: LayerCache,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        options: AttentionOptions,
    ) -> torch.Tensor:
        """Write to the cache, then attend: `AttentionBackend.attend`."""
        from folovllm.attention import triton_kernels

        query, key, value = _dense(query), _dense(key), _dense(value)
        launch = choose_launch(metadata, query, key.shape[1], value.shape[-1])
        with torch.cuda.device_of(query):  # Triton launches on the current device
            triton_kernels.store(metadata, cache, key, value)
            return triton_kernels.attend(metadata, cache, query, options, launch)


def _dense(tensor: torch.Tensor) -> torch.Tensor:
    """The kernels know strides of heads and tokens, but read a head's numbers side by side."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def _interpreter_refusal(dtype: torch.dtype) -> str | None:
    if dtype == torch.bfloat16:  # github.com/triton-lang/triton/issues/11584
        return "multiplies the bits of bfloat16 when it is interpreted; take float16 or float32"
    return None


def _device_refusal(device: torch.device) -> str | None:
    if device.type != "cuda":
        return f"needs a CUDA device, and the model is on {device.type}"
    if torch.version.hip is not None:
        return "has no tiles for AMD's GPUs"
    found = torch.cuda.get_device_capability(device)
    if found < OLDEST:
        return "needs a GPU of compute capability {}.{} or later, and this has {}.{}".format(
            *OLDEST, *found
        )
    return None


def _layer_refusal(layer: LayerAttention, dtype: torch.dtype) -> str | None:
    spec = layer.spec
    largest = max(spec.key_size, spec.value_size)
    if largest > LARGEST_HEAD:
        return f"takes heads of at most {LARGEST_HEAD} numbers, and the model has {largest}"
    group = layer.num_heads // spec.num_kv_heads
    most = most_rows(largest, dtype.itemsize)
    if group > most:
        return (
            f"takes at most {most} query heads for a key head of {largest} numbers in "
            f"{_name(dtype)}, and the model has {group}"
        )
    return None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
