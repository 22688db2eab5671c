"""What a machine must have for an accelerator."""

from dataclasses import replace

import pytest

from env import accelerators, preflight
from env.preflight import Facts

(FLASH,) = accelerators.INSIDE
GB = 10**9
HOPPER = Facts(
    python="3.12.4",
    torch="2.13.0",
    cuda="13.0",
    capability=(9, 0),
    headers=True,
    memory=60 * GB,
    gpu="NVIDIA GPU at /dev/nvidia0",
    nvcc="13.0",
    ninja=True,
    space=60 * GB,
    cores=16,
)


@pytest.mark.parametrize(
    ("wanted", "changes", "reason"),
    [
        (FLASH, {}, None),
        (FLASH, {"capability": (8, 0)}, None),
        (FLASH, {"capability": (7, 5)}, "needs Ampere or later (compute capability 8.0); this GPU"),
        (FLASH, {"cuda": None}, "though there is a GPU (NVIDIA GPU at /dev/nvidia0): nox -s setup"),
        (FLASH, {"cuda": None, "gpu": None}, "there is no NVIDIA GPU here, and torch 2.13.0 is a"),
        (FLASH, {"capability": None}, "torch 2.13.0 sees no CUDA device (NVIDIA GPU at"),
        (FLASH, {"capability": None, "gpu": None}, "sees no CUDA device (there is no NVIDIA GPU"),
    ],
)
def test_why_not(wanted, changes, reason):
    said = preflight.why_not(wanted, replace(HOPPER, **changes))
    assert said is None if reason is None else reason in said


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"nvcc": "13.3"}, None),
        ({"nvcc": "12.8"}, "nvcc is of CUDA 12.8 and torch of CUDA 13.0"),
        ({"nvcc": None}, "there is no nvcc (CUDA toolkit 13.x, on PATH or in CUDA_HOME)"),
        ({"ninja": False}, "there is no ninja"),
        ({"headers": False}, "the headers of Python 3.12.4 are missing"),
        ({"space": 2 * GB}, "2.0 GB of disk are free"),
        ({"memory": 3 * GB}, "3.0 GB of memory may be used"),
        ({"capability": (11, 0)}, "no code for compute capability 11.x"),
        ({"ninja": False, "nvcc": None}, "CUDA_HOME); there is no ninja"),
    ],
)
def test_why_not_compile(changes, reason):
    said = preflight.why_not_compile(replace(HOPPER, **changes))
    assert said is None if reason is None else reason in said


@pytest.mark.parametrize(
    ("changes", "jobs", "architectures"),
    [
        ({}, "6", "90"),  # the memory's
        ({"cores": 4}, "2", "90"),
        ({"cores": 1}, "1", "90"),
        ({"memory": GB}, "1", "90"),
        ({"capability": (8, 6)}, "6", "80"),  # runs what is compiled for 8.0
        ({"capability": (12, 0)}, "6", "120"),
    ],
)
def test_a_build_is_for_this_gpu_and_fits_into_memory(changes, jobs, architectures):
    variables = replace(HOPPER, **changes).build_variables
    assert variables["MAX_JOBS"] == jobs
    assert variables["FLASH_ATTN_CUDA_ARCHS"] == architectures
    assert variables["FLASH_ATTENTION_FORCE_BUILD"] == "TRUE"


def test_the_locks_apart_lock_what_is_asked_for(request):
    root = request.config.rootpath
    for apart in accelerators.APART:
        asked = (root / apart.asked).read_text().splitlines()
        lock = (root / apart.lock).read_text()
        for line in asked:
            assert line.startswith("#") or f"\n{line} " in lock
        assert "\ntorch==" not in lock
        assert "://" not in lock
