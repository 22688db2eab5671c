"""What can be asked of the set-up."""

import pytest

from env.errors import SetupError
from env.request import Request, parse


def test_nothing_asked_is_left_open():
    assert parse([]) == Request(python=None, torch=None, recreate=False)


def test_everything_asked():
    arguments = ["--python", "3.12", "--torch", "cuda", "--recreate"]
    assert parse(arguments) == Request(python="3.12", torch="cuda", recreate=True)


def test_accelerators():
    asked = parse(
        ["--with", "flash_attn,gptqmodel", "--with", "flash-attn", "--build", "--require"]
    )
    assert asked.accelerators == ("flash-attn", "gptqmodel")
    assert (asked.build, asked.require, asked.dry_run) == (True, True, False)
    assert parse(["--without", "auto-gptq", "--dry-run"]).without == ("auto-gptq",)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("flash-atn", " Did you mean flash-attn?"),
        ("autogptq", " Did you mean auto-gptq?"),
        ("gptq-model", " Did you mean gptqmodel?"),
        ("xyz", ""),
        ("flash-attn-4", " Did you mean flash-attn?"),  # until the engine can use it
    ],
)
def test_an_unknown_accelerator(name, near):
    with pytest.raises(SetupError) as caught:
        parse(["--with", name])
    assert str(caught.value) == (
        f"There is no accelerator {name!r}.{near} There are: flash-attn, auto-gptq, gptqmodel."
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--with", "gptqmodel", "--without", "gptqmodel"], "asked for both with and without"),
        (["--python", "new"], "--python takes a version such as 3.12, not 'new'"),
        (["--python", "4"], "--python takes a version such as 3.12, not '4'"),
        (["--torch", "gpu"], "invalid choice: 'gpu'"),
        (["--bogus"], "unrecognized arguments: --bogus"),
        (["--recr"], "unrecognized arguments: --recr"),
        (["3.12"], "unrecognized arguments: 3.12"),
    ],
)
def test_what_can_not_be_asked(arguments, expected):
    with pytest.raises(SetupError, match="usage: nox -s setup --") as caught:
        parse(arguments)
    assert expected in str(caught.value)
