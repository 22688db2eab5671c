"""Linear layers by oneDNN with weights packed once: the fast way on a CPU.

torch's own `F.linear` reads a plain weight by way of MKL, which reaches a third of the memory's
bandwidth on the thin matrices of decoding and, on other makers' processors, half of their
arithmetic on thick ones. oneDNN wants the weight in blocks of its own and is near both limits.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from folovllm.linear.protocol import LinearNeeds, LinearPart, LinearSpec, concatenate

_ROWS_HINT = 32
"""oneDNN chooses the blocks for a number of rows; 32 served all of 1 to 1024 best."""


class PackedLinear(nn.Module):
    """A linear layer whose weight oneDNN has packed."""

    def __init__(self, spec: LinearSpec, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """Pack the weight; the plain one is not kept."""
        super().__init__()
        self.in_features, self.out_features = spec
        # Neither parameter nor buffer: an opaque tensor can be neither moved nor saved.
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS_HINT)
        self.bias = bias

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """From `[..., in_features]` to `[..., out_features]`."""
        multiply: Any = torch.ops.mkldnn._linear_pointwise
        result: torch.Tensor = multiply(rows, self.packed, self.bias, "none", [], "")
        return result


class OneDnnBackend:
    """On a CPU that oneDNN has fast code for, in the types that it computes itself."""

    name = "onednn"

    def refusal(self, name: str, layer: nn.Linear, needs: LinearNeeds) -> str | None:  # noqa: ARG002 - as others
        """Refuse other devices, a torch without oneDNN, and types that the CPU has not."""
        if needs.device.type != "cpu":
            return f"computes on CPUs, not on {needs.device.type}"
        if not torch.backends.mkldnn.is_available():
            return "is not part of this torch"
        if not _computes(needs.dtype):
            return f"does not compute in {str(needs.dtype).removeprefix('torch.')} on this CPU"
        return None

    def load(self, spec: LinearSpec, tensors: Mapping[str, torch.Tensor]) -> nn.Module:
        """Pack the layer's weight."""
        return PackedLinear(spec, tensors["weight"], tensors.get("bias"))

    def merge(self, parts: Sequence[LinearPart]) -> nn.Module | None:
        """Pack the joined weights."""
        joined = concatenate(parts)
        return None if joined is None else self.load(*joined)


def _computes(dtype: torch.dtype) -> bool:
    """Return whether oneDNN computes in a type; in 16-bit ones only where the CPU does."""
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if dtype == torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return dtype == torch.float32
