"""Do torch, the driver, the device and the host go together? Judged by facts alone."""

import re

from folovllm.diagnostics.checks import Finding
from folovllm.diagnostics.cuda_facts import CudaDevice, CudaFacts, Version, of_version, version_text

GIB = 1 << 30

# https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html: a driver of
# this version or later serves every minor version.
OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}


def torch_build(facts: CudaFacts) -> Finding:
    """Whether torch is there, and can use NVIDIA's GPUs."""
    build = facts.torch
    advice = "in a checkout `nox -s setup -- --torch cuda`; elsewhere install torch anew from "
    advice += "https://pytorch.org/get-started/locally"
    if not build.version:
        return Finding(f"torch cannot be imported: {build.error}", "failed", advice)
    if build.cuda is None:
        kind = "a build for AMD's GPUs" if build.hip else "a CPU build"
        return Finding(f"torch {build.version} is {kind}, beside an NVIDIA GPU", "failed", advice)
    return Finding(f"{build.version}, built for CUDA {build.cuda}")


def driver_for_torch(facts: CudaFacts) -> Finding:
    """Whether the driver is new enough: any of the same major version of CUDA, or newer."""
    serves = facts.library.cuda
    wants = _parsed(facts.torch.cuda)
    if serves is None or wants is None:  # reached in some other way, which torch will show
        return Finding("its version is unknown")
    if serves[0] < wants[0]:
        oldest = OLDEST_DRIVER.get(wants[0])
        update = f"update the driver to {oldest} or later" if oldest else "update the driver"
        return Finding(
            f"the driver{of_version(facts.module)} serves CUDA up to {version_text(serves)}, and "
            f"torch was built for {facts.torch.cuda}",
            "failed",
            f"{update}, or install a torch that is built for CUDA {serves[0]}",
        )
    if serves < wants:
        return Finding(
            f"CUDA {version_text(serves)} serves {facts.torch.cuda} too: the major version counts"
        )
    return Finding(f"CUDA {version_text(serves)} serves {facts.torch.cuda}")


# What `cuInit` answers, and what helped those who reported it.
_INIT_ADVICE = {
    2: "free memory, of the host or of the GPU; `ulimit -v` may be too low",
    3: "restart the machine: the driver did not start",
    34: "take CUDA's folder of stubs out of LD_LIBRARY_PATH: it has a library for linking only",
    46: "another process has the GPU for itself: `nvidia-smi -q -d COMPUTE` shows the mode",
    100: "`nvidia-smi` should list one; if so, restart the container or the machine",
    101: "check CUDA_VISIBLE_DEVICES",
    802: "start NVIDIA's fabric manager, of the driver's version: `sudo systemctl start "
    "nvidia-fabricmanager`; it joins the GPUs of this machine",
    803: "the library of CUDA is of another version than the driver: restart the machine, and take "
    "any folder `compat` out of LD_LIBRARY_PATH",
    804: "take the folder `compat` out of LD_LIBRARY_PATH (forward compatibility is for data "
    "centre GPUs alone), or update the driver",
    999: "restart the machine, or `sudo rmmod nvidia_uvm && sudo modprobe nvidia_uvm`, which often "
    "helps after it slept",
}


def devices(facts: CudaFacts) -> Finding:
    """Whether torch finds devices that it can use."""
    found = facts.torch.devices
    if found:
        return Finding(
            "; ".join(f"{d.name}, {d.memory / GIB:.1f} GiB, {_capability(d)}" for d in found),
            figures={"devices": len(found)},
        )
    code, name = facts.library.error, facts.library.error_name
    detail = f"CUDA does not start: {name} ({code})" if code else "torch finds no device"
    if facts.torch.error:
        detail += f"; torch says: {facts.torch.error}"
    general = "restart the machine; `dmesg | grep -i -e nvrm -e xid` shows what the driver reports"
    return Finding(detail, "failed", _INIT_ADVICE.get(code, general))


