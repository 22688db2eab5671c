"""Linear layers by oneDNN with weights packed once: the fast way on a CPU.

torch's own `F.linear` reads a plain weight by way of MKL, which reaches a third of the memory's
bandwidth on the thin matrices of decoding and, on other makers' processors, half of their
arithmetic on thick ones. oneDNN wants the weight in blocks of its own and is near both limits.
"""

from typing import Any

import torch
from torch import nn

_ROWS_HINT = 32
"""oneDNN chooses the blocks for a number of rows; 32 served all of 1 to 1024 best."""


class PackedLinear(nn.Module):
    """A linear layer whose weight oneDNN has packed."""

    def __init__(self, linear: nn.Linear) -> None:
        """Pack the weight; the plain one is not kept."""
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        # Neither parameter nor buffer: an opaque tensor can be neither moved nor saved.
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _ROWS_HINT)
        self.bias = linear.bias

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """From `[..., in_features]` to `[..., out_features]`."""
        multiply: Any = torch.ops.mkldnn._linear_pointwise
        result: torch.Tensor = multiply(rows, self.packed, self.bias, "none", [], "")
        return result


class OneDnnBackend:
    """On a CPU that oneDNN has fast code for, in the types that it computes itself."""

    name = "oneDNN"

    def serves(self, device: torch.device, dtype: torch.dtype) -> bool:
        """On CPUs whose torch has oneDNN; 16-bit types only where the CPU computes in them."""
        if device.type != "cpu" or not torch.backends.mkldnn.is_available():
            return False
        if dtype == torch.bfloat16:
            return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
        if dtype == torch.float16:
            return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
        return dtype == torch.float32

    def pack(self, linear: nn.Linear) -> nn.Module:
        """Pack the layer's weight."""
        return PackedLinear(linear)
