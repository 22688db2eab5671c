"""What there is to know of CUDA on this machine, as it was found and not judged.

`folovllm.diagnostics.cuda_readers` finds it; `cuda_driver` and `cuda_torch` judge.
"""

from dataclasses import dataclass

Version = tuple[int, ...]


@dataclass(frozen=True)
class PciGpu:
    """An NVIDIA graphics device on the PCI bus.

    Attributes:
        address: on the bus.
        module: the kernel module that drives it (nvidia, nouveau, vfio-pci); None: none.
    """

    address: str
    module: str | None


@dataclass(frozen=True)
class DriverGpu:
    """A GPU as `nvidia-smi` lists it."""

    name: str
    capability: str
    memory: int | None
    driver: str


@dataclass(frozen=True)
class DeviceNode:
    """A device file by which a program reaches the driver.

    Attributes:
        name: below `/dev`.
        error: why it cannot be opened, as `errno` names it (EACCES, EPERM, EIO); "": it can.
    """

    name: str
    error: str = ""


@dataclass(frozen=True)
class Library:
    """The driver's library, `libcuda.so.1`, and what it answered.

    Attributes:
        cuda: the newest CUDA that it serves; None where the library was not found.
        error: the number that `cuInit` returned; 0 is success.
        error_name: as the driver calls that.
        missing: why the library could not be loaded.
    """

    cuda: Version | None = None
    error: int = 0
    error_name: str = ""
    missing: str = ""


@dataclass(frozen=True)
class CudaDevice:
    """A device as torch sees it; memory in bytes, the capability as (major, minor)."""

    name: str
    capability: tuple[int, int]
    memory: int


@dataclass(frozen=True)
class Torch:
    """What torch says of itself.

    Attributes:
        version: its own; "" when it cannot be imported.
        cuda: that it was built for; None for a CPU build.
        hip: ROCm's version in a build for AMD's GPUs.
        architectures: those that its kernels were compiled for.
        count: devices that it finds.
        devices: what they are.
        error: what went wrong in importing it or asking for devices.
    """

    version: str = ""
    cuda: str | None = None
    hip: str | None = None
    architectures: tuple[str, ...] = ()
    count: int = 0
    devices: tuple[CudaDevice, ...] = ()
    error: str = ""


@dataclass(frozen=True)
class CudaFacts:
    """All of it; sizes in bytes, None where there is no such thing or no limit.

    Attributes:
        system: Linux, Darwin, Windows.
        container: whether this process is in one.
        wsl: whether Linux runs inside Windows, which has the driver.
        pci: NVIDIA's GPUs on the bus.
        module: the version of the loaded kernel module.
        nodes: the device files.
        smi: the GPUs that `nvidia-smi` lists.
        smi_error: what it complained of.
        mig: GPUs in MIG mode, and the instances that they are divided into.
        library: the driver's.
        torch: what it says.
        runtime: the version of the CUDA runtime that this process has loaded.
        nvcc: the version of the compiler.
        variables: those of the environment that matter.
        shared_memory: the size of `/dev/shm`.
        memory_limit: of the control group.
        address_space: how much of it a process may have (`ulimit -v`).
    """

    system: str = "Linux"
    container: bool = False
    wsl: bool = False
    pci: tuple[PciGpu, ...] = ()
    module: str | None = None
    nodes: tuple[DeviceNode, ...] = ()
    smi: tuple[DriverGpu, ...] = ()
    smi_error: str = ""
    mig: tuple[int, int] = (0, 0)
    library: Library = Library()
    torch: Torch = Torch()
    runtime: Version | None = None
    nvcc: Version | None = None
    variables: tuple[tuple[str, str], ...] = ()
    shared_memory: int | None = None
    memory_limit: int | None = None
    address_space: int | None = None

    def variable(self, name: str) -> str | None:
        """The value of a variable of the environment."""
        return dict(self.variables).get(name)


def version_text(version: Version | None) -> str:
    """(13, 2) as 13.2."""
    return ".".join(map(str, version or ()))


def of_version(version: str | None) -> str:
    """A version in brackets, to follow a name; nothing where it is not known."""
    return f" ({version})" if version else ""
