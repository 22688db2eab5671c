"""Is there a GPU, and does the driver give it to this process? Judged by facts alone.

A GPU that is there and cannot be used is a failure; one that is not there, or that was kept from
this process on purpose, is none. Each way in which it goes wrong has a sentence of its own, and
one that says what to do.
"""

import re

from folovllm.diagnostics.checks import Finding
from folovllm.diagnostics.cuda_facts import CudaFacts, of_version, version_text


def gpu(facts: CudaFacts) -> Finding:
    """Whether there is an NVIDIA GPU at all, whatever its state."""
    names = [found.name for found in facts.smi]
    if facts.torch.hip and not (names or facts.pci):
        return Finding(
            f"torch {facts.torch.version} is built for AMD's GPUs (ROCm {facts.torch.hip}), and "
            "CUDA is NVIDIA's",
            "absent",
            "take a machine with an NVIDIA GPU: FoloVLLM is made for those, and for CPUs",
        )
    names = names or [device.name for device in facts.torch.devices]
    if names:
        return Finding(counted(names))
    if facts.system != "Linux":
        system = {"Darwin": "macOS"}.get(facts.system, facts.system)
        return Finding(
            f"FoloVLLM uses NVIDIA GPUs on Linux, and this is {system}", "absent", _elsewhere()
        )
    if facts.container and not _reaches_driver(facts) and (facts.pci or facts.module):
        return Finding(
            "this container was started without the machine's NVIDIA GPU",
            "absent",
            "start it with `docker run --gpus all ...` (podman: `--device nvidia.com/gpu=all`), "
            "with NVIDIA's container toolkit on the host",
        )
    if facts.pci:
        return Finding(f"{len(facts.pci)} on the PCI bus")
    if facts.wsl or not (_reaches_driver(facts) or facts.module):
        return _no_gpu(facts)
    if any(re.fullmatch(r"nvidia\d+", node.name) for node in facts.nodes):
        return Finding("a device file says there is one")
    return Finding(
        "the NVIDIA driver is here, and it finds no GPU",
        "absent",
        "if there should be one: switch the machine off and on, look with `lspci | grep -i "
        "nvidia`, and for the driver's messages with `dmesg | grep -i nvrm`",
    )


def _no_gpu(facts: CudaFacts) -> Finding:
    where = "this container sees" if facts.container else "this machine has"
    advice = _elsewhere()
    if facts.container:
        advice += "; if its host has one, start the container with `docker run --gpus all ...`"
    if facts.wsl:
        advice += "; if Windows has one, install NVIDIA's driver in Windows and `wsl --update`"
    return Finding(f"{where} no NVIDIA GPU, and no NVIDIA driver", "absent", advice)


def _elsewhere() -> str:
    return (
        "use the CPU, as FoloVLLM does here by itself; for CUDA, take a Linux machine with an "
        "NVIDIA GPU"
    )


def _reaches_driver(facts: CudaFacts) -> bool:
    # An image may carry the library without any driver behind it.
    return bool(facts.nodes) or (facts.library.cuda is not None and not facts.library.error)


def driver(facts: CudaFacts) -> Finding:
    """Whether NVIDIA's driver is loaded, whole, and of one version."""
    version = facts.module or next((found.driver for found in facts.smi), None)
    library = facts.library
    if "version mismatch" in facts.smi_error:
        return Finding(
            "the driver was updated, and the kernel still runs the old one"
            + of_version(facts.module),
            "failed",
            "restart the machine",
        )
    if facts.torch.count or (facts.smi and library.cuda):
        serves = f", serves CUDA {version_text(library.cuda)}" if library.cuda else ""
        return Finding(f"{version or 'there'}{serves}")
    if version is None and not facts.nodes and not facts.wsl:
        return _no_driver(facts)
    if library.cuda is None:
        if facts.container:
            advice = "start the container with NVIDIA_DRIVER_CAPABILITIES=compute,utility or all"
        else:
            advice = (
                "install the driver's compute library (Ubuntu: `apt install libnvidia-compute-NNN`)"
            )
        return Finding(
            f"the driver{of_version(version)} lacks its library for CUDA ({library.missing})",
            "failed",
            advice,
        )
    if facts.smi_error and not facts.wsl:
        return Finding(
            f"the driver does not answer: {facts.smi_error}",
            "failed",
            "restart the machine; if that does not help, install the driver again (after an update "
            "of the kernel its module must be built anew, and Secure Boot wants it signed)",
        )
    return Finding(f"{version or 'there'}, serves CUDA {version_text(library.cuda)}")


