"""Where the facts about CUDA stand: one reader a place, none of which judges what it finds.

Nothing here takes memory of a device.
"""

import ctypes
import errno
import os
import platform
import re
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path

from folovllm.diagnostics.checks import one_line
from folovllm.diagnostics.cuda_facts import (
    CudaDevice,
    CudaFacts,
    DeviceNode,
    DriverGpu,
    Library,
    PciGpu,
    Torch,
    Version,
)
from folovllm.machine.facts import gpus, in_container, output_of, read_text
from folovllm.machine.memory import memory_limit

NVIDIA = "0x10de"
VARIABLES = ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES")


def gather_facts(root: Path = Path("/")) -> CudaFacts:
    """Look everywhere; takes a second or two.

    Args:
        root: where `/proc`, `/sys` and `/dev` are found.
    """
    listed = gpus()
    kernel = read_text(root / "proc/version").lower()
    library = driver_library()  # before torch, which would report its error less clearly
    return CudaFacts(
        system=platform.system(),
        container=in_container(root),
        wsl="microsoft" in kernel,
        pci=tuple(pci_gpus(root)),
        module=kernel_module(root),
        nodes=device_nodes(root),
        smi=tuple(DriverGpu(**gpu) for gpu in listed),
        smi_error="" if listed else _complaint("nvidia-smi", "-L"),
        mig=_mig(output_of("nvidia-smi", "--query-gpu=mig.mode.current", "--format=csv,noheader")),
        library=library,
        torch=ask_torch(),
        runtime=loaded_runtime(),  # after torch, which loads it
        nvcc=version_of(r"release ([\d.]+)", output_of("nvcc", "--version")),
        variables=tuple((name, os.environ[name]) for name in VARIABLES if name in os.environ),
        shared_memory=_size_of(root / "dev/shm"),
        memory_limit=memory_limit(root),
        address_space=_address_space(),
    )


def pci_gpus(root: Path) -> Iterator[PciGpu]:
    """NVIDIA's display controllers (class 03), as Linux lists the bus."""
    for folder in sorted((root / "sys/bus/pci/devices").glob("*")):
        vendor, kind = read_text(folder / "vendor").strip(), read_text(folder / "class").strip()
        if vendor == NVIDIA and kind.startswith("0x03"):
            driver = folder / "driver"
            yield PciGpu(folder.name, driver.resolve().name if driver.exists() else None)


def kernel_module(root: Path) -> str | None:
    """The version of the driver's loaded kernel module; both kinds, open and closed, name it so."""
    text = read_text(root / "proc/driver/nvidia/version")
    found = re.search(r"Kernel Module.*?\s(\d+\.\d+(?:\.\d+)?)\s", text)
    return found and found[1]


def device_nodes(root: Path) -> tuple[DeviceNode, ...]:
    """The device files, and whether this process may use them."""
    paths = sorted((root / "dev").glob("nvidia*"))
    # The folder nvidia-caps has a file for each MIG instance.
    return tuple(DeviceNode(path.name, _open_error(path)) for path in paths if not path.is_dir())


def _open_error(path: Path) -> str:
    """Really opened: a container's device rules forbid what the file's mode allows."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error.errno))
    return ""


def driver_library() -> Library:
    """Load the driver's library and initialise it, which takes nothing of a device yet."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return Library(missing=one_line(str(error)))
    version = ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(version))
    code = int(cuda.cuInit(0))
    name = ctypes.c_char_p()
    cuda.cuGetErrorName(code, ctypes.byref(name))
    return Library(_cuda_version(version.value), code, (name.value or b"").decode() if code else "")


def loaded_runtime() -> Version | None:
    """The version of the `libcudart` in this process; None when there is none, or not on Linux."""
    found = re.search(r"\s(/\S*libcudart\S*\.so\S*)", read_text(Path("/proc/self/maps")))
    if found is None:
        return None
    version = ctypes.c_int()
    try:
        ctypes.CDLL(found[1]).cudaRuntimeGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return None
    return _cuda_version(version.value)


def ask_torch() -> Torch:
    """Import torch and let it look for devices."""
    try:
        import torch
    except (ImportError, OSError) as error:  # not there, or a library of it is not
        return Torch(error=one_line(f"{type(error).__name__}: {error}"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        devices, error_text = _devices(count)
    complaints = [error_text, *(str(warning.message) for warning in caught)]
    return Torch(
        str(torch.__version__),
        torch.version.cuda,
        torch.version.hip,
        tuple(torch.cuda.get_arch_list()) if count else (),
        count,
        devices,
        next((one_line(complaint) for complaint in complaints if complaint), ""),
    )


def _devices(count: int) -> tuple[tuple[CudaDevice, ...], str]:
    import torch

    try:
        found = [torch.cuda.get_device_properties(i) for i in range(count)]
    except (RuntimeError, AssertionError) as error:  # a device that is there and can't be used
        return (), str(error)
    return tuple(CudaDevice(d.name, (d.major, d.minor), d.total_memory) for d in found), ""


def version_of(pattern: str, text: str | None) -> Version | None:
    """The numbers of the version that a pattern finds in a text."""
    found = re.search(pattern, text or "")
    return tuple(int(part) for part in found[1].strip(".").split(".")) if found else None


def _cuda_version(number: int) -> Version:
    """13020 is 13.2."""
    return number // 1000, number % 1000 // 10


def _complaint(*command: str) -> str:
    """What a program that fails writes, of both its outputs; nothing when it is not there."""
    program = shutil.which(command[0])
    if program is None:
        return ""
    try:
        done = subprocess.run(
            [program, *command[1:]], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.SubprocessError) as error:
        return one_line(str(error))
    return one_line(done.stdout + done.stderr) if done.returncode else ""


def _mig(modes: str | None) -> tuple[int, int]:
    """How many GPUs are in MIG mode, and how many instances there are."""
    enabled = (modes or "").count("Enabled")
    instances = output_of("nvidia-smi", "-L") if enabled else None
    return enabled, (instances or "").count("UUID: MIG-")


def _size_of(path: Path) -> int | None:
    try:
        return shutil.disk_usage(path).total
    except OSError:
        return None


def _address_space() -> int | None:
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if soft == resource.RLIM_INFINITY else soft
