"""The set-up when all goes well: made once, kept, made anew when something changed."""

import copy
import shutil
import subprocess
import sys

import pytest

from env import plan, uv
from env.request import Request
from env.workspace import Workspace


def test_makes_an_environment_and_reports_it(checkout):
    assert checkout.version_of("folovllm") == "1.0"
    assert "source .venv/bin/activate" in checkout.first_said
    settings = (checkout.root / ".env").read_text().splitlines()
    assert all(line.startswith("#") for line in settings if line)
    report = checkout.first_report
    assert (report["schema"], report["outcome"], report["error"]) == (1, "built", None)
    assert report["reason"] == "there is none yet"
    assert report["torch"]["variant"] == "cpu"
    assert report["installed"]["tiny"] == "1.0"
    assert set(report["probes"]) == {"consistent", "as locked", "works"}
    assert report["seconds"]["total"] > 0


def test_changes_nothing_the_second_time(checkout):
    (checkout.root / ".env").write_text("# mine\n")

    code, said = checkout.set_up()

    assert code == 0, said
    assert ".venv is up to date" in said
    assert (checkout.root / ".env").read_text() == "# mine\n"
    assert checkout.report["outcome"] == "up to date"
    assert checkout.report["torch"]["variant"] == "cpu"
    assert checkout.report["installed"]["tiny"] == "1.0"


def test_a_linter_rule_in_pyproject_changes_nothing(checkout):
    with (checkout.root / "pyproject.toml").open("a") as file:
        file.write("[tool.ruff]\nline-length = 100\n")

    assert ".venv is up to date" in checkout.set_up()[1]


def test_is_made_anew_when_something_changed_and_as_it_was_asked_for(new_checkout):
    code, said = new_checkout.set_up("--torch", "cpu")
    assert code == 0, said
    old = new_checkout.environments
    activation = (new_checkout.root / ".venv" / "bin" / "activate").read_text()
    new_checkout.lock("tiny 2.0", "transformers")

    code, said = new_checkout.set_up()  # not "--torch auto"

    assert code == 0, said
    assert "env/requirements.lock changed" in said
    assert new_checkout.report["torch"]["asked"] == "cpu"
    assert new_checkout.version_of("tiny") == "2.0"
    assert len(new_checkout.environments) == 1
    assert new_checkout.environments != old
    # A shell that activated the old environment has the new one on its path too.
    assert old[0] not in activation
    assert str(new_checkout.root / ".venv") in activation


def test_a_package_that_was_changed_by_hand_is_a_reason_to_build(shared_checkout, tmp_path):
    checkout = copy.copy(shared_checkout)
    checkout.root = tmp_path / "copy"
    shutil.copytree(shared_checkout.root, checkout.root, symlinks=True)
    record = Workspace(checkout.root).record()
    record["inputs"]["the checkout's place"] = str(checkout.root)
    workspace = Workspace(checkout.root)
    wanted = plan.make(checkout.root, Request(), record)
    assert plan.reason_to_build(wanted, Request(), record, workspace) is None

    (info,) = (checkout.root / ".venv").glob("lib/python*/site-packages/tiny-1.0.dist-info")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny\nVersion: 1.5\n")

    reason = plan.reason_to_build(wanted, Request(), record, workspace)
    assert reason == "changed since: tiny"
    (checkout.root / ".venv" / "bin" / "python").unlink()
    assert plan.reason_to_build(wanted, Request(), record, workspace) == ("its Python does not run")


def test_a_checkout_that_was_moved_gets_its_own(shared_checkout, tmp_path):
    moved = copy.copy(shared_checkout)
    moved.root = tmp_path / "moved"
    shutil.copytree(shared_checkout.root, moved.root, symlinks=True)

    code, said = moved.set_up()

    assert code == 0, said
    assert "the checkout's place changed" in said
    location = subprocess.run(
        [str(moved.root / ".venv/bin/python"), "-c", "import folovllm; print(folovllm.__file__)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert location.stdout.startswith(str(moved.root))


def test_a_dangling_link_is_built_anew(new_checkout):
    (new_checkout.root / ".venv").symlink_to(".venvs/main-gone")

    code, said = new_checkout.set_up("--torch", "cpu")

    assert code == 0, said
    assert new_checkout.version_of("tiny") == "1.0"


def test_of_two_at_once_the_second_waits_and_finds_it_done(new_checkout):
    first = new_checkout.start("--torch", "cpu")
    while not new_checkout.environments:
        assert first.poll() is None, first.communicate()
    second = new_checkout.start("--torch", "cpu")
    said = second.communicate(timeout=60)
    first.communicate(timeout=60)

    assert (first.returncode, second.returncode) == (0, 0), said
    assert f"Another set-up (process {first.pid}) is at work: waiting" in said[0]
    assert ".venv is up to date" in said[0]
    assert len(new_checkout.environments) == 1


def test_a_cuda_build_is_never_the_cpu_wheel_beside_it(new_checkout):
    code, said = new_checkout.set_up("--torch", "cuda")

    if sys.platform == "darwin":
        assert "no cuda build of torch for this system" in said
    else:
        assert code == 0, said
        assert new_checkout.version_of("torch") == "2.13.0"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere pip's own build is the CPU one")
def test_uv_gets_the_cpu_build_that_pip_does_not_have(new_checkout, tmp_path_factory):
    for_pip, for_uv = tmp_path_factory.mktemp("for_pip"), tmp_path_factory.mktemp("for_uv")
    for wheel in new_checkout.wheels.iterdir():
        shutil.copy(wheel, for_uv if "+cpu" in wheel.name else for_pip)
    new_checkout.make_fake_uv(for_pip, uv.PINNED)

    code, said = new_checkout.set_up("--torch", "cpu", PIP_FIND_LINKS=str(for_pip), HAS=str(for_uv))

    assert code == 0, said
    assert "PyTorch's own index has it" in said
    assert new_checkout.report["torch"]["getter"] == "uv"
    assert new_checkout.version_of("torch") == "2.13.0+cpu"
    assert not (new_checkout.root / ".venv" / "uv").exists()
