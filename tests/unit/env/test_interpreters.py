"""Which Python the environment is built with."""

import sys

import pytest
from packaging.specifiers import SpecifierSet

from env import interpreters
from env.errors import SetupError

RUNNING = "{}.{}".format(*sys.version_info[:2])
ANY = SpecifierSet(">=3.10")


@pytest.mark.parametrize(("wanted", "kept"), [(None, None), (RUNNING, None), (None, "/gone")])
def test_the_one_that_runs_is_taken_and_outside_of_any_environment(wanted, kept):
    chosen = interpreters.choose(wanted, kept, ANY)

    assert chosen.is_version(RUNNING)
    # An environment must not hang on this one.
    assert not chosen.executable.startswith(sys.prefix) or sys.prefix == sys.base_prefix


def test_a_version_is_not_the_beginning_of_another():
    assert interpreters.Interpreter("python", "3.10.2").is_version("3.10")
    assert not interpreters.Interpreter("python", "3.10.2").is_version("3.1")


def test_one_that_is_not_supported_is_refused_with_those_that_are():
    with pytest.raises(SetupError, match=r"is not supported: FoloVLLM needs Python >=99") as caught:
        interpreters.choose(None, None, SpecifierSet(">=99"))
    assert "None was found here" in str(caught.value)

    with pytest.raises(SetupError, match=r"No Python 3\.2 found") as caught:
        interpreters.choose("3.2", None, ANY)
    assert RUNNING in str(caught.value)
    assert "nox -s setup -- --python" in str(caught.value)


def test_what_is_no_python_is_passed_over(tmp_path, monkeypatch):
    fake = tmp_path / "python3.12"
    fake.write_text("#!/bin/sh\necho pyenv: python3.12: command not found\nexit 127\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))

    assert interpreters.usable_versions(ANY) == [RUNNING]
