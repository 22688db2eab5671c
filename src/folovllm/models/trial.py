"""What can be learned from running a model once on a few tokens."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - everybody's name for it
from torch import nn


class _Watched(nn.Linear):
    """A linear layer that notes when others read its tensors.

    A layer gets this class and loses it again; the note is an attribute of its own.
    """

    read = False

    def __getattr__(self, name: str) -> Any:
        """Find a tensor, as `nn.Module` does, and remember that it was asked for."""
        if name in {"weight", "bias"}:
            self.read = True
        return super().__getattr__(name)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Compute what the layer computes, without reading by name."""
        tensors: dict[str, Any] = vars(self)["_parameters"]
        return F.linear(rows, tensors["weight"], tensors["bias"])


@contextmanager
def watch_weights(model: nn.Module) -> Iterator[set[nn.Module]]:
    """Find linear layers whose weight a forward reads itself; they must stay what they are.

    Gates of some mixtures of experts ask for the type of `gate.weight`, or multiply with it. A
    layer that a run passes over (an expert that no token chose) is judged by its like: same
    class of parent, same name.

    Yields:
        A set that is filled when the context ends.
    """
    found: set[nn.Module] = set()
    places = [
        (type(module), name, child)
        for module in model.modules()
        for name, child in module.named_children()
        if type(child) is nn.Linear
    ]
    for _, _, child in places:
        child.__class__ = _Watched
    try:
        yield found
    finally:
        kinds = {(parent, name) for parent, name, child in places if vars(child).get("read")}
        for _, _, child in places:
            child.__class__ = nn.Linear
            vars(child).pop("read", None)
        found.update(child for parent, name, child in places if (parent, name) in kinds)


def explain(error: Exception) -> str:
    """Return what was raised, and where in the model's code, in one line."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = str(Path(__file__).parent)
    models = [x for x in frames if "/torch/" not in x.filename and ours not in x.filename]
    frame = (models or frames)[-1]
    lines = str(error).strip().splitlines()
    what = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return f"{what} ({Path(frame.filename).name}, line {frame.lineno}, in {frame.name})"
