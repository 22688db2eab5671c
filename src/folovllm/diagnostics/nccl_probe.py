"""Sum a tensor over all devices: a program of its own, since NCCL waits forever when it fails.

`python -m folovllm.diagnostics.nccl_probe` prints the bytes that a device sends in a second.
"""

import sys
import time
from collections.abc import Callable, Sequence

import torch
from torch.cuda import nccl

from folovllm.diagnostics.cuda_device import wait_for

NUMBERS = 16 << 20
REPEATS = 10


def measure(
    devices: Sequence[torch.device], all_reduce: Callable[[list[torch.Tensor]], None]
) -> float:
    """Sum, check the sums, and measure; bytes that a device sends in a second.

    Args:
        devices: to sum over.
        all_reduce: puts the sum of tensors, one a device, in the place of each.

    Raises:
        ValueError: a sum is wrong.
    """
    tensors = [torch.full((NUMBERS,), i + 1.0, device=device) for i, device in enumerate(devices)]
    all_reduce(tensors)
    total = len(devices) * (len(devices) + 1) / 2
    for device, tensor in zip(devices, tensors, strict=True):
        if not bool((tensor == total).all()):
            raise ValueError(f"{device} has a wrong sum")
    start = time.perf_counter()
    for _ in range(REPEATS):
        all_reduce(tensors)
    for device in devices:
        wait_for(device)
    each = (time.perf_counter() - start) / REPEATS
    share = 2 * (len(devices) - 1) / len(devices)  # what a ring sends of the tensor
    return share * NUMBERS * 4 / each


def main() -> None:
    """Measure all devices."""
    devices = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    sys.stdout.write(f"{measure(devices, nccl.all_reduce)}\n")


if __name__ == "__main__":
    main()
