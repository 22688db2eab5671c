"""Reading the lock and comparing it with pyproject.toml; and the lock of this repository."""

from pathlib import Path

import pytest
from packaging.requirements import Requirement

from env import lockfile, locking
from env.errors import SetupError
from env.project import Project

ROOT = Path(__file__).parents[3]
LOCK = ROOT / "env" / "requirements.lock"

TEXT = """\
# nox -s lock -- --until 2026-11-14
numpy==2.2.6 ; python_full_version < '3.11' \\
    --hash=sha256:aa
    # via gguf
numpy==2.4.6 ; python_full_version >= '3.11' \\
    --hash=sha256:bb
Typing_Extensions==4.16.0 \\
    --hash=sha256:cc
"""


@pytest.fixture
def lock(tmp_path):
    path = tmp_path / "requirements.lock"
    path.write_text(TEXT)
    return path


@pytest.mark.parametrize(("python", "numpy"), [("3.10.13", "2.2.6"), ("3.11.0", "2.4.6")])
def test_read_takes_what_applies(lock, python, numpy):
    assert lockfile.read(lock, python) == {"numpy": numpy, "typing-extensions": "4.16.0"}


def test_read_without_a_lock(tmp_path):
    with pytest.raises(SetupError, match="Make one: nox -s lock"):
        lockfile.read(tmp_path / "requirements.lock", "3.11.7")


def test_read_an_empty_lock(lock):
    lock.write_text("")
    with pytest.raises(SetupError, match="locks nothing"):
        lockfile.read(lock, "3.11.7")


def test_every_requirement_that_does_not_fit_is_named(lock):
    names = ["numpy>=3", "absent", "torch>=2.11", "typing.extensions", "tomli; python_version<'3'"]
    requirements = [Requirement(name) for name in names]

    with pytest.raises(SetupError) as caught:
        lockfile.check_fits(lockfile.read(lock, "3.11.7"), requirements, "3.11.7", lock)

    missed = [line.strip() for line in str(caught.value).splitlines() if "the lock has" in line]
    assert missed == ["numpy>=3: the lock has 2.4.6", "absent: the lock has none"]


@pytest.mark.parametrize("python", ["3.10.0", "3.11.0", "3.12.0", "3.13.0"])
def test_this_lock_fits_this_pyproject(python):
    lockfile.check_fits(lockfile.read(LOCK, python), Project(ROOT).requirements, python, LOCK)


def test_this_lock_names_no_place_and_no_torch():
    text = LOCK.read_text()

    assert "://" not in text
    assert "--index" not in text
    assert "--find-links" not in text
    locked = lockfile.read(LOCK, "3.12.0")
    assert not [name for name in locked if name.startswith(("torch", "nvidia-", "cuda-"))]
    assert locked["triton"] == "3.7.1"  # the one that CUDA builds of this torch demand


def test_cut_off_is_the_one_given_else_the_one_recorded(lock):
    assert locking.cut_off(["--until", "2026-12-01"], lock) == "2026-12-01"
    assert locking.cut_off([], lock) == "2026-11-14"


@pytest.mark.parametrize(
    ("arguments", "text", "message"),
    [
        (["--until", "soon"], TEXT, "a date such as 2026-11-14, not 'soon'"),
        ([], "", "records no date"),
    ],
)
def test_no_cut_off(lock, arguments, text, message):
    lock.write_text(text)

    with pytest.raises(SetupError, match=message):
        locking.cut_off(arguments, lock)


def test_the_same_date_is_recorded_in_the_next_lock(lock):
    command = locking.lock_command("2026-11-14", lock)

    header = command[command.index("--custom-compile-command") + 1]
    lock.write_text(f"#    {header}\n")
    assert locking.cut_off([], lock) == "2026-11-14"


def test_what_is_asked_for_apart_is_locked_without_the_project(lock, tmp_path):
    command = locking.lock_command("2026-11-14", lock, tmp_path / "apart.in")

    assert str(tmp_path / "apart.in") in command
    assert "pyproject.toml" not in command
    assert "--group" not in command
    assert command[command.index("--no-emit-package") + 1] == "torch"
