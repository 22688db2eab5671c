"""Attention by Triton kernels of our own, which read pages where they are.

It needs nothing but the Triton that CUDA builds of torch bring. With `TRITON_INTERPRET=1` Triton
runs the kernels on a CPU, number by number: far too slow for anything but tests.
"""

import importlib.util
import os
from collections.abc import Iterator

import torch

from folovllm.attention.backend import (
    AttentionNeeds,
    AttentionOptions,
    LayerCache,
)
from folovllm.attention.paged import PagedBackend, PagedMetadata
from folovllm.kernels.triton_tiles import LARGEST_HEAD, choose_launch, most_rows

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
OLDEST_MAJOR = 8
"""Triton's own lower bound; for GPUs before Ampere it makes code without matrix instructions."""


class TritonBackend(PagedBackend):
    """Calls `kernels.triton_attention`, which is imported when it is first used."""

    name = "triton"
    block_size = 16

    def refusal(self, needs: AttentionNeeds) -> str | None:
        """Why it cannot serve: `AttentionBackend.refusal`."""
        if _interpreting():
            reason = _interpreter_refusal(needs.dtype)
        else:
            reason = _device_refusal(needs.device)
        # Last: whoever cannot use it need not install it.
        return reason or next(_misfits(needs), None) or _package_refusal()

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
        from folovllm.kernels import triton_attention

        query, key, value = _dense(query), _dense(key), _dense(value)
        launch = choose_launch(metadata, query, key.shape[1], value.shape[-1])
        with torch.cuda.device_of(query):  # Triton launches on the current device
            triton_attention.store(metadata, cache, key, value)
            return triton_attention.attend(metadata, cache, query, options, launch)


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
        return "needs a CUDA device"
    if torch.version.hip is not None:
        return "has no tiles for AMD's GPUs"
    major, minor = torch.cuda.get_device_capability(device)
    if major < OLDEST_MAJOR:
        return (
            f"needs a GPU of compute capability {OLDEST_MAJOR}.0 or later (Ampere), and "
            f"{torch.cuda.get_device_name(device)} has {major}.{minor}"
        )
    return None


def _misfits(needs: AttentionNeeds) -> Iterator[str]:
    """What of the model it has no tiles for."""
    if needs.dtype not in DTYPES:
        yield (
            f"computes in float16, bfloat16 and float32, not in {_name(needs.dtype)} "
            "(FOLOVLLM_DTYPE=float32 would do)"
        )
    for spec, num_heads, _ in needs.layers:
        largest = max(spec.key_size, spec.value_size)
        if largest > LARGEST_HEAD:
            yield f"takes head sizes up to {LARGEST_HEAD}, not {largest}"
        group = num_heads // spec.num_kv_heads
        most = most_rows(largest, needs.dtype.itemsize)
        if group > most:
            yield (
                f"takes up to {most} query heads for a key head of {largest} numbers in "
                f"{_name(needs.dtype)}, not {group}"
            )


def _package_refusal() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "is not installed (CUDA builds of torch bring it)"
    return None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
