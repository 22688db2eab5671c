"""What goes wrong in a set-up: said clearly, and the environment in use still works.

The `checkout` fixture checks after each test that the environment is as it was before.
"""

import shutil
import signal
import sys
import types

import pytest

from env import setup
from env.errors import SetupError


def fails(checkout, *arguments, **variables):
    """Run a set-up that has to fail; return what it said."""
    code, said = checkout.set_up(*arguments, **variables)
    assert code == 1, said
    assert "Traceback" not in said
    assert len(checkout.environments) == 1
    return said


@pytest.mark.parametrize(
    ("number", "whole_group", "code"),
    [
        (signal.SIGKILL, True, -signal.SIGKILL),
        (signal.SIGINT, True, -signal.SIGINT),
        (signal.SIGTERM, False, 128 + signal.SIGTERM),
    ],
)
def test_stopped_while_pip_installs(checkout, number, whole_group, code):
    assert checkout.stop_while_installing(number, whole_group=whole_group) == code

    if number == signal.SIGKILL:
        assert len(checkout.environments) == 2  # nobody was left to remove the half-made one
    else:
        assert len(checkout.environments) == 1
        assert checkout.report["outcome"] == "interrupted"
    checkout.lock("tiny 1.0", "transformers")
    code, said = checkout.set_up()
    assert code == 0, said
    assert len(checkout.environments) == 1


def test_killed_from_nothing_then_made(new_checkout):
    assert new_checkout.stop_while_installing(signal.SIGKILL, whole_group=True) < 0
    assert not (new_checkout.root / ".venv").is_symlink()
    new_checkout.lock("tiny 1.0", "transformers")

    code, said = new_checkout.set_up("--torch", "cpu")

    assert code == 0, said
    assert len(new_checkout.environments) == 1
    assert new_checkout.version_of("tiny") == "1.0"


def test_no_network(checkout):
    said = fails(
        checkout,
        "--recreate",
        PIP_NO_INDEX=None,
        PIP_FIND_LINKS=None,
        PIP_INDEX_URL="http://127.0.0.1:9/simple",  # the discard port: nobody listens
        PIP_RETRIES="1",
    )

    assert "The package index could not be reached" in said
    assert "HTTPS_PROXY" in said
    assert "Set-up failed: .venv is as it was." in said
    assert checkout.report["outcome"] == "failed"
    assert "could not be reached" in checkout.report["error"]


def test_no_space_before_it_begins(checkout, monkeypatch):
    usage = types.SimpleNamespace(free=10**8)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)

    with pytest.raises(SetupError, match=r"Only 0\.1 GB are free at .*needs 3 GB"):
        setup.run(checkout.root, ["--recreate"])


def test_a_checkout_that_can_not_be_written_to(tmp_path):
    (tmp_path / ".venvs").write_text("a file where a folder has to be\n")

    with pytest.raises(SetupError, match=r"\.venvs'\nCheck that .* can be written to"):
        setup.run(tmp_path)


def test_a_file_that_is_not_the_locked_one(checkout):
    lock = checkout.root / "env" / "requirements.lock"
    lock.write_text(checkout.lines["transformers"] + "tiny==1.0 --hash=sha256:" + "0" * 64 + "\n")

    said = fails(checkout)

    assert "A file is not the one that the lock names" in said
    assert "Expected sha256" in said  # pip's own words, from the log


def test_a_lock_that_does_not_fit_pyproject(checkout):
    pyproject = checkout.root / "pyproject.toml"
    pyproject.write_text(pyproject.read_text().replace("tiny>=1", "tiny>=2"))

    said = fails(checkout)

    assert "does not fit pyproject.toml" in said
    assert "tiny>=2: the lock has 1.0" in said
    assert "nox -s lock" in said


def test_a_pyproject_that_is_not_toml(checkout):
    (checkout.root / "pyproject.toml").write_text("[project")

    assert "pyproject.toml: Expected ']'" in fails(checkout)


def test_a_lock_that_names_what_is_not_to_be_had(checkout):
    lock = checkout.root / "env" / "requirements.lock"
    lock.write_text(lock.read_text() + "absent==1.0 --hash=sha256:" + "0" * 64 + "\n")

    assert "absent==1.0 is not to be had from where pip looks" in fails(checkout)


def test_packages_that_do_not_fit_together(checkout):
    checkout.lock("tiny 1.0", "transformers", "picky")

    said = fails(checkout)

    assert "picky 1.0 has requirement tiny>=2, but you have tiny 1.0" in said
    assert checkout.report["probes"] == {"consistent": "failed"}


def test_a_new_environment_that_does_not_work(checkout):
    checkout.lock("tiny 1.0", "broken")

    assert "ImportError: no luck" in fails(checkout)
    assert checkout.report["probes"]["works"] == "failed"


@pytest.mark.skipif(sys.platform != "linux", reason="the builds differ on Linux only")
def test_no_cpu_build_of_torch(checkout, tmp_path):
    for wheel in checkout.wheels.iterdir():
        if "+cpu" not in wheel.name:
            shutil.copy(wheel, tmp_path)

    # Without the Pythons of pyenv and uv, which it would look at one by one for a hint.
    elsewhere = {"PYENV_ROOT": str(tmp_path), "XDG_DATA_HOME": str(tmp_path), "PATH": "/nowhere"}
    said = fails(checkout, "--recreate", PIP_FIND_LINKS=str(tmp_path), **elsewhere)

    assert "No cpu build of torch" in said
    assert "nox -s setup -- --torch cuda" in said


def test_a_python_that_is_not_here(checkout):
    assert "No Python 3.2 found: FoloVLLM needs Python >=3.10" in fails(checkout, "--python", "3.2")


def test_an_environment_of_someone_else_is_left_alone(new_checkout, tmp_path_factory):
    link = new_checkout.root / ".venv"
    link.mkdir()
    (link / "mine").touch()

    code, said = new_checkout.set_up()

    assert code == 1
    assert "was not made by this set-up" in said
    assert (link / "mine").exists()
    shutil.rmtree(link)
    link.symlink_to(tmp_path_factory.mktemp("elsewhere"))

    assert "was not made by this set-up" in new_checkout.set_up()[1]
    assert link.exists()
