"""Every linear layer of a model put into the hands of its backend."""

import logging
from collections import Counter
from collections.abc import Sequence, Set as AbstractSet
from typing import Any, TypeGuard

import torch
from torch import nn

from folovllm.linear.choice import choose
from folovllm.linear.plain import PlainBackend
from folovllm.linear.protocol import LinearBackend, LinearNeeds, part_of
from folovllm.machine.memory import give_back_freed_memory

logger = logging.getLogger(__name__)

_LAYERS_A_TIME = 32  # between which freed weights are given back

_PLAIN = PlainBackend()


def parents(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the modules whose linear layers may be replaced, each behind its name.

    Not the layers themselves: a list that held them would keep their weights in memory.
    """
    modules = model.named_modules()
    return [(name, module) for name, module in modules if not isinstance(module, nn.Linear)]


class LinearPacker:
    """Gives each linear layer of a model to a backend, and keeps count.

    Args:
        device: where the model runs.
        asked: `ModelConfig.linear_backend`.
        untouched: layers that stay as they are, since the model's code reads their weights.

    Attributes:
        counts: how many layers each backend computes, by its name.
    """

    def __init__(
        self,
        device: torch.device,
        asked: str | None = None,
        untouched: AbstractSet[nn.Module] = frozenset(),
    ) -> None:
        """Nothing packed yet."""
        self.device = device
        self.asked = asked
        self.untouched = untouched
        self._made: set[nn.Module] = set()
        self._chosen: Counter[tuple[str, str]] = Counter()

    @property
    def counts(self) -> dict[str, int]:
        """The layers that each backend computes, the most first."""
        counts: Counter[str] = Counter()
        for (name, _), count in self._chosen.items():
            counts[name] += count
        return dict(counts.most_common())

    def merge(self, linears: Sequence[tuple[str, Any]]) -> nn.Module | None:
        """Return one layer that computes several of the same input, or None if none can.

        Args:
            linears: the layers, each behind its name in the model.
        """
        if not all(self._is_plain(layer) and layer not in self.untouched for _, layer in linears):
            return None
        choices = [self._choose(name, layer) for name, layer in linears]
        backend = choices[0][0]
        if any(other is not backend for other, _ in choices):
            return None
        merged = backend.merge([part_of(layer) for _, layer in linears])
        if merged is not None:
            self._note(merged, choices)
        return merged

    def pack(self, model: nn.Module) -> None:
        """Replace the linear layers of a model, one by one: at most one weight is there twice."""
        count = 0
        for prefix, module in parents(model):
            for name, child in module.named_children():
                if not self._is_plain(child):
                    continue
                if child in self.untouched:
                    self._note(child, [(_PLAIN, "the model's own code reads their weights")])
                    continue
                choice = self._choose(f"{prefix}.{name}".lstrip("."), child)
                packed = choice[0].load(*part_of(child))
                setattr(module, name, packed)
                self._note(packed, [choice])
                count += 1
                if count % _LAYERS_A_TIME == 0:
                    give_back_freed_memory()
        for (backend, reason), number in self._chosen.items():
            logger.info("%d linear layers are computed by %s (%s)", number, backend, reason)

    def _is_plain(self, layer: Any) -> TypeGuard[nn.Linear]:
        """Return whether it is a layer of torch's not seen yet; a subclass computes otherwise."""
        return type(layer) is nn.Linear and layer not in self._made

    def _choose(self, name: str, layer: nn.Linear) -> tuple[LinearBackend, str]:
        return choose(name, layer, LinearNeeds(self.device, layer.weight.dtype), self.asked)

    def _note(self, made: nn.Module, choices: Sequence[tuple[LinearBackend, str]]) -> None:
        self._made.add(made)
        self._chosen.update((backend.name, reason) for backend, reason in choices)