def architecture(facts: CudaFacts) -> Finding:
    """Whether torch has kernels for each device, compiled or to be compiled at the start."""
    built = facts.torch.architectures
    for device in facts.torch.devices:
        if not built or _compiled_for(device, built):
            continue
        mine = f"sm_{device.capability[0]}{device.capability[1]}"
        if _translates(device, built):
            return Finding(
                f"torch has no kernels for {mine} ({device.name}): the driver compiles them when "
                "they are first used, and not for this device's own instructions",
                "degraded",
                f"install a torch whose `torch.cuda.get_arch_list()` has {mine}",
            )
        too_old = device.capability < min(_numbers(name) for name in built)
        advice = "those for CUDA 12.6 kept old GPUs the longest" if too_old else "take the newest"
        return Finding(
            f"torch has no kernels for {device.name} ({mine}), but for {' '.join(built)}",
            "failed",
            f"install another build of torch: {advice}",
        )
    return Finding(f"among {' '.join(built)}" if built else "not said")


def _numbers(name: str) -> tuple[int, int]:
    """sm_90a is (9, 0), compute_120 is (12, 0)."""
    digits = re.sub(r"\D", "", name)
    return int(digits[:-1] or 0), int(digits[-1:] or 0)


def _compiled_for(device: CudaDevice, built: tuple[str, ...]) -> bool:
    """Machine code runs on its own major version, from its minor version on.

    With an `a` it runs on that one device alone.
    """
    major, minor = device.capability
    for name in built:
        if name.startswith("sm_"):
            code = _numbers(name)
            only = name.endswith("a")
            if code == (major, minor) or (code[0] == major and code[1] <= minor and not only):
                return True
    return False


def _translates(device: CudaDevice, built: tuple[str, ...]) -> bool:
    """PTX can be compiled for every later device."""
    forward = [name for name in built if name.startswith("compute_") and name[-1].isdigit()]
    return any(_numbers(name) <= device.capability for name in forward)


def cuda_versions(facts: CudaFacts) -> Finding:
    """Whether driver, torch, loaded runtime and compiler go together."""
    wants = _parsed(facts.torch.cuda)
    parts = {
        "driver": facts.library.cuda,
        "torch": wants,
        "loaded runtime": facts.runtime,
        "nvcc": facts.nvcc,
    }
    detail = ", ".join(
        f"{name} {version_text(version)}" for name, version in parts.items() if version
    )
    # A newer one of the same major version serves too.
    if wants and facts.runtime and not (wants <= facts.runtime < (wants[0] + 1,)):
        return Finding(
            f"{detail}: torch runs with a CUDA runtime that it was not built for",
            "degraded",
            "take other CUDA libraries out of LD_LIBRARY_PATH",
        )
    if wants and facts.nvcc and facts.nvcc[0] != wants[0]:
        return Finding(
            f"{detail}: extensions such as flash-attn cannot be compiled by this nvcc",
            "degraded",
            f"install the CUDA toolkit {wants[0]} and put its bin folder first in PATH",
        )
    missing = "" if facts.nvcc else "; no nvcc, which only compiling extensions needs"
    return Finding(detail + missing)


def host(facts: CudaFacts) -> Finding:
    """Whether the host's limits leave the devices what they need."""
    largest = max((device.memory for device in facts.torch.devices), default=0)
    shared, limit, space = facts.shared_memory, facts.memory_limit, facts.address_space
    parts = {"memory limit": limit, "shared memory": shared, "address space": space}
    detail = ", ".join(f"{name} {_size(size)}" for name, size in parts.items() if size)
    detail = detail or "no limits"
    if space is not None and space < largest + 16 * GIB:
        return Finding(
            f"{detail}: CUDA reserves addresses for all memory of the device and of the host",
            "degraded",
            "`ulimit -v unlimited`",
        )
    if shared is not None and shared < GIB and len(facts.torch.devices) > 1:
        return Finding(
            f"{detail}: too little shared memory (/dev/shm) for several GPUs to talk through",
            "degraded",
            "start the container with `--shm-size=8g` or `--ipc=host`",
        )
    if limit is not None and limit < largest / 2:
        return Finding(
            f"{detail}: less than half of the device's {_size(largest)}, and a model passes "
            "through the host's memory",
            "degraded",
            "allow this container or job more memory",
        )
    return Finding(detail)


def _capability(device: CudaDevice) -> str:
    return f"compute capability {device.capability[0]}.{device.capability[1]}"


def _parsed(version: str | None) -> Version | None:
    return tuple(int(part) for part in re.findall(r"\d+", version)) if version else None


def _size(size: int) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / (1 << 20):.0f} MiB"
