"""What can be learned from running a model once on a few tokens."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - everybody's name for it
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode


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


class PositionTables(TorchDispatchMode):
    """Finds tables of learned positions in a run on two tokens, with the same id and side by side.

    An embedding that is asked for two consecutive rows then looks up positions. Families number
    them from another row than 0 (OPT from 2), which the first row tells. What is indexed with
    the positions themselves is a table too (CTRL's sines).

    Args:
        positions: what the model is given.

    Attributes:
        limit: how many positions the smallest table has; None where there is none.
    """

    def __init__(self, positions: torch.Tensor) -> None:
        """Nothing seen yet."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._positions = positions.untyped_storage().data_ptr()
        self.limit: int | None = None

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Compute what is asked for, and look at what is looked up."""
        if func is torch.ops.aten.embedding.default:
            rows = args[1].flatten().tolist()
            if len(rows) == 2 and rows[1] == rows[0] + 1:
                self._note(len(args[0]) - rows[0])
        elif func is torch.ops.aten.index.Tensor:
            for size, index in zip(args[0].shape, args[1], strict=False):
                if index is not None and self._are_positions(index):
                    self._note(size)
        elif func is torch.ops.aten.index_select.default and self._are_positions(args[2]):
            self._note(args[0].shape[args[1]])
        return func(*args, **(kwargs or {}))

    def _are_positions(self, index: torch.Tensor) -> bool:
        return index.untyped_storage().data_ptr() == self._positions

    def _note(self, count: int) -> None:
        self.limit = count if self.limit is None else min(self.limit, count)


def explain(error: Exception) -> str:
    """Return what was raised, and where in the model's code, in one line."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = str(Path(__file__).parent)
    models = [x for x in frames if "/torch/" not in x.filename and ours not in x.filename]
    frame = (models or frames)[-1]
    lines = str(error).strip().splitlines()
    what = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return f"{what} ({Path(frame.filename).name}, line {frame.lineno}, in {frame.name})"
