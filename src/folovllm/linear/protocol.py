"""The seam between a model's linear layers and what computes them.

A backend is chosen for each layer. It builds the layer that runs from the tensors that a
checkpoint has for it: the plain weight today, packed codes and scales in a quantized checkpoint.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import nn


class LinearSpec(NamedTuple):
    """The sizes of a linear layer, which packed tensors do not always tell."""

    in_features: int
    out_features: int


class LinearPart(NamedTuple):
    """A linear layer before it is loaded.

    Attributes:
        spec: its sizes.
        tensors: what the checkpoint holds for it, by the end of the name ("weight", "bias").
    """

    spec: LinearSpec
    tensors: Mapping[str, torch.Tensor]


class LinearNeeds(NamedTuple):
    """What a layer asks of a backend.

    Attributes:
        device: where it is computed.
        dtype: of its input and output.
    """

    device: torch.device
    dtype: torch.dtype


class LinearBackend(Protocol):
    """What a backend must be able to do.

    Attributes:
        name: what it is chosen by.
    """

    name: str

    def refusal(self, name: str, layer: nn.Linear, needs: LinearNeeds) -> str | None:
        """Return why it cannot compute a layer, as the end of a sentence; None: it can.

        Args:
            name: of the layer in the model, such as `model.layers.0.mlp.down_proj`.
            layer: as transformers made it.
            needs: where and in which type it is computed.
        """
        ...

    def load(self, spec: LinearSpec, tensors: Mapping[str, torch.Tensor]) -> nn.Module:
        """Build the layer that runs, `[..., in_features]` to `[..., out_features]`."""
        ...

    def merge(self, parts: Sequence[LinearPart]) -> nn.Module | None:
        """Build one layer that computes several of the same input side by side.

        Returns:
            A layer from `[..., in_features]` to the parts' outputs one after another; None if
            it cannot join these.
        """
        ...


def part_of(linear: nn.Linear) -> LinearPart:
    """Return the sizes and tensors of a layer that transformers has loaded."""
    tensors = {"weight": linear.weight.detach()}
    if linear.bias is not None:
        tensors["bias"] = linear.bias.detach()
    return LinearPart(LinearSpec(linear.in_features, linear.out_features), tensors)


def concatenate(parts: Sequence[LinearPart]) -> LinearPart | None:
    """Join plain weights and biases along the outputs; None if they do not fit together."""
    weights = [part.tensors["weight"] for part in parts]
    kinds = {(weight.shape[1], weight.dtype, weight.device) for weight in weights}
    if len(kinds) != 1 or len({"bias" in part.tensors for part in parts}) != 1:
        return None
    names = parts[0].tensors
    tensors = {name: torch.cat([part.tensors[name] for part in parts]) for name in names}
    spec = LinearSpec(parts[0].spec.in_features, sum(part.spec.out_features for part in parts))
    return LinearPart(spec, tensors)
