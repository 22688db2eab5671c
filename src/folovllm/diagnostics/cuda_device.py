"""Does a device compute, and does it compute rightly? No check leaves anything behind.

Whatever touches the device takes it as an argument, so that a CPU can stand in for it.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec

import torch

from folovllm.attention.backend import AttentionBackend
from folovllm.diagnostics.attention_check import (
    TOLERANCES,
    attention_error,
    largest,
    served_options,
)
from folovllm.diagnostics.checks import CheckError, Finding, one_line
from folovllm.machine.memory import available_memory

GIB = 1 << 30
NCCL_SECONDS = 120


def half_type(capability: tuple[int, int]) -> torch.dtype:
    """The 16-bit type to compute in: bfloat16 where a device has it in hardware."""
    return torch.float16 if capability < (8, 0) else torch.bfloat16


def on_each(devices: Sequence[torch.device], check: Callable[[torch.device], Finding]) -> Finding:
    """One check on every device: the worst status, each device's detail, the first's figures."""
    found: list[Finding] = []
    for device in devices:
        try:
            found.append(check(device))
        except CheckError as error:
            raise CheckError(f"{device}: {error}", error.advice) from error
    if len(found) == 1:
        return found[0]
    worst = next((one for one in found if one.status == "degraded"), found[0])
    details = [f"{device}: {one.detail}" for device, one in zip(devices, found, strict=True)]
    return replace(worst, detail="; ".join(details), figures=found[0].figures)


def allocation(device: torch.device) -> Finding:
    """Fill memory and read it back: 1 GiB, or half of what is free."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
    else:
        free = total = available_memory()
    size = min(GIB, free // 2) // 8
    numbers = torch.full((size,), 7, dtype=torch.int64, device=device)
    if int(numbers.sum()) != 7 * size:
        raise CheckError(
            "memory does not give back what was written to it",
            "the device is damaged: `nvidia-smi -q -d ECC,ROW_REMAPPER` tells more",
        )
    detail = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free"
    figures = {"free_bytes": float(free), "total_bytes": float(total)}
    if free < total / 2:
        advice = "`nvidia-smi` lists the processes that use the rest"
        return Finding(detail, "degraded", advice, figures)
    return Finding(detail, figures=figures)


@torch.inference_mode()
def product(device: torch.device, dtype: torch.dtype) -> Finding:
    """A matrix product beside the same in float64 on the CPU.

    Of k products that are summed in float32, rounding costs about its epsilon times the root of k
    times the root of their squares' sum, whatever the order; then the sum is rounded to the type,
    perhaps in parts. The error is given as a share of some times that.
    """
    size = 256
    random = torch.Generator().manual_seed(0)
    a, b = (torch.randn(size, size, generator=random).to(dtype) for _ in range(2))
    computed = (a.to(device) @ b.to(device)).cpu().double()
    a, b = a.double(), b.double()
    exact, spread = a @ b, (a.square() @ b.square()).sqrt()
    epsilon = torch.finfo(dtype).eps
    if dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest":
        epsilon = 2**-10  # TensorFloat-32, as the user allows
    summing = 4 * torch.finfo(torch.float32).eps * size**0.5 * spread
    allowed = summing + 2 * epsilon * (exact.abs() + spread)
    share = float(((computed - exact).abs() / allowed).max())
    name = _name(dtype)
    if not share <= 1:  # NaN too
        raise CheckError(
            f"a product in {name} is wrong: {share:.3g} times the error that rounding allows",
            "kernels compute wrongly here: update driver and torch; if that does not help, the "
            "device is damaged",
        )
    return Finding(f"{name} agrees with float64", figures={f"{name}_error_of_allowed": share})


def attention(
    backend: AttentionBackend, device: torch.device, dtypes: Sequence[torch.dtype]
) -> Finding:
    """A backend beside a reference in float64, in each type and way of attending that it serves."""
    done: list[str] = []
    figures: dict[str, float] = {}
    refusals: list[str] = []
    for dtype in dtypes:
        served, refusal = served_options(backend, device, dtype)
        if refusal:
            refusals.append(refusal)
            continue
        error = largest(attention_error(backend, options, device, dtype) for options in served)
        if not error <= TOLERANCES[dtype]:  # NaN too
            raise CheckError(
                f"attention by {backend.name} in {_name(dtype)} is wrong by {error:.2g}",
                "choose another with FOLOVLLM_ATTENTION_BACKEND, and report this",
            )
        done.append(_name(dtype))
        figures[f"{_name(dtype)}_error"] = error
    if not done:
        return Finding(f"{backend.name} {refusals[-1]}", "skipped")
    return Finding(f"{', '.join(done)} agree with float64", figures=figures)


@torch.inference_mode()
def graph(device: torch.device) -> Finding:
    """Capture a product as a CUDA graph, and replay it on other numbers."""
    with torch.cuda.device(device):
        numbers = torch.ones(256, 256, device=device)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # what is made at the first use can't be captured
            result = numbers @ numbers
        torch.cuda.current_stream().wait_stream(side)
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            result = numbers @ numbers
        numbers.fill_(2)
        captured.replay()
        right = bool((result == 4 * 256).all())
        start = time.perf_counter()
        for _ in range(100):
            captured.replay()
        torch.cuda.synchronize()
        each = (time.perf_counter() - start) / 100
    if not right:
        raise CheckError("a replayed CUDA graph computes something else", GRAPH_ADVICE)
    return Finding(f"replayed in {each * 1e6:.1f} us", figures={"replay_seconds": each})


GRAPH_ADVICE = "run FoloVLLM with FOLOVLLM_ENFORCE_EAGER=true, and update the driver"


def triton(device: torch.device) -> Finding:
    """Compile a kernel with Triton and compare what it computes."""
    if find_spec("triton") is None:
        advice = "install the triton that your torch wants: `pip install triton`"
        return Finding("Triton is not installed", "degraded", advice)
    from folovllm.diagnostics.triton_probe import scale_and_add

    x = torch.arange(1000.0, device=device)
    start = time.perf_counter()
    computed = scale_and_add(x, torch.ones_like(x), 3.0)
    wait_for(device)
    seconds = time.perf_counter() - start
    if not torch.equal(computed.cpu(), torch.arange(1000.0) * 3 + 1):
        raise CheckError("a kernel of Triton computes wrongly", "update triton with torch")
    return Finding(f"a kernel compiled and ran in {seconds:.2f} s")


def all_reduce(count: int) -> Finding:
    """Sum over all devices by NCCL, in a process that can be stopped."""
    if count < 2:
        return Finding("needs more than one device", "skipped")
    command = [sys.executable, "-m", "folovllm.diagnostics.nccl_probe"]
    advice = "try NCCL_P2P_DISABLE=1; if that helps, the machine's IOMMU or ACS is in the way of "
    advice += "GPUs that talk to one another; NCCL_DEBUG=INFO tells more"
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=NCCL_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise CheckError(f"NCCL hung for {NCCL_SECONDS} s", advice) from None
    if done.returncode:
        raise CheckError(f"NCCL failed: {one_line(done.stderr[-400:])}", advice)
    speed = float(done.stdout.split()[-1]) / 1e9
    return Finding(f"{count} devices, {speed:.4g} GB/s each", figures={"GB_per_s": speed})


def advice_for(error: Exception) -> str:
    """What to do about an error of torch, CUDA or Triton; "" where nothing is known."""
    text = str(error)
    return next((advice for part, advice in _ADVICE.items() if part in text), "")


_ADVICE = {
    "out of memory": "other processes have the device's memory: `nvidia-smi` lists them; end them, "
    "or choose another device with CUDA_VISIBLE_DEVICES",
    "no kernel image": "install a build of torch for this device's architecture",
    "busy or unavailable": "another process has the device for itself: `nvidia-smi -q -d COMPUTE`",
    "ECC": "the device's memory is damaged: reset or replace it",
    "C compiler": "install gcc (Debian, Ubuntu: `apt install gcc`), or name a compiler in CC",
    "Python.h": "install Python's headers (Debian, Ubuntu: `apt install python3-dev`)",
    "gcc": "Triton compiles with gcc and Python's headers: `apt install gcc python3-dev`",
    "Permission denied": "set TRITON_CACHE_DIR to a folder that can be written to",
    "No space left": "free some disk, or set TRITON_CACHE_DIR to a folder with space",
    "CUBLAS": "update the driver; take other CUDA libraries out of LD_LIBRARY_PATH",
    "captur": GRAPH_ADVICE,
    "CUDA error": "`dmesg | grep -i xid` shows what the device reported; restart the machine if it "
    "happens again",
}


def release(device: torch.device) -> None:
    """Give back what torch kept of the device's memory for later."""
    if device.type == "cuda":
        with suppress(RuntimeError):  # an error before this one spoilt the device, and says more
            # One a stream that multiplied, 32 MiB each on Hopper; torch has no public name for it.
            torch._C._cuda_clearCublasWorkspaces()  # noqa: SLF001
            torch.cuda.empty_cache()


def is_spoilt(device: torch.device) -> bool:
    """Whether an error left the device unusable to this process."""
    try:
        wait_for(device)
    except RuntimeError:
        return True
    return False


def wait_for(device: torch.device) -> None:
    """Let the device finish what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
