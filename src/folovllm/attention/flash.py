"""Attention by FlashAttention 2 (arXiv:2307.08691), the package flash-attn, on NVIDIA GPUs.

One call does for prompts, decoding and both at once: `flash_attn_varlen_func` with block tables.
The later package flash-attn-4 is not used: up to 4.0.0b36 it reads block tables on data-centre
GPUs alone, does not divide a long sequence among processors on Hopper, and takes other arguments.
"""

import inspect
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import torch

from folovllm.attention.backend import (
    AttentionNeeds,
    AttentionOptions,
    LayerCache,
    write_to_cache,
)
from folovllm.attention.paged import PagedBackend, PagedMetadata

_DTYPES = (torch.float16, torch.bfloat16)
_LARGEST_HEAD = 256
_PAGE = 256  # the rows that a tile of keys loads at once must not cross a page


class FlashBackend(PagedBackend):
    """Calls flash-attn 2.x, which is imported when it is first needed."""

    name = "flash"
    block_size = _PAGE

    def refusal(self, needs: AttentionNeeds) -> str | None:
        """Why it cannot serve: `AttentionBackend.refusal`."""
        reason = _device_refusal(needs.device) or "; it ".join(_misfits(needs))
        # Last: whoever cannot use it need not install it.
        return reason or _package_refusal()

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
        # The rows that pad a captured graph all write to slot 0, in no certain order: nobody
        # attends to it but they.
        write_to_cache(cache, metadata.slots, key, value)
        output: torch.Tensor = _flash_attention()(
            query[0].transpose(0, 1),
            cache.keys,
            cache.values,
            cu_seqlens_q=metadata.cu_query_lens,
            cu_seqlens_k=metadata.cu_seq_lens,
            max_seqlen_q=metadata.max_query_len,
            max_seqlen_k=metadata.max_seq_len,
            softmax_scale=options.scale,
            causal=True,
            window_size=_span(options.window, metadata.max_seq_len),
            softcap=options.softcap or 0.0,
            block_table=metadata.block_table,
        )
        return output[None]


def _span(window: int | None, longest: int) -> tuple[int, int]:
    """How many tokens before and after its own a token sees; -1 is all that causality allows."""
    # A window that hides nothing is none: with any, the kernels for decoding do not take the
    # query heads of a group together, nor divide a long sequence among processors.
    return (-1, -1) if window is None or window >= longest else (window - 1, 0)


def _flash_attention() -> Callable[..., Any]:
    # Looking up a module that is there takes less than a microsecond: there is nothing to keep.
    from flash_attn import flash_attn_varlen_func

    function: Callable[..., Any] = flash_attn_varlen_func
    return function


def _device_refusal(device: torch.device) -> str | None:
    if device.type != "cuda":
        return "needs a CUDA device"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return (
            "needs a GPU of compute capability 8.0 or later (Ampere), and "
            f"{torch.cuda.get_device_name(device)} has {major}.{minor}"
        )
    return None


def _misfits(needs: AttentionNeeds) -> Iterator[str]:
    """What of the model, and of the blocks asked for, it has no kernels for.

    From `mha_varlen_fwd` in flash-attn's `csrc/flash_attn/flash_api.cpp`.
    """
    if needs.dtype not in _DTYPES:
        name = str(needs.dtype).removeprefix("torch.")
        yield f"computes in float16 and bfloat16, not in {name} (FOLOVLLM_DTYPE=bfloat16 would do)"
    specs = {layer.spec for layer in needs.layers}
    sizes = {size for spec in specs for size in (spec.key_size, spec.value_size)}
    # Another size would be padded: each layer's whole cache copied in each step.
    if wrong := sorted(size for size in sizes if size > _LARGEST_HEAD or size % 8):
        numbers = " and ".join(map(str, wrong))
        yield f"takes head sizes that are multiples of 8 up to {_LARGEST_HEAD}, not {numbers}"
    if uneven := sorted(spec for spec in specs if spec.key_size != spec.value_size):
        spec = uneven[0]
        yield f"takes keys and values of one size, not of {spec.key_size} and {spec.value_size}"
    if any(layer.options.sinks is not None for layer in needs.layers):
        yield "knows no attention sinks, which this model has"
    if needs.block_size is not None and needs.block_size % _PAGE:
        yield (
            f"reads blocks of multiples of {_PAGE} tokens, not of {needs.block_size} "
            f"(FOLOVLLM_BLOCK_SIZE={_PAGE} would do)"
        )


def _package_refusal() -> str | None:
    spec = find_spec("flash_attn")
    if spec is None or spec.origin is None:  # flash-attn-4 alone leaves a folder without a module
        return "is not installed (`nox -s setup -- --with flash-attn`)"
    try:
        function = _flash_attention()
    except (ImportError, OSError, RuntimeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        return f"cannot be imported, it was built for another torch or GPU perhaps: {reason}"
    if missing := {"block_table", "softcap"} - set(inspect.signature(function).parameters):
        names = " and ".join(sorted(missing))
        return f"is too old here, it knows no {names} (flash-attn 2.6 or later would do)"
    return None
