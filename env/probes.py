"""Run by an environment's own Python: proves that an accelerator computes what it should."""

from __future__ import annotations

import importlib
import math
import sys
from typing import Any

# New tokens and cached ones before them, of sequences in one batch: a long and a short prompt,
# one that goes on from cached tokens, and a decode step.
_SEQUENCES = ((200, 0), (5, 0), (33, 95), (1, 150))
_HEADS, _KV_HEADS, _HEAD_SIZE = 8, 2, 128
# Largest deviation from float32 that rounding explains, for values around 1.
_TOLERANCES = {"bfloat16": 3e-2, "float16": 4e-3}


def flash(attend: Any, device: str) -> str:
    """Compare a variable-length attention with torch's in float32; return a line with figures.

    Args:
        attend: `flash_attn_varlen_func` of flash-attn 2 or 4; causal from the bottom right.
        device: where, such as `cuda`.

    Raises:
        RuntimeError: it deviates by more than rounding explains.
    """
    torch = importlib.import_module("torch")
    torch.manual_seed(0)
    figures = []
    for dtype, tolerance in _TOLERANCES.items():
        pieces = [
            [
                torch.randn(length, heads, _HEAD_SIZE, device=device, dtype=getattr(torch, dtype))
                for length, heads in ((new, _HEADS), *[(new + old, _KV_HEADS)] * 2)
            ]
            for new, old in _SEQUENCES
        ]
        got = _attend(torch, attend, pieces, device)
        expected = torch.cat([_reference(torch, *piece) for piece in pieces])
        worst = (got.float() - expected).abs().max().item()
        if not worst <= tolerance:  # NaN fails too
            raise RuntimeError(
                f"its {dtype} attention is off by {worst:.2g}: more than {tolerance}"
            )
        figures.append(f"{dtype} within {worst:.2g}")
    return f"agrees with torch's attention on {device}: {', '.join(figures)}"


def _attend(torch: Any, attend: Any, pieces: list[list[Any]], device: str) -> Any:
    queries, keys, values = (torch.cat(part) for part in zip(*pieces, strict=True))

    def starts(part: int) -> Any:
        lengths = torch.tensor([0, *(len(piece[part]) for piece in pieces)])
        return lengths.cumsum(0).to(device, torch.int32)

    return attend(
        *(queries, keys, values),
        cu_seqlens_q=starts(0),
        cu_seqlens_k=starts(1),
        max_seqlen_q=max(len(piece[0]) for piece in pieces),
        max_seqlen_k=max(len(piece[1]) for piece in pieces),
        causal=True,
    )


def _reference(torch: Any, query: Any, key: Any, value: Any) -> Any:
    """Return torch's attention of one sequence in float32, `[new, heads, head size]`."""
    new, total = len(query), len(key)
    mask = torch.ones(new, total, dtype=torch.bool, device=query.device).tril(total - new)
    query, key, value = (part.float().transpose(0, 1)[None] for part in (query, key, value))
    attended = torch.nn.functional.scaled_dot_product_attention(
        *(query, key, value), attn_mask=mask, scale=1 / math.sqrt(_HEAD_SIZE), enable_gqa=True
    )
    return attended[0].transpose(0, 1)


def quantised(pack: Any) -> str:
    """Pack a linear layer that 4 bits can express, and compare what comes out with it.

    Args:
        pack: takes torch, the layer, its scales and zero points `[rows, groups]`, and each
            column's group; returns the weight as the packed layer has it, `[rows, columns]`.

    Raises:
        RuntimeError: another weight comes out than went in.
    """
    torch = importlib.import_module("torch")
    torch.manual_seed(0)
    rows, columns, group = 128, 256, 64
    layer = torch.nn.Linear(columns, rows, bias=False)
    grouped = layer.weight.detach().view(rows, columns // group, group)
    scales = grouped.abs().amax(-1) / 7
    codes = (grouped / scales[..., None]).round()  # -7 to 7, stored with 8 added
    weight = (codes * scales[..., None]).view(rows, columns)
    with torch.no_grad():
        layer.weight.copy_(weight)
        groups = torch.arange(columns, dtype=torch.int32) // group
        unpacked = pack(torch, layer, scales, torch.full_like(scales, 8), groups)
    worst = (unpacked.float() - weight).abs().max().item()
    if not worst <= scales.max().item() / 100:
        raise RuntimeError(f"a packed linear layer comes back changed, by {worst:.2g}")
    return f"packs 4-bit weights and gives them back within {worst:.2g}"


def _auto_gptq(torch: Any, layer: Any, scales: Any, zeros: Any, groups: Any) -> Any:
    importlib.import_module("auto_gptq")
    module = importlib.import_module("auto_gptq.nn_modules.qlinear.qlinear_cuda_old")
    group = layer.in_features // scales.shape[1]
    packed = module.QuantLinear(
        *(4, group, layer.in_features, layer.out_features, False), weight_dtype=torch.float32
    )
    packed.pack(layer, scales, zeros, groups)
    return packed(torch.eye(layer.in_features)).T


def _gptqmodel(torch: Any, layer: Any, scales: Any, zeros: Any, groups: Any) -> Any:
    module = importlib.import_module("gptqmodel.nn_modules.qlinear.torch")
    packed = module.TorchLinear(
        bits=4,
        group_size=layer.in_features // scales.shape[1],
        sym=True,
        desc_act=False,
        in_features=layer.in_features,
        out_features=layer.out_features,
        pack_dtype=torch.int32,
    )
    packed.pack_original(layer, scales, zeros, groups)  # the other ways compile C++ first
    return packed.dequantize_weight().T


def run(name: str) -> str:
    """Try out the accelerator `name`; return a line that says what it did."""
    if name == "flash-attn":
        return flash(importlib.import_module("flash_attn").flash_attn_varlen_func, "cuda")
    return quantised({"auto-gptq": _auto_gptq, "gptqmodel": _gptqmodel}[name])


if __name__ == "__main__":
    print(run(sys.argv[1]))
