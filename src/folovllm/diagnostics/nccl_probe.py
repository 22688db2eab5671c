"""Sum a tensor over all devices: a program of its own, since NCCL waits forever when it fails.

`python -m folovllm.diagnostics.nccl_probe` prints the bytes that a device sends in a second.
"""

import sys
import time

import torch
from torch.cuda import nccl

NUMBERS = 16 << 20
REPEATS = 10


def main() -> None:
    """Sum, check the sums, and measure.

    Raises:
        SystemExit: a sum is wrong.
    """
    devices = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    tensors = [torch.full((NUMBERS,), i + 1.0, device=device) for i, device in enumerate(devices)]
    nccl.all_reduce(tensors)
    total = len(devices) * (len(devices) + 1) / 2
    for device, tensor in zip(devices, tensors, strict=True):
        if not bool((tensor == total).all()):
            sys.exit(f"{device} has a wrong sum")
    start = time.perf_counter()
    for _ in range(REPEATS):
        nccl.all_reduce(tensors)
    for device in devices:
        torch.cuda.synchronize(device)
    each = (time.perf_counter() - start) / REPEATS
    share = 2 * (len(devices) - 1) / len(devices)  # what a ring sends of the tensor
    sys.stdout.write(f"{share * NUMBERS * 4 / each}\n")


if __name__ == "__main__":
    main()
