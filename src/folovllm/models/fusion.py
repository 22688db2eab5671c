"""Fewer, larger operations in a loaded model, where that was measured to pay.

Both passes are for CPUs, where a step of one sequence is hundreds of small operations between
the reads of weights. Each leaves alone what it does not recognise.
"""

import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from folovllm.linear.packing import parents
from folovllm.machine.memory import give_back_freed_memory

logger = logging.getLogger(__name__)

SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Projections that a module applies to one and the same input, as transformers names them."""

_GROUPS_A_TIME = 16  # between which freed weights are given back


Merge = Callable[[list[tuple[str, Any]]], nn.Module | None]
"""Makes one layer of several, each behind its name in the model; None where none can."""


def fuse(model: nn.Module, merge: Merge) -> None:
    """Apply the passes to a model, before its other linear layers are packed.

    Args:
        model: is changed in place.
        merge: joins layers of one input: their linear backend's way.
    """
    merged = merge_projections(model, merge)
    norms = simplify_norms(model)
    logger.info("merged %d groups of projections, simplified %d norms", merged, norms)


def merge_projections(model: nn.Module, merge: Merge) -> int:
    """Compute projections of the same input as one; return how many groups there were."""
    count = 0
    for prefix, module in parents(model):
        for names in SIBLINGS:
            if _merge_group(prefix, module, names, merge):
                count += 1
                if count % _GROUPS_A_TIME == 0:
                    give_back_freed_memory()
    return count


def _merge_group(prefix: str, module: nn.Module, names: tuple[str, ...], merge: Merge) -> bool:
    """Put the merged layer in the place of its parts, which are not kept."""
    linears: list[tuple[str, Any]] = [
        (f"{prefix}.{name}".lstrip("."), getattr(module, name, None)) for name in names
    ]
    layer = merge(linears)
    if layer is None:
        return False
    merged = MergedProjections(layer, [linear.out_features for _, linear in linears])
    for index, name in enumerate(names):
        setattr(module, name, Projection(merged, index))
    return True


class MergedProjections(nn.Module):
    """Several linear layers of one input as one.

    The model's code asks for one after the other: the first computes all of them, and the others
    take theirs from there if they are asked with the same tensor.
    """

    def __init__(self, linear: nn.Module, sizes: list[int]) -> None:
        """Take the layer that computes all of them, and how many outputs each has."""
        super().__init__()
        self.linear = linear
        self.sizes = sizes
        self._rows: torch.Tensor | None = None
        self._parts: tuple[torch.Tensor, ...] = ()

    def project(self, rows: torch.Tensor, index: int) -> torch.Tensor:
        """From `[..., in]` to what the layer number `index` makes of it, `[..., out]`."""
        # The first always computes: a tensor that is written anew is the same tensor.
        if index == 0 or rows is not self._rows:
            self._rows = rows
            self._parts = self.linear(rows).split(self.sizes, -1)
        part = self._parts[index]
        if index == len(self.sizes) - 1:
            self._rows, self._parts = None, ()
        return part


class Projection(nn.Module):
    """Stands where one of the merged layers was."""

    def __init__(self, merged: MergedProjections, index: int) -> None:
        """Be the layer number `index`."""
        super().__init__()
        self.merged = merged
        self.index = index

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """From `[..., in]` to `[..., out]`."""
        return self.merged.project(rows, self.index)


def simplify_norms(model: nn.Module) -> int:
    """Compute root-mean-square norms in four operations instead of six; how many there were.

    Only in float32: in other types transformers' code converts between them on the way.
    """
    count = 0
    for module in list(model.modules()):
        for name, child in module.named_children():
            simple = _simplify(child)
            if simple is not None:
                setattr(module, name, simple)
                count += 1
    return count


def _simplify(norm: nn.Module) -> "RmsNorm | None":
    """The same norm simplified; None if it is none, or another than those known."""
    weight: Any = getattr(norm, "weight", None)
    epsilon: Any = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    if not type(norm).__name__.endswith("RMSNorm") or not isinstance(epsilon, float):
        return None
    if not isinstance(weight, torch.Tensor) or weight.dim() != 1 or weight.dtype != torch.float32:
        return None
    rows = torch.linspace(-3, 5, 4 * len(weight), device=weight.device).view(4, -1)
    with torch.inference_mode():
        expected = norm(rows)
        for scale in (weight, 1 + weight):  # the second is Gemma's
            simple = RmsNorm(scale.detach(), epsilon)
            if torch.allclose(simple(rows), expected, rtol=1e-5, atol=1e-6):
                return simple
    return None


class RmsNorm(nn.Module):
    """Root mean square layer normalisation (Zhang and Sennrich 2019, arXiv:1910.07467)."""

    def __init__(self, scale: torch.Tensor, epsilon: float) -> None:
        """Take what the normalised rows are multiplied by, `[size]`, and what keeps from 1/0."""
        super().__init__()
        size = len(scale)
        # x / sqrt(|x|^2 / size + epsilon) is x * sqrt(size) / hypot(|x|, sqrt(size * epsilon)).
        self.register_buffer("scale", scale * math.sqrt(size), persistent=False)
        least = torch.tensor(math.sqrt(size * epsilon), device=scale.device)
        self.register_buffer("least", least, persistent=False)
        self.scale: torch.Tensor
        self.least: torch.Tensor

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """From `[..., size]` to `[..., size]`."""
        length = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
        return rows.div(torch.hypot(length, self.least)).mul_(self.scale)
