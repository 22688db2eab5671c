import errno
import os
import sys
from types import SimpleNamespace

import pytest
import torch

from folovllm.diagnostics import cuda_readers
from folovllm.diagnostics.cuda_facts import CudaDevice, DeviceNode, Library, PciGpu, version_text
from folovllm.diagnostics.cuda_readers import (
    ask_torch,
    device_nodes,
    driver_library,
    gather_facts,
    kernel_module,
    loaded_runtime,
    pci_gpus,
    version_of,
)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.90.07  Fri May 31 09:35:42 UTC\n",
            "550.90.07",
        ),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build\n",
            "580.95.05",
        ),
        (None, None),
    ],
)
def test_kernel_module(text, version, tree):
    root = tree(**({"proc/driver/nvidia/version": text} if text else {}))
    assert kernel_module(root) == version


def test_pci_gpus(tree, tmp_path):
    pci = "sys/bus/pci/devices"
    root = tree(
        **{
            f"{pci}/0000:00:02.0/vendor": "0x8086\n",  # another maker's graphics
            f"{pci}/0000:00:02.0/class": "0x030000\n",
            f"{pci}/0000:01:00.0/vendor": "0x10de\n",
            f"{pci}/0000:01:00.0/class": "0x030000\n",
            f"{pci}/0000:01:00.1/vendor": "0x10de\n",  # the card's sound
            f"{pci}/0000:01:00.1/class": "0x040300\n",
            f"{pci}/0000:81:00.0/vendor": "0x10de\n",
            f"{pci}/0000:81:00.0/class": "0x030200\n",
            "sys/bus/pci/drivers/nouveau/bind": "",
        }
    )
    (root / pci / "0000:01:00.0/driver").symlink_to(root / "sys/bus/pci/drivers/nouveau")
    assert list(pci_gpus(root)) == [
        PciGpu("0000:01:00.0", "nouveau"),
        PciGpu("0000:81:00.0", None),
    ]


def test_device_nodes(tree, monkeypatch):
    root = tree(
        **{f"dev/{name}": "" for name in ("nvidia0", "nvidiactl", "nvidia-caps/nvidia-cap1")}
    )
    opened = os.open

    def refuse(path, flags):
        if str(path).endswith("nvidiactl"):
            raise PermissionError(errno.EPERM, "Operation not permitted")
        return opened(path, flags)

    monkeypatch.setattr(os, "open", refuse)
    assert device_nodes(root) == (DeviceNode("nvidia0"), DeviceNode("nvidiactl", "EPERM"))


def played_library(version, code):
    """`libcuda` with a version and what `cuInit` returns."""

    def give(value):
        def function(*arguments):
            arguments[-1]._obj.value = value
            return 0

        return function

    return SimpleNamespace(
        cuDriverGetVersion=give(version),
        cuInit=lambda flags: code,
        cuGetErrorName=give(f"CUDA_ERROR_{code}".encode()),
    )


def test_the_drivers_library(monkeypatch):
    monkeypatch.setattr(cuda_readers.ctypes, "CDLL", lambda name: played_library(12080, 0))
    assert driver_library() == Library((12, 8))
    monkeypatch.setattr(cuda_readers.ctypes, "CDLL", lambda name: played_library(13000, 802))
    assert driver_library() == Library((13, 0), 802, "CUDA_ERROR_802")


