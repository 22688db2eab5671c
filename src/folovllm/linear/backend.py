"""The seam through which every linear layer of a model is computed.

A backend packs a layer's weight once, at load, into what it multiplies fastest, and applies it
to any number of rows from then on. The packed weight takes the plain one's place.
"""

import logging
from typing import Protocol

import torch
from torch import nn

from folovllm.linear.onednn import OneDnnBackend
from folovllm.machine.memory import give_back_freed_memory

logger = logging.getLogger(__name__)


class LinearBackend(Protocol):
    """What a backend must be able to do."""

    name: str

    def serves(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Whether it can compute there, in that type, on this machine."""
        ...

    def pack(self, linear: nn.Linear) -> nn.Module:
        """A module that computes what `linear` does, `[..., in]` to `[..., out]`."""
        ...


class PlainBackend:
    """Leaves linear layers to torch."""

    name = "plain"

    def serves(self, device: torch.device, dtype: torch.dtype) -> bool:  # noqa: ARG002 - as others
        """Everywhere."""
        return True

    def pack(self, linear: nn.Linear) -> nn.Module:
        """The layer as it is."""
        return linear


BACKENDS: tuple[LinearBackend, ...] = (OneDnnBackend(), PlainBackend())
"""In the order in which they are tried."""


_LAYERS_A_TIME = 32  # between which freed weights are given back


def choose_backend(device: torch.device, dtype: torch.dtype) -> LinearBackend:
    """The first backend that serves a device and a data type."""
    return next(backend for backend in BACKENDS if backend.serves(device, dtype))


def pack_linears(model: nn.Module, backend: LinearBackend) -> int:
    """Replace every linear layer of a model; how many there were.

    One at a time, so that at most one weight is there twice.
    """
    count = 0
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear:  # a subclass computes something else
                setattr(module, name, backend.pack(child))
                count += 1
                if count % _LAYERS_A_TIME == 0:
                    give_back_freed_memory()
    logger.info("%d linear layers are computed by the %s backend", count, backend.name)
    return count
