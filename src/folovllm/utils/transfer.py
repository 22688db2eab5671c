"""Small arrays from the host to a device, together in one copy.

Each copy from ordinary memory costs the driver a detour through memory that the device can reach,
and each call some microseconds: a step with ten of them waits longer for those than for its data.
"""

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch

_ALIGNMENT = 16  # bytes: where any data type, and kernels' wide reads, may begin


def send(arrays: Sequence[np.ndarray], device: torch.device) -> list[torch.Tensor]:
    """The same numbers on a device, in the order of the work that is queued there.

    Args:
        arrays: contiguous, of types that torch has; on a CPU the tensors share their memory.
        device: where to.
    """
    if device.type == "cpu":
        return [torch.from_numpy(array) for array in arrays]
    packed = pack(arrays, pinned=device.type == "cuda")
    return unpack(packed.to(device, non_blocking=True), arrays)


def pack(arrays: Sequence[np.ndarray], *, pinned: bool) -> torch.Tensor:
    """One after the other as bytes, on the host.

    Args:
        arrays: contiguous.
        pinned: whether in memory that a device reads by itself. It comes from torch's own store
            of such memory, which hands nothing out again before the copies from it are done.
    """
    ends = _ends(arrays)
    packed = torch.empty(ends[-1], dtype=torch.uint8, pin_memory=pinned)
    view = packed.numpy()
    for array, end in zip(arrays, ends, strict=True):
        start = end - _room(array)
        view[start : start + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return packed


def unpack(packed: torch.Tensor, arrays: Sequence[np.ndarray]) -> list[torch.Tensor]:
    """Where arrays of these shapes and types lie in what was packed; the memory is shared."""
    tensors = []
    for array, end in zip(arrays, _ends(arrays), strict=True):
        start = end - _room(array)
        dtype = torch.from_numpy(array).dtype
        tensors.append(packed[start : start + array.nbytes].view(dtype).view(array.shape))
    return tensors


def _room(array: np.ndarray) -> int:
    return array.nbytes + -array.nbytes % _ALIGNMENT


def _ends(arrays: Sequence[np.ndarray]) -> list[int]:
    return list(accumulate(_room(array) for array in arrays))
