"""The smallest Triton kernel: does Triton compile here, and does what it compiled compute?"""

import torch
import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _scale_and_add(x, y, output, factor, count, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = places < count
    sums = tl.load(x + places, mask=inside) * factor + tl.load(y + places, mask=inside)
    tl.store(output + places, sums, mask=inside)


def scale_and_add(x: torch.Tensor, y: torch.Tensor, factor: float) -> torch.Tensor:
    """`x * factor + y` of two float32 vectors on one device."""
    output = torch.empty_like(x)
    grid = (triton.cdiv(x.numel(), 256),)
    _scale_and_add[grid](x, y, output, factor, x.numel(), BLOCK=256)
    return output
