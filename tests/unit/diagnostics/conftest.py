from dataclasses import replace

import pytest

from folovllm.diagnostics.cuda_facts import (
    CudaDevice,
    CudaFacts,
    DeviceNode,
    DriverGpu,
    Library,
    PciGpu,
    Torch,
)

GIB = 1 << 30
H200 = CudaDevice("NVIDIA H200", (9, 0), 140 * GIB)
ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120")
WELL = CudaFacts(
    pci=(PciGpu("0000:00:06.0", "nvidia"),),
    module="580.159.03",
    nodes=tuple(DeviceNode(name) for name in ("nvidia-uvm", "nvidia0", "nvidiactl")),
    smi=(DriverGpu("NVIDIA H200", "9.0", 140 * GIB, "580.159.03"),),
    library=Library((13, 0)),
    torch=Torch("2.11.0+cu130", "13.0", None, ARCHITECTURES, 1, (H200,)),
    runtime=(13, 0),
    nvcc=(13, 0),
    shared_memory=64 * GIB,
)
"""A machine on which nothing is wrong."""

NO_DEVICES = Torch("2.11.0+cu130", "13.0", None)
BARE = CudaFacts(library=Library(missing="no such file"), torch=Torch("2.13.0+cpu"), nvcc=(13, 0))
"""A machine without any GPU."""


@pytest.fixture
def well():
    """The facts of a machine on which nothing is wrong, with some replaced."""
    return lambda **changes: replace(WELL, **changes)


@pytest.fixture
def unseen():
    """The same, but torch finds no device."""
    return lambda **changes: replace(WELL, **{"torch": NO_DEVICES, **changes})


@pytest.fixture
def bare():
    """The facts of a machine without any GPU, with some replaced."""
    return lambda **changes: replace(BARE, **changes)


@pytest.fixture
def device():
    """A device as torch sees it, by default the one of `well`."""
    return lambda **changes: replace(H200, **changes)
