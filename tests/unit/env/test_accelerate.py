"""Accelerators that go into `.venv`: added to a copy, which replaces it only when it works.

The fixture `cuda_checkout` checks after each test that `.venv` is as it was before.
"""

import signal
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.unit.env.conftest import FLASH_BACKEND, make_sdist, make_wheel

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="CUDA builds are for Linux")

GOOD = 'def prove(): return "agrees within 0.001"'
WRONG = 'def prove(): raise RuntimeError("its float16 attention is off by 0.5")'
WITH = ("--with", "flash-attn")


@pytest.fixture
def flash(tmp_path):
    """Makes a wheel of flash-attn; gives the variable that shows it to pip."""

    def make(checkout, module=None, *, requires=()):
        folder = tmp_path / "flash"
        folder.mkdir(exist_ok=True)
        if module:
            make_wheel(folder, "flash_attn", "2.8.3", module, requires=requires)
        return {"PIP_FIND_LINKS": f"{checkout.wheels} {folder}"}

    return make


@pytest.fixture
def toolkit(tmp_path, monkeypatch):
    """What compiling needs: an nvcc that says what it is, and ninja."""
    if not Path(sysconfig.get_paths()["include"], "Python.h").is_file():
        pytest.skip("this Python has no headers")
    folder = tmp_path / "toolkit" / "bin"
    folder.mkdir(parents=True)
    for name, said in (("nvcc", "Cuda compilation tools, release 13.0, V13.0.88"), ("ninja", "1")):
        (folder / name).write_text(f"#!/bin/sh\necho '{said}'\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    monkeypatch.setenv("CUDA_HOME", str(folder.parent))
    return folder


def test_from_nothing_kept_and_taken_out(new_checkout, flash):
    wheels = flash(new_checkout, GOOD, requires=["torch", "tiny>=1"])

    code, said = new_checkout.set_up("--torch", "cuda", *WITH, **wheels)

    assert code == 0, said
    assert "flash-attn works" in said
    assert new_checkout.version_of("flash-attn") == "2.8.3"
    assert len(new_checkout.environments) == 1
    report = new_checkout.report
    assert report["asked"]["accelerators"] == ["flash-attn"]
    accelerator = report["accelerators"]["flash-attn"]
    assert (accelerator["outcome"], accelerator["version"]) == ("installed", "2.8.3")
    assert accelerator["plan"] == {"flash-attn": "2.8.3"}
    assert accelerator["probe"] == report["probes"]["flash-attn works"] == "agrees within 0.001"
    assert report["installed"]["flash-attn"] == "2.8.3"
    # A tool of the copy is the copy's.
    tool = (new_checkout.root / ".venv" / "bin" / "pip").read_text().splitlines()[0]
    assert tool.endswith(f"{new_checkout.environments[0]}/bin/python")

    before = new_checkout.state()
    assert ".venv is up to date" in new_checkout.set_up()[1]
    assert "flash-attn: up to date: 2.8.3" in new_checkout.set_up(*WITH)[1]
    assert new_checkout.state() == before

    new_checkout.lock("tiny 2.0", "transformers")
    code, said = new_checkout.set_up(**wheels)  # asked for once
    assert code == 0, said
    assert (new_checkout.version_of("tiny"), new_checkout.version_of("flash-attn")) == (
        "2.0",
        "2.8.3",
    )

    code, said = new_checkout.set_up("--without", "flash-attn")
    assert code == 0, said
    assert "asked to with --without flash-attn" in said
    assert "flash-attn" not in new_checkout.report["installed"]
    assert ".venv is up to date" in new_checkout.set_up()[1]


def test_one_that_computes_wrongly(cuda_checkout, flash):
    code, said = cuda_checkout.set_up(*WITH, **flash(cuda_checkout, WRONG))

    assert code == 1
    assert "its float16 attention is off by 0.5" in said
    assert "Set-up failed: .venv is as it was." in said
    assert len(cuda_checkout.environments) == 1
    assert cuda_checkout.report["outcome"] == "failed"
    assert cuda_checkout.report["accelerators"]["flash-attn"]["outcome"] == "failed"
    assert cuda_checkout.report["probes"]["flash-attn works"] == "failed"
    assert "flash-attn" not in cuda_checkout.set_up()[1]


def test_one_that_would_change_what_is_locked(cuda_checkout, flash, tmp_path):
    wheels = flash(cuda_checkout, GOOD, requires=["torch==2.12.0", "tiny>=2"])
    make_wheel(tmp_path / "flash", "torch", "2.12.0", "")

    code, said = cuda_checkout.set_up(*WITH, **wheels)

    assert code == 1
    assert "it would change what .venv has:\n  tiny 1.0 -> 2.0\n  torch 2.13.0 -> 2.12.0\n" in said
    refused = cuda_checkout.report["accelerators"]["flash-attn"]
    assert refused["outcome"] == "refused"
    assert refused["would_change"] == {"tiny": "1.0 -> 2.0", "torch": "2.13.0 -> 2.12.0"}


def test_one_that_needs_what_nobody_has(cuda_checkout, flash):
    code, said = cuda_checkout.set_up(*WITH, **flash(cuda_checkout, GOOD, requires=["absent"]))

    assert code == 1
    assert "absent is not to be had from where pip looks" in said


def test_no_wheel(cuda_checkout, flash, toolkit, tmp_path):
    wheels = flash(cuda_checkout)
    make_sdist(tmp_path / "flash", "flash_attn", "2.8.3", FLASH_BACKEND)

    code, said = cuda_checkout.set_up(*WITH, **wheels)

    assert code == 0, said
    assert "skipped: where pip looks there is no wheel of flash-attn>=2.6,<3" in said
    assert "nox -s setup -- --with flash-attn --build" in said
    assert cuda_checkout.report["accelerators"]["flash-attn"]["outcome"] == "skipped"
    assert cuda_checkout.report["outcome"] == "up to date"
    code, said = cuda_checkout.set_up(*WITH, "--require", **wheels)
    assert code == 1
    assert "flash-attn is required (--require) and can't be had" in said


def test_nothing_to_compile_with(cuda_checkout, flash, tmp_path):
    wheels = flash(cuda_checkout)
    make_sdist(tmp_path / "flash", "flash_attn", "2.8.3", FLASH_BACKEND)

    code, said = cuda_checkout.set_up(*WITH, "--build", **wheels, CUDA_HOME="/nowhere")

    assert code == 0, said
    assert "it can't be compiled: there is no nvcc (CUDA toolkit 13.x" in said


def test_stopped_while_compiling(cuda_checkout, flash, toolkit, tmp_path):
    wheels = flash(cuda_checkout)
    make_sdist(tmp_path / "flash", "flash_attn", "2.8.3", FLASH_BACKEND)

    code = cuda_checkout.stop(
        signal.SIGTERM, *WITH, "--build", whole_group=False, **wheels, SLOW_FLASH="1"
    )

    assert code == 128 + signal.SIGTERM
    assert len(cuda_checkout.environments) == 1
    assert cuda_checkout.report["outcome"] == "interrupted"
    assert cuda_checkout.report["accelerators"]["flash-attn"]["outcome"] == "failed"


def test_compiled_for_this_gpu_and_not_a_second_time(new_checkout, flash, toolkit, tmp_path):
    wheels = flash(new_checkout)
    make_sdist(tmp_path / "flash", "flash_attn", "2.8.3", FLASH_BACKEND)

    code, said = new_checkout.set_up("--torch", "cuda", *WITH, "--build", **wheels)

    assert code == 0, said
    report = new_checkout.report["accelerators"]["flash-attn"]
    assert (report["compile"], report["probe"]) == (True, "90 9.0 TRUE")
    new_checkout.lock("tiny 2.0", "transformers")
    code, said = new_checkout.set_up()  # neither --build nor a source to build from
    assert code == 0, said
    assert not new_checkout.report["accelerators"]["flash-attn"]["compile"]
    assert new_checkout.version_of("flash-attn") == "2.8.3"


def test_a_dry_run_says_what_would_be_done(cuda_checkout, flash):
    wheels = flash(cuda_checkout, GOOD)

    code, said = cuda_checkout.set_up(*WITH, "--dry-run", **wheels)

    assert code == 0, said
    assert "adding flash-attn 2.8.3" in said
    assert "Nothing was changed (--dry-run)" in said
    assert cuda_checkout.report["outcome"] == "planned"
    code, said = cuda_checkout.set_up("--recreate", "--dry-run")
    assert "building .venv: asked to with --recreate" in said


def test_a_dry_run_before_there_is_a_venv(new_checkout):
    code, said = new_checkout.set_up("--torch", "cuda", *WITH, "--dry-run")

    assert code == 0, said
    assert "flash-attn: not planned: that is possible once .venv is built" in said
    assert not (new_checkout.root / ".venv").exists()


def test_a_cpu_build_of_torch(checkout):
    code, said = checkout.set_up(*WITH)

    assert code == 0, said
    assert "flash-attn?" in said
    assert "torch 2.13.0+cpu is a CPU build" in said
    assert checkout.report["accelerators"]["flash-attn"]["outcome"] == "skipped"


def test_a_new_venv_stays_when_what_was_to_be_added_fails(new_checkout, flash):
    wheels = flash(new_checkout, WRONG)

    code, said = new_checkout.set_up("--torch", "cuda", *WITH, **wheels)

    assert code == 1
    assert "Set-up failed: .venv is new and works, without what failed." in said
    assert new_checkout.version_of("tiny") == "1.0"
