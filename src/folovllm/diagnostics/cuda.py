"""Is CUDA well on this machine? First what the facts say, then what its devices really do."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from folovllm.diagnostics import cuda_driver, cuda_torch
from folovllm.diagnostics.checks import Check, CheckStep, Finding, run_steps
from folovllm.diagnostics.cuda_facts import CudaDevice, CudaFacts

if TYPE_CHECKING:
    import torch

WELL, BROKEN, DEGRADED, NO_DEVICE = range(4)
"""Exit codes."""

VERDICTS = {
    WELL: "CUDA works",
    BROKEN: "CUDA does not work",
    DEGRADED: "CUDA works, and less well than it should",
    NO_DEVICE: "there is no CUDA device here",
}


def exit_code(checks: Iterable[Check]) -> int:
    """The code for all checks together."""
    statuses = {check.status for check in checks}
    if "absent" in statuses:
        return NO_DEVICE
    if "failed" in statuses:
        return BROKEN
    return DEGRADED if "degraded" in statuses else WELL


class CudaVerification:
    """The checks, in the order in which things break.

    Args:
        facts: what was found out about this machine.
    """

    def __init__(self, facts: CudaFacts) -> None:
        """Judge the facts, which takes no time; no device is touched yet."""
        self.facts = facts
        self.judged = list(run_steps(fact_steps(facts)))

    def headline(self) -> str:
        """What it comes to, in one line, as far as facts show it: first why there is no device."""
        bad = [check for check in self.judged if check.status in ("absent", "failed")]
        if not bad:
            names = cuda_driver.counted([device.name for device in self.facts.torch.devices])
            return f"CUDA here: {names}"
        first = min(bad, key=lambda check: check.status != "absent")
        what = "No CUDA device here" if first.status == "absent" else "CUDA cannot be used here"
        return f"{what}: {first.detail}. What to do: {first.advice}."

    def run(self) -> Iterator[Check]:
        """Yield what the facts say, then do what takes a device."""
        yield from self.judged
        yield from _device_checks(self.facts, self.judged)


def fact_steps(facts: CudaFacts) -> list[CheckStep]:
    """The checks that need nothing but facts."""

    def step(name: str, judge: Callable[[CudaFacts], Finding], *needs: str) -> CheckStep:
        return CheckStep(name, lambda: judge(facts), needs)

    return [
        step("GPU", cuda_driver.gpu),
        step("visible", cuda_driver.visible, "GPU"),
        step("driver", cuda_driver.driver, "GPU"),
        step("device files", cuda_driver.device_files, "visible", "driver"),
        step("torch", cuda_torch.torch_build, "visible"),
        step("driver for torch", cuda_torch.driver_for_torch, "driver", "torch"),
        step("devices", cuda_torch.devices, "device files", "driver for torch"),
        step("architecture", cuda_torch.architecture, "devices"),
        step("CUDA versions", cuda_torch.cuda_versions, "devices"),
        step("host", cuda_torch.host, "devices"),
    ]


def _device_checks(facts: CudaFacts, judged: list[Check]) -> Iterator[Check]:
    if not facts.torch.version:
        return  # nothing of it can be imported, as a failed check says
    import torch

    from folovllm.diagnostics.cuda_device import advice_for, is_spoilt

    devices = [torch.device("cuda", i) for i in range(max(1, facts.torch.count))]
    steps = device_steps(devices, facts.torch.devices)
    yield from run_steps(steps, judged, lambda: is_spoilt(devices[0]), advice_for)


def device_steps(devices: "list[torch.device]", known: Sequence[CudaDevice]) -> list[CheckStep]:
    """The checks that take a device; most of them the first.

    Args:
        devices: all that there are.
        known: what torch says of them; nothing when it does not come to that.
    """
    import torch

    from folovllm.attention.choice import BACKENDS
    from folovllm.diagnostics import cuda_device as on
    from folovllm.diagnostics.cuda_speed import Speeds

    first = devices[0]
    half = on.half_type(known[0].capability if known else (8, 0))
    dtypes = list(dict.fromkeys((torch.float32, half, torch.float16)))
    speeds = Speeds(first, half, known[0].name if known else "")

    def step(name: str, check: Callable[[], Finding], *needs: str) -> CheckStep:
        def tidy() -> Finding:
            try:
                return check()
            finally:
                on.release(first)

        return CheckStep(name, tidy, needs)

    attend = partial(on.attention, device=first, dtypes=dtypes)
    products = {f"product {str(dtype).removeprefix('torch.')}": dtype for dtype in dtypes}
    any_product, half_product = list(products)[:2]
    return [
        step("allocation", lambda: on.on_each(devices, on.allocation), "devices", "architecture"),
        *(
            step(name, partial(on.on_each, devices, partial(on.product, dtype=dtype)), "allocation")
            for name, dtype in products.items()
        ),
        *(
            step(
                f"attention {backend.name}",
                partial(attend, backend),
                any_product,
            )
            for backend in BACKENDS
        ),
        step("matrix rate", speeds.rate, half_product),
        step("memory bandwidth", speeds.bandwidth, half_product),
        step("host to device", speeds.to_device, "allocation"),
        step("device to host", speeds.to_host, "allocation"),
        step("CUDA graph", lambda: on.graph(first), any_product),
        step("Triton", lambda: on.triton(first), "allocation"),
        step("NCCL", lambda: on.all_reduce(len(devices)), any_product),
    ]