def _no_driver(facts: CudaFacts) -> Finding:
    install = (
        "install NVIDIA's driver (Ubuntu: `sudo ubuntu-drivers install`; others: "
        "https://www.nvidia.com/drivers), and restart the machine"
    )
    modules = {found.module for found in facts.pci}
    if "nouveau" in modules:
        return Finding(
            "the GPU is driven by nouveau, which has no CUDA, and not by NVIDIA's driver",
            "failed",
            install,
        )
    if "vfio-pci" in modules:
        return Finding(
            "the GPU is set aside for virtual machines (vfio-pci)",
            "failed",
            "use it in the virtual machine, or give it back to NVIDIA's driver",
        )
    return Finding("there is an NVIDIA GPU, and no NVIDIA driver", "failed", install)


def device_files(facts: CudaFacts) -> Finding:
    """Whether this process may open the files by which a program reaches the driver."""
    needed = [n for n in facts.nodes if re.fullmatch(r"nvidia(\d+|ctl|-uvm)", n.name)]
    if facts.torch.count:  # Windows' Linux and NVIDIA's small boards have others
        return Finding(", ".join(n.name for n in needed) or "others than /dev/nvidia*")
    denied = [node.name for node in needed if node.error in ("EACCES", "EPERM")]
    if denied:
        names = ", ".join(f"/dev/{name}" for name in denied)
        if facts.container:
            advice = "start the container anew with `--gpus all`, or with `--device` for each"
        else:
            advice = "add your user to the files' group (`ls -l /dev/nvidia*` shows it; often "
            advice += "`sudo usermod -aG video,render $USER`), and log in again"
        return Finding(f"this process has no permission to use {names}", "failed", advice)
    broken = [f"/dev/{node.name} ({node.error})" for node in needed if node.error]
    if broken:
        return Finding(
            f"{', '.join(broken)} cannot be opened",
            "failed",
            "restart the machine; `dmesg | grep -i xid` shows what the GPU reported",
        )
    if not facts.wsl and facts.library.error and "nvidia-uvm" not in {n.name for n in needed}:
        return Finding(
            "/dev/nvidia-uvm is missing, without which CUDA does not start",
            "failed",
            "`sudo nvidia-modprobe -u -c 0`"
            + (" on the host, then start the container anew" if facts.container else ""),
        )
    return Finding(", ".join(node.name for node in needed) or "none")


def visible(facts: CudaFacts) -> Finding:
    """Whether a variable, or MIG, leaves this process a device."""
    enabled, instances = facts.mig
    asked = facts.variable("CUDA_VISIBLE_DEVICES")
    if asked is not None and asked.strip() in ("", "-1", "NoDevFiles"):
        return Finding(
            f"CUDA_VISIBLE_DEVICES is set to {asked!r}, which hides every GPU from this process",
            "absent",
            "`unset CUDA_VISIBLE_DEVICES`, or set it to the numbers of the GPUs to use",
        )
    if facts.torch.count:
        return Finding("all" if asked is None else f"CUDA_VISIBLE_DEVICES={asked}")
    if enabled and not instances:
        return Finding(
            "the GPU is in MIG mode, and not divided into instances yet",
            "failed",
            "make one (`sudo nvidia-smi mig -cgi 0 -C` takes the whole GPU), or end MIG mode "
            "(`sudo nvidia-smi -mig 0`)",
        )
    there = len(facts.smi)
    first = (asked or "").split(",")[0].strip()
    if asked and there and not (first.isdigit() and int(first) < there):
        return Finding(
            f"CUDA_VISIBLE_DEVICES={asked} begins with none of the {there} that are here",
            "failed",
            f"set it to numbers from 0 to {there - 1}, or to names that `nvidia-smi -L` lists",
        )
    return Finding("all" if asked is None else f"CUDA_VISIBLE_DEVICES={asked}")


def counted(names: list[str]) -> str:
    """Names in one line, equal ones together."""
    counts = {name: names.count(name) for name in names}
    return ", ".join(name if n == 1 else f"{n} x {name}" for name, n in counts.items())
