"""One test for every way in which CUDA is broken on real machines, by facts as they are there."""

from dataclasses import replace

import pytest

from folovllm.diagnostics.cuda import CudaVerification, exit_code
from folovllm.diagnostics.cuda_facts import DeviceNode, Library, PciGpu, Torch

GIB = 1 << 30
NODES = ("nvidia-uvm", "nvidia0", "nvidiactl")


def judge(facts):
    """The headline, and by name what the facts come to."""
    verification = CudaVerification(facts)
    return verification.headline(), {check.name: check for check in verification.judged}


def assert_finds(facts, name, status, *parts):
    """That check `name` stands so, it and the headline say all parts, and what needs it is not."""
    headline, checks = judge(facts)
    assert checks[name].status == status
    assert checks[name].advice
    text = f"{checks[name].detail} | {checks[name].advice}"
    for part in parts:
        assert part in text
    if status in ("failed", "absent"):
        assert checks["architecture"].status == "skipped"
        assert checks[name].detail in headline
        assert checks[name].advice in headline
    wanted = {"failed": 1, "degraded": 2, "absent": 3}[status]
    assert exit_code(checks.values()) == wanted
    assert [c.name for c in checks.values() if c.status == status] == [name]


def test_nothing_is_wrong(well):
    headline, checks = judge(well())
    assert {check.status for check in checks.values()} == {"ok"}
    assert headline == "CUDA here: NVIDIA H200"
    assert exit_code(checks.values()) == 0
    assert checks["driver"].detail == "580.159.03, serves CUDA 13.0"


# No device, and nothing is broken


def test_no_gpu(bare):
    assert_finds(bare(), "GPU", "absent", "this machine has no NVIDIA GPU", "use the CPU")
    headline, _ = judge(bare())
    assert headline.startswith("No CUDA device here: this machine has no NVIDIA GPU")


def test_no_gpu_in_a_container(bare):
    assert_finds(bare(container=True), "GPU", "absent", "this container sees no", "--gpus all")


def test_a_container_started_without_the_gpu(bare):
    facts = bare(container=True, pci=(PciGpu("0000:00:06.0", "nvidia"),), module="580.95.05")
    assert_finds(facts, "GPU", "absent", "started without", "docker run --gpus all")


def test_a_container_with_a_library_and_no_driver(bare):
    library = Library((13, 0), 100, "CUDA_ERROR_NO_DEVICE")
    assert_finds(bare(container=True, library=library), "GPU", "absent", "sees no NVIDIA GPU")


def test_macos(bare):
    assert_finds(bare(system="Darwin"), "GPU", "absent", "macOS", "Linux")


def test_windows_linux_without_a_driver(bare):
    assert_finds(bare(wsl=True), "GPU", "absent", "in Windows")


def test_amd(bare):
    facts = bare(torch=Torch("2.11.0+rocm7.0", None, "7.0"))
    assert_finds(facts, "GPU", "absent", "AMD", "NVIDIA")


def test_a_driver_without_any_gpu(bare):
    facts = bare(module="580.95.05", nodes=(DeviceNode("nvidiactl"),), library=Library((13, 0)))
    assert_finds(facts, "GPU", "absent", "the NVIDIA driver is here, and it finds no GPU", "lspci")


@pytest.mark.parametrize("value", ["", "-1", " "])
def test_hidden_by_a_variable(value, unseen):
    library = Library((13, 0), 100, "CUDA_ERROR_NO_DEVICE")
    facts = unseen(variables=(("CUDA_VISIBLE_DEVICES", value),), library=library)
    assert_finds(facts, "visible", "absent", "hides every GPU", "unset CUDA_VISIBLE_DEVICES")


def test_hidden_beside_a_cpu_build(well):
    """Who hides the GPU wants no GPU, so nothing is broken."""
    facts = well(variables=(("CUDA_VISIBLE_DEVICES", ""),), torch=Torch("2.13.0+cpu"))
    assert_finds(facts, "visible", "absent", "hides every GPU")


# A device that cannot be used


@pytest.mark.parametrize(
    ("module", "part"),
    [
        (None, "no NVIDIA driver"),
        ("nouveau", "nouveau, which has no CUDA"),
        ("vfio-pci", "virtual machines"),
    ],
)
def test_no_driver(module, part, bare):
    facts = bare(pci=(PciGpu("0000:01:00.0", module),), torch=Torch("2.11.0+cu130", "13.0"))
    assert_finds(facts, "driver", "failed", part)


def test_the_drivers_library_without_its_module(bare):
    facts = bare(
        pci=(PciGpu("0000:01:00.0", None),),
        library=Library((13, 0), 100, "CUDA_ERROR_NO_DEVICE"),
        torch=Torch("2.11.0+cu130", "13.0"),
    )
    assert_finds(facts, "driver", "failed", "no NVIDIA driver", "install")


@pytest.mark.parametrize(
    ("container", "advice"),
    [(False, "libnvidia-compute"), (True, "NVIDIA_DRIVER_CAPABILITIES=compute,utility")],
)
def test_a_driver_without_its_library(container, advice, unseen):
    facts = unseen(container=container, library=Library(missing="libcuda.so.1: cannot open"))
    assert_finds(facts, "driver", "failed", "libcuda.so.1: cannot open", advice)


