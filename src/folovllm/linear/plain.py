"""Linear layers as torch computes them: everywhere, in every type."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from folovllm.linear.protocol import LinearNeeds, LinearPart, LinearSpec, concatenate


class PlainBackend:
    """Leaves linear layers to torch."""

    name = "plain"

    def refusal(self, name: str, layer: nn.Linear, needs: LinearNeeds) -> str | None:  # noqa: ARG002 - as others
        """Refuse nothing."""
        return None

    def load(self, spec: LinearSpec, tensors: Mapping[str, torch.Tensor]) -> nn.Module:
        """Return torch's own layer upon the tensors, which are not copied."""
        with torch.device("meta"):  # no memory for weights that are replaced at once
            linear = nn.Linear(spec.in_features, spec.out_features, bias="bias" in tensors)
        for name, tensor in tensors.items():
            setattr(linear, name, nn.Parameter(tensor, requires_grad=False))
        return linear

    def merge(self, parts: Sequence[LinearPart]) -> nn.Module | None:
        """Join the weights."""
        joined = concatenate(parts)
        return None if joined is None else self.load(*joined)