def test_no_driver_library(monkeypatch):
    def missing(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(cuda_readers.ctypes, "CDLL", missing)
    assert driver_library() == Library(missing="libcuda.so.1: cannot open shared object file")


def test_the_loaded_runtime(monkeypatch):
    maps = "7f00-7f01 r--p 00000000 08:01 1 /opt/lib/libcudart.so.13.0.48\n"
    monkeypatch.setattr(cuda_readers, "read_text", lambda path: maps)

    def library(path):
        assert path == "/opt/lib/libcudart.so.13.0.48"
        return SimpleNamespace(
            cudaRuntimeGetVersion=lambda pointer: setattr(pointer._obj, "value", 13000)
        )

    monkeypatch.setattr(cuda_readers.ctypes, "CDLL", library)
    assert loaded_runtime() == (13, 0)
    monkeypatch.setattr(cuda_readers, "read_text", lambda path: "7f00 /usr/lib/libc.so.6\n")
    assert loaded_runtime() is None


NVCC = """\
nvcc: NVIDIA (R) Cuda compiler driver
Cuda compilation tools, release 12.4, V12.4.131
Build cuda_12.4.r12.4/compiler.34097967_0
"""


def test_versions():
    assert version_of(r"release ([\d.]+)", NVCC) == (12, 4)
    assert version_of(r"release ([\d.]+)", "nvcc fatal") is None
    assert version_of(r"release ([\d.]+)", None) is None
    assert version_text((13, 2)) == "13.2"


class TestTorch:
    @pytest.fixture
    def play(self, monkeypatch):
        """Let torch find devices, or complain."""

        def set_up(count, properties=None, warning=None):
            def available():
                if warning:
                    import warnings

                    warnings.warn(warning, stacklevel=1)
                return count > 0

            monkeypatch.setattr(torch.cuda, "is_available", available)
            monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
            monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
            monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_90"])

        return set_up

    def test_devices(self, play):
        properties = SimpleNamespace(name="NVIDIA H200", major=9, minor=0, total_memory=1 << 37)
        play(2, lambda index: properties)
        found = ask_torch()
        assert found.version == torch.__version__
        assert found.devices == (CudaDevice("NVIDIA H200", (9, 0), 1 << 37),) * 2
        assert (found.count, found.architectures, found.error) == (2, ("sm_90",), "")

    def test_a_warning(self, play):
        play(0, warning="CUDA initialization: The NVIDIA driver on your system is too old")
        assert "too old" in ask_torch().error

    def test_a_device_that_cannot_be_asked(self, play):
        def fails(index):
            raise RuntimeError("CUDA error: system not yet initialized\nCUDA kernel errors")

        play(1, fails)
        found = ask_torch()
        assert found.devices == ()
        assert found.error == "CUDA error: system not yet initialized CUDA kernel errors"

    def test_no_torch(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "torch", None)
        found = ask_torch()
        assert found.version == ""
        assert "torch" in found.error


def test_all_of_a_tree(tree, program, monkeypatch):
    monkeypatch.setattr("platform.system", lambda: "Linux")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    program("nvcc", NVCC)
    program("nvidia-smi", "Failed to initialize NVML: Driver/library version mismatch\n", code=18)
    root = tree(
        **{
            "proc/version": "Linux version 5.15.167-microsoft-standard-WSL2",
            "dev/nvidia0": "",
            ".dockerenv": "",
        }
    )
    facts = gather_facts(root)
    assert (facts.wsl, facts.container, facts.nvcc) == (True, True, (12, 4))
    assert facts.smi_error.startswith("Failed to initialize NVML")
    assert (facts.smi, facts.mig) == ((), (0, 0))
    assert facts.nodes == (DeviceNode("nvidia0"),)
    assert facts.variable("CUDA_VISIBLE_DEVICES") == "0"
    assert facts.variable("NVIDIA_VISIBLE_DEVICES") is None


def test_a_program_complains_only_when_it_fails(program):
    """An old driver's `nvidia-smi` does not know every field, but lists its devices."""
    program("nvidia-smi", "GPU 0: Tesla K80 (UUID: GPU-0a1b)\n")
    assert cuda_readers._complaint("nvidia-smi", "-L") == ""
    assert cuda_readers._complaint("no-such-program") == ""


def test_mig_instances(program):
    program("nvidia-smi", "GPU 0: NVIDIA A100\n  MIG 3g.20gb Device 0: (UUID: MIG-0a1b)\n")
    assert cuda_readers._mig("Enabled\n") == (1, 1)
    assert cuda_readers._mig("[N/A]\n") == (0, 0)
    assert cuda_readers._mig(None) == (0, 0)


def test_this_machine():
    facts = gather_facts()
    assert facts.torch.version == torch.__version__
    assert facts.torch.count == (torch.cuda.device_count() if torch.cuda.is_available() else 0)
