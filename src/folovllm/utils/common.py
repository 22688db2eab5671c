"""Random seeds, request ids, devices and GPU memory.

torch is imported by the functions that need it, so that importing this module does not.
"""

import copy
import random
import uuid
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

from folovllm.errors import ConfigError
from folovllm.utils.checks import check_int

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

_GIB = 2**30


def set_random_seed(seed: int) -> None:
    """Seed `random`, NumPy, and torch's generators on the CPU and on every CUDA device.

    Args:
        seed: from 0 to 2**64 - 1. `random` and CUDA use all of it, NumPy and torch's CPU
            generator its low 32 bits.

    Raises:
        ValueError: `seed` is no such integer.
    """
    import numpy as np
    import torch

    seed = check_int("seed", seed, 0, 2**64 - 1)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # it refuses more, where torch looks no further
    torch.manual_seed(seed)  # the CUDA devices as well, those not yet in use when they will be


def generate_request_id() -> str:
    """Return a fresh random UUID (version 4) in its usual spelling."""
    return str(uuid.uuid4())


def is_cuda_available() -> bool:
    """Whether torch can use a CUDA device."""
    import torch

    return torch.cuda.is_available()


def get_device(device: "str | torch.device | None" = None) -> "torch.device":
    """Return the device asked for, after checking that it is there.

    Args:
        device: a `torch.device` or its name ("cpu", "cuda", "cuda:1"); None is CUDA where
            available, else the CPU.

    Raises:
        ConfigError: the name is no device's, or this machine or torch build has no such device.
    """
    import torch

    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        # torch takes an index as well, which means another device with each build of it.
        found = torch.device(device if isinstance(device, torch.device) else f"{device}")
    except RuntimeError as error:
        raise ConfigError(
            f'device must be like "cpu", "cuda" or "cuda:1", got {device!r}'
        ) from error
    _check_present(found)
    return found


def _check_present(device: "torch.device") -> None:
    import torch

    if device.type in {"cpu", "meta"}:
        return
    backend: Any = getattr(torch, device.type, None)  # torch.cuda, torch.mps, ...
    if not hasattr(backend, "is_available") or not backend.is_available():
        raise ConfigError(
            f'device "{device}" was asked for, but torch {torch.__version__} finds no '
            f'{device.type} device here: use "cpu", or check the driver and the torch build'
        )
    count = backend.device_count()
    if (device.index or 0) >= count:
        raise ConfigError(
            f'device "{device}" was asked for, but there are {count}: '
            f'"{device.type}:0" to "{device.type}:{count - 1}"'
        )


def move_to_device(tensor_or_nested: T, device: "str | torch.device") -> T:
    """Return the same structure with its tensors on `device`.

    Looks into lists, tuples (named ones too) and mappings, which are copied in their own type;
    anything else that is no tensor is returned as it is.

    Raises:
        ConfigError: there is no such device.
    """
    return cast("T", _move(tensor_or_nested, get_device(device)))


def _move(value: Any, device: "torch.device") -> Any:
    import torch

    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, MutableMapping):
        # A shallow copy keeps what a subclass has besides its items (a defaultdict's factory).
        moved = copy.copy(value)
        for key, item in value.items():  # no update(): transformers' outputs refuse it
            moved[key] = _move(item, device)
        return moved
    if isinstance(value, (list, tuple)):
        make = getattr(type(value), "_make", type(value))  # a named tuple's constructor
        return make([_move(item, device) for item in value])
    return value


def get_gpu_memory_info(device: "int | str | torch.device" = 0) -> dict[str, float]:
    """Return the memory of a CUDA device in GiB; an empty dict without CUDA.

    Asking makes this process a user of the device, which itself takes some of its memory.

    Returns:
        `allocated_gb` (this process's tensors), `reserved_gb` (what torch's allocator holds for
        them), `free_gb` and `total_gb` (as the driver reports them, so that other processes'
        use counts).

    Raises:
        ConfigError: there is CUDA, but not this device.
    """
    import torch

    if not torch.cuda.is_available():
        return {}
    found = get_device(f"cuda:{device}" if isinstance(device, int) else device)
    free, total = torch.cuda.mem_get_info(found)
    return {
        "allocated_gb": torch.cuda.memory_allocated(found) / _GIB,
        "reserved_gb": torch.cuda.memory_reserved(found) / _GIB,
        "free_gb": free / _GIB,
        "total_gb": total / _GIB,
    }


def print_gpu_memory_info(device: "int | str | torch.device" = 0) -> None:
    """Print one line about the memory of a CUDA device to standard output.

    Raises:
        ConfigError: there is CUDA, but not this device.
    """
    info = get_gpu_memory_info(device)
    line = (
        f"{info['free_gb']:.2f} of {info['total_gb']:.2f} GiB free; this process: "
        f"{info['allocated_gb']:.2f} GiB allocated, {info['reserved_gb']:.2f} GiB reserved"
        if info
        else "no CUDA device"
    )
    print(f"GPU {device}: {line}")  # noqa: T201  # what the function is called for