def test_an_updated_driver_that_is_not_loaded_yet(unseen):
    facts = unseen(
        smi=(),
        smi_error="Failed to initialize NVML: Driver/library version mismatch NVML library "
        "version: 580.95",
        library=Library((13, 0), 803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"),
    )
    assert_finds(facts, "driver", "failed", "the driver was updated", "restart the machine")


def test_a_driver_that_does_not_answer(unseen):
    facts = unseen(
        smi=(),
        smi_error="NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.",
    )
    assert_finds(facts, "driver", "failed", "couldn't communicate", "Secure Boot")


def test_an_index_that_is_not_there(unseen):
    facts = unseen(variables=(("CUDA_VISIBLE_DEVICES", "3,0"),))
    assert_finds(facts, "visible", "failed", "CUDA_VISIBLE_DEVICES=3,0", "from 0 to 0")


def test_mig_without_instances(unseen):
    assert_finds(unseen(mig=(1, 0)), "visible", "failed", "MIG mode", "-mig 0")


def test_mig_with_instances(well):
    assert judge(well(mig=(1, 2)))[1]["visible"].status == "ok"


@pytest.mark.parametrize("error", ["EACCES", "EPERM"])
@pytest.mark.parametrize(("container", "advice"), [(False, "usermod"), (True, "--gpus all")])
def test_no_permission(error, container, advice, unseen):
    nodes = (DeviceNode("nvidia-uvm", error), DeviceNode("nvidia0", error))
    facts = unseen(nodes=nodes, container=container)
    assert_finds(facts, "device files", "failed", "/dev/nvidia-uvm, /dev/nvidia0", advice)


def test_a_gpu_that_fell_off_the_bus(unseen):
    facts = unseen(nodes=(DeviceNode("nvidia0", "EIO"), DeviceNode("nvidiactl")))
    assert_finds(facts, "device files", "failed", "/dev/nvidia0 (EIO)", "xid")


def test_no_uvm(unseen):
    facts = unseen(
        nodes=(DeviceNode("nvidia0"), DeviceNode("nvidiactl")),
        library=Library((13, 0), 999, "CUDA_ERROR_UNKNOWN"),
    )
    assert_finds(facts, "device files", "failed", "/dev/nvidia-uvm is missing", "nvidia-modprobe")


def test_a_cpu_build_beside_a_gpu(well):
    facts = well(torch=Torch("2.13.0+cpu"))
    assert_finds(facts, "torch", "failed", "2.13.0+cpu is a CPU build", "--torch cuda")


def test_a_build_for_amd_beside_a_gpu(well):
    facts = well(torch=Torch("2.11.0+rocm7.0", None, "7.0"))
    assert_finds(facts, "torch", "failed", "a build for AMD's GPUs", "--torch cuda")


def test_a_torch_that_cannot_be_imported(well):
    facts = well(torch=Torch(error="OSError: libcudart.so.13: cannot open shared object file"))
    assert_finds(facts, "torch", "failed", "libcudart.so.13")


@pytest.mark.parametrize(
    ("serves", "wants", "oldest"), [((12, 8), "13.0", "580"), ((11, 4), "12.6", "525")]
)
def test_a_driver_too_old_for_torch(serves, wants, oldest, well):
    warning = "CUDA initialization: The NVIDIA driver on your system is too old (found 12080)."
    facts = well(
        library=Library(serves),
        torch=Torch("2.11.0", wants, error=warning),
        module="470.57.02",
        nvcc=None,
    )
    assert_finds(facts, "driver for torch", "failed", f"{wants}", f"driver to {oldest} or later")


def test_a_driver_of_an_older_minor_version_serves(well):
    """525 (CUDA 12.0) serves all of CUDA 12."""
    torch = Torch("2.11.0+cu128", "12.8", None, ("sm_90",), 1, well().torch.devices)
    checks = judge(well(library=Library((12, 0)), torch=torch, runtime=(12, 8), nvcc=None))[1]
    assert checks["driver for torch"].status == "ok"
    assert {check.status for check in checks.values()} == {"ok"}


def test_a_newer_driver_serves(well):
    torch = Torch("2.11.0+cu128", "12.8", None, ("sm_90",), 1, well().torch.devices)
    checks = judge(well(torch=torch, runtime=(12, 8), nvcc=None))[1]
    assert {check.status for check in checks.values()} == {"ok"}


@pytest.mark.parametrize(
    ("code", "name", "advice"),
    [
        (3, "CUDA_ERROR_NOT_INITIALIZED", "restart"),
        (34, "CUDA_ERROR_STUB_LIBRARY", "stubs"),
        (100, "CUDA_ERROR_NO_DEVICE", "nvidia-smi"),
        (802, "CUDA_ERROR_SYSTEM_NOT_READY", "nvidia-fabricmanager"),
        (803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "compat"),
        (804, "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE", "compat"),
        (999, "CUDA_ERROR_UNKNOWN", "nvidia_uvm"),
        (12345, "CUDA_ERROR_FROM_THE_FUTURE", "dmesg"),
    ],
)
def test_cuda_does_not_start(code, name, advice, unseen):
    facts = unseen(library=Library((13, 0), code, name))
    assert_finds(facts, "devices", "failed", f"{name} ({code})", advice)


def test_no_device_for_an_unknown_reason(unseen):
    torch = Torch("2.11.0+cu130", "13.0", error="CUDA unknown error - this may be due to")
    assert_finds(unseen(torch=torch), "devices", "failed", "CUDA unknown error", "dmesg")


@pytest.mark.parametrize(
    ("capability", "advice"), [((5, 0), "12.6"), ((6, 1), "12.6"), ((11, 0), "newest")]
)
def test_an_architecture_that_is_not_in_the_build(capability, advice, well, device):
    torch = replace(well().torch, devices=(device(capability=capability),))
    name = f"sm_{capability[0]}{capability[1]}"
    assert_finds_late(well(torch=torch), "architecture", "failed", name, advice)


def assert_finds_late(facts, name, status, *parts):
    """As `assert_finds`, where the architecture is what is wrong."""
    headline, checks = judge(facts)
    assert checks[name].status == status
    for part in parts:
        assert part in f"{checks[name].detail} | {checks[name].advice}"
    assert (checks[name].detail in headline) == (status == "failed")
    assert exit_code(checks.values()) == {"failed": 1, "degraded": 2}[status]


def test_an_architecture_by_way_of_ptx(well, device):
    architectures = ("sm_80", "sm_90", "compute_90")
    torch = replace(
        well().torch, architectures=architectures, devices=(device(capability=(12, 0)),)
    )
    facts = well(torch=torch)
    assert_finds_late(facts, "architecture", "degraded", "sm_120", "when they are first used")


@pytest.mark.parametrize(
    ("capability", "architectures", "fits"),
    [
        ((8, 9), ("sm_80", "sm_86"), True),  # an older minor version's code runs
        ((8, 0), ("sm_86",), False),  # a newer one's does not
        ((9, 0), ("sm_80",), False),  # nor another major version's
        ((9, 0), ("sm_90a",), True),
        ((12, 1), ("sm_120a",), False),  # made for that one device
        ((12, 1), ("sm_120",), True),
        ((9, 0), ("compute_90a",), False),
    ],
)
def test_which_code_runs_where(capability, architectures, fits, well, device):
    torch = replace(
        well().torch, architectures=architectures, devices=(device(capability=capability),)
    )
    assert (judge(well(torch=torch))[1]["architecture"].status == "ok") == fits


# It works, but


def test_nvcc_of_another_major_version(well):
    facts = well(nvcc=(12, 4))
    assert_finds(facts, "CUDA versions", "degraded", "nvcc 12.4", "toolkit 13")


@pytest.mark.parametrize(("wants", "runtime"), [("13.0", (12, 9)), ("12.8", (12, 1))])
def test_another_runtime_was_loaded(wants, runtime, well):
    torch = replace(well().torch, cuda=wants)
    facts = well(runtime=runtime, torch=torch, nvcc=None)
    assert_finds(facts, "CUDA versions", "degraded", "LD_LIBRARY_PATH")


def test_a_newer_runtime_of_the_same_major_version(well):
    assert judge(well(runtime=(13, 1)))[1]["CUDA versions"].status == "ok"


def test_no_nvcc(well):
    check = judge(well(nvcc=None))[1]["CUDA versions"]
    assert check.status == "ok"
    assert "no nvcc" in check.detail


def test_too_little_shared_memory(well):
    two = replace(well().torch, count=2, devices=well().torch.devices * 2)
    facts = well(shared_memory=64 << 20, container=True, torch=two)
    assert_finds(facts, "host", "degraded", "shared memory 64 MiB", "--shm-size")
    assert judge(well(shared_memory=64 << 20))[1]["host"].status == "ok"  # one GPU needs none


def test_a_memory_limit_far_below_the_gpus(well):
    assert_finds(well(memory_limit=16 * GIB), "host", "degraded", "16.0 GiB", "140.0 GiB")
    assert judge(well(memory_limit=128 * GIB))[1]["host"].status == "ok"


def test_a_limited_address_space(well):
    assert_finds(well(address_space=8 * GIB), "host", "degraded", "ulimit -v unlimited")


def test_other_kinds_of_machines_where_cuda_works(well):
    """Windows' Linux, small boards and sandboxes have no device files or lists of devices."""
    for facts in (
        well(pci=(), module=None, nodes=(), wsl=True),
        well(pci=(), module=None, nodes=(), smi=()),
        well(pci=(), container=True),
        well(variables=(("CUDA_VISIBLE_DEVICES", "GPU-0a1b"),)),
    ):
        assert {check.status for check in judge(facts)[1].values()} == {"ok"}


def test_two_gpus(well, device):
    torch = replace(well().torch, count=3, devices=(device(), device(), device(name="NVIDIA L4")))
    assert judge(well(torch=torch))[0] == "CUDA here: 2 x NVIDIA H200, NVIDIA L4"
