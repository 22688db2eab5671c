"""How fast is a device, and how fast should it be?"""

import time
from functools import cached_property

import torch

from folovllm.diagnostics.checks import Finding
from folovllm.diagnostics.cuda_device import wait_for
from folovllm.diagnostics.datasheets import datasheet_of
from folovllm.diagnostics.limits import DeviceLimits, measure_limits

COPIED = 256 << 20
ENOUGH_SHARE = 0.4
"""Of what the datasheet promises. Products of a healthy device reach 0.5 to 0.9 of it, by its
power limit; copies 0.4 in a slot with half of the lanes."""


class Speeds:
    """What a device reaches of what its datasheet promises.

    Args:
        device: to measure.
        dtype: to multiply in.
        name: torch's for the device.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, name: str) -> None:
        """Nothing is measured yet."""
        self.device = device
        self.dtype = dtype
        self.datasheet = datasheet_of(name)

    @cached_property
    def limits(self) -> DeviceLimits:
        """Its memory's bandwidth and the rate of its products."""
        return measure_limits(self.device, self.dtype)

    def bandwidth(self) -> Finding:
        """How fast it reads its memory."""
        return self._share("GB/s", self.limits.bandwidth / 1e9, "bandwidth", SLOW_DEVICE)

    def rate(self) -> Finding:
        """How fast it multiplies matrices."""
        return self._share("TFLOP/s", self.limits.rate / 1e12, "rate", SLOW_DEVICE)

    def to_device(self) -> Finding:
        """How fast it copies from pinned memory of the host."""
        speed = copy_bandwidth(self.device, to_device=True) / 1e9
        return self._share("GB/s", speed, "link", SLOW_LINK)

    def to_host(self) -> Finding:
        """How fast it copies to pinned memory of the host."""
        speed = copy_bandwidth(self.device, to_device=False) / 1e9
        return self._share("GB/s", speed, "link", SLOW_LINK)

    def _share(self, unit: str, speed: float, promise: str, advice: str) -> Finding:
        detail = f"{speed:.4g} {unit}"
        figures = {unit.replace("/", "_per_"): speed}
        if self.datasheet is None:
            return Finding(f"{detail} (its datasheet is not known here)", figures=figures)
        promised: float = getattr(self.datasheet, promise)
        share = figures["share_of_datasheet"] = speed / promised
        detail += f", {share:.0%} of the datasheet's {promised:g}"
        if share < ENOUGH_SHARE:
            return Finding(detail, "degraded", advice, figures)
        return Finding(detail, figures=figures)


SLOW_DEVICE = (
    "look with `nvidia-smi` whether others use the device; `nvidia-smi -q -d PERFORMANCE` says "
    "what slows its clocks down (heat, power)"
)
SLOW_LINK = (
    "`nvidia-smi -q` shows the link's generation and width under load: the slot may have fewer "
    "lanes, and virtual machines may copy more slowly"
)


def copy_bandwidth(device: torch.device, *, to_device: bool) -> float:
    """Bytes a second between the device and the host's memory, pinned where that is possible."""
    here = torch.zeros(COPIED, dtype=torch.uint8, pin_memory=device.type == "cuda")
    there = torch.zeros(COPIED, dtype=torch.uint8, device=device)
    source, target = (here, there) if to_device else (there, here)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        target.copy_(source, non_blocking=True)
        wait_for(device)
        times.append(time.perf_counter() - start)
    return COPIED / min(times)
