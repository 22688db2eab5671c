"""What a device can do at most, measured: what the speed of anything else is a share of."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from folovllm.linear.choice import choose
from folovllm.linear.protocol import LinearNeeds, part_of
from folovllm.machine.memory import use_huge_pages


@dataclass(frozen=True, slots=True)
class DeviceLimits:
    """What was measured.

    Attributes:
        bandwidth: bytes that are read from the device's memory in a second.
        rate: floating-point operations of a matrix product in a second.
    """

    bandwidth: float
    rate: float


@torch.inference_mode()
def measure_limits(device: torch.device, dtype: torch.dtype) -> DeviceLimits:
    """Read a large tensor, and multiply as a long prompt does.

    Args:
        device: where; on a CPU with as many threads as torch has.
        dtype: of the product.
    """
    use_huge_pages()  # as the engine's weights have
    numbers = torch.ones(1 << 28, dtype=torch.float32, device=device)
    reading = _best(5, numbers.sum, device)
    rows, size = (1024, 2048) if device.type == "cpu" else (8192, 8192)
    linear = torch.nn.Linear(size, size, bias=False, dtype=dtype, device=device)
    backend, _ = choose("linear", linear, LinearNeeds(device, dtype), None)
    packed = backend.load(*part_of(linear))
    activations = torch.randn(rows, size, dtype=dtype, device=device)
    multiplying = _best(10, lambda: packed(activations), device)
    return DeviceLimits(numbers.numel() * 4 / reading, 2 * rows * size * size / multiplying)


def _best(count: int, work: Callable[[], object], device: torch.device) -> float:
    """The shortest of some runs after one that is not counted, in seconds."""
    times = []
    for _ in range(count + 1):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])
