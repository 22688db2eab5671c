"""Which build of torch is chosen: every case of the table."""

import pytest

from env import torch_variant
from env.errors import SetupError
from env.torch_variant import Wish

PLAIN, CPU, CU = "2.13.0", "2.13.0+cpu", "2.13.0+cu130"


@pytest.fixture
def files(tmp_path):
    (tmp_path / "cpu.txt").write_text("# a comment\ntorch==2.13.0+cpu\n")
    (tmp_path / "cuda.txt").write_text("torch==2.13.0,!=2.13.0+cpu\n")
    (tmp_path / "none.txt").write_text('torch==2.13.0 ; sys_platform == "amiga"\n')
    return tmp_path


@pytest.mark.parametrize(
    ("asked", "gpu", "variant"),
    [
        ("auto", None, "cpu"),
        ("auto", "NVIDIA GPU at /dev/nvidia0", "cuda"),
        ("cpu", "NVIDIA GPU at /dev/nvidia0", "cpu"),
        ("cuda", None, "cuda"),
    ],
)
def test_wish(asked, gpu, variant):
    wanted = torch_variant.wish(asked, gpu)

    assert wanted.variant == variant
    assert wanted.why == (gpu or "no NVIDIA GPU here" if asked == "auto" else "asked for")


@pytest.mark.parametrize(
    ("variant", "offered", "uv_has_it", "getter"),
    [
        ("cpu", [PLAIN, CPU], False, "pip"),
        ("cpu", [CPU], False, "pip"),
        ("cpu", [PLAIN], True, "uv"),
        ("cpu", [PLAIN, CU], False, None),  # never gigabytes that nobody asked for
        ("cpu", ["2.15.0+cpu"], False, None),
        ("cuda", [PLAIN, CPU], True, "pip"),
        ("cuda", [CU], False, "pip"),
        ("cuda", [CPU], True, None),
        ("cuda", [], True, None),
    ],
)
def test_choose(files, variant, offered, uv_has_it, getter):
    choice = torch_variant.choose(
        Wish(variant, "so"), files / f"{variant}.txt", offered, lambda: uv_has_it
    )

    assert (choice and (choice.variant, choice.getter)) == (getter and (variant, getter))


def test_uv_is_not_fetched_when_pip_has_the_build(files):
    choice = torch_variant.choose(
        Wish("cpu", "so"), files / "cpu.txt", [CPU], lambda: pytest.fail("asked uv")
    )

    assert choice.why == "so; pip has 2.13.0+cpu"


def test_a_system_without_such_builds(files):
    with pytest.raises(SetupError, match="no cuda build of torch for this system"):
        torch_variant.choose(Wish("cuda", "asked for"), files / "none.txt", [PLAIN], bool)


def test_missing_says_what_can_be_done(files):
    said = str(
        torch_variant.missing(Wish("cpu", "asked for"), files / "cpu.txt", "3.12.1", ["3.11"])
    )

    assert "No cpu build of torch for Python 3.12.1" in said
    assert "nox -s setup -- --python 3.11" in said
    assert "PIP_FIND_LINKS=<folder> nox -s setup" in said
    assert "nox -s setup -- --torch cuda" in said


@pytest.mark.parametrize(
    ("prints", "code", "expected"),
    [
        ("GPU 0: NVIDIA H200 (UUID: GPU-1)", 0, "nvidia-smi lists GPU 0: NVIDIA H200"),
        ("No devices found.", 0, None),
        ("couldn't communicate with the driver", 9, None),
    ],
)
def test_nvidia_gpu_by_its_tool(monkeypatch, tmp_path, prints, code, expected):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f'#!/bin/sh\necho "{prints}"\nexit {code}\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setattr(torch_variant, "Path", lambda path: tmp_path)  # no device nodes

    assert torch_variant.nvidia_gpu() == expected


def test_nvidia_gpu_by_its_device_node(monkeypatch, tmp_path):
    (tmp_path / "nvidia0").touch()
    (tmp_path / "nvidiactl").touch()
    monkeypatch.setattr(torch_variant, "Path", lambda path: tmp_path)

    assert torch_variant.nvidia_gpu() == f"NVIDIA GPU at {tmp_path}/nvidia0"
