"""Accelerators with an environment of their own: `.venv` has no part in it."""

import pytest

WITH = ("--with", "auto-gptq")


@pytest.fixture
def apart(checkout):
    """A checkout with such an environment, which is taken out at the end."""
    code, said = checkout.set_up(*WITH)
    assert code == 0, said
    checkout.apart_said = said
    yield checkout
    checkout.lock("auto_gptq", file="auto-gptq.lock")
    code, said = checkout.set_up("--without", "auto-gptq")
    assert code == 0, said
    assert not list((checkout.root / ".venvs").glob("auto-gptq*"))


def test_is_made_kept_and_made_anew_only_if_it_works(apart):
    link = apart.root / ".venvs" / "auto-gptq"
    made = link.readlink()
    said = apart.apart_said
    assert "AutoGPTQ is archived" in said
    assert "FoloVLLM itself does not read GPTQ checkpoints yet" in said
    assert "source .venvs/auto-gptq/bin/activate" in said
    assert str(link) in (link / "bin" / "activate").read_text()
    (package,) = link.glob("lib/python*/site-packages/auto_gptq")
    assert not (package.parent / "folovllm.pth").exists()
    report = apart.report["accelerators"]["auto-gptq"]
    assert report["outcome"] == "installed"
    assert report["probes"]["works"] == "it packs"
    assert report["installed"]["auto-gptq"] == "0.7.1"
    assert report["torch"]["variant"] == "cpu"
    assert report["seconds"]["packages"] > 0

    code, said = apart.set_up(*WITH)
    assert code == 0, said
    assert "auto-gptq: up to date: in .venvs/auto-gptq" in said

    apart.lock("wrong", file="auto-gptq.lock")
    code, said = apart.set_up(*WITH, "--dry-run")
    assert code == 0, said
    assert "auto-gptq: planned: 1 packages, as locked in env/auto-gptq.lock" in said

    code, said = apart.set_up(*WITH)
    assert code == 1
    assert "RuntimeError: no" in said
    assert apart.report["accelerators"]["auto-gptq"]["outcome"] == "failed"
    assert apart.report["accelerators"]["auto-gptq"]["probes"]["works"] == "failed"
    assert link.readlink() == made
    assert len(list((apart.root / ".venvs").glob("auto-gptq-*"))) == 1


def test_an_environment_of_someone_else_is_left_alone(checkout):
    link = checkout.root / ".venvs" / "auto-gptq"
    link.mkdir()

    code, said = checkout.set_up(*WITH)

    link.rmdir()
    assert code == 1
    assert f"{link} was not made by this set-up" in said
