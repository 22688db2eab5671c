"""`nox -s verify_cuda` ends as `folovllm verify-cuda` does, where nox knows 0 and 1 alone."""

import subprocess
from types import SimpleNamespace

import pytest


@pytest.fixture
def noxfile(monkeypatch):
    pytest.importorskip("nox")
    import noxfile

    monkeypatch.setattr(noxfile.environment, "run", lambda *arguments: None)
    return noxfile


@pytest.mark.parametrize("code", [0, 1, 2, 3])
def test_the_code_is_handed_on(code, noxfile, monkeypatch):
    ran = []

    def run(command, **options):
        ran.append(command)
        return subprocess.CompletedProcess(command, code)

    monkeypatch.setattr(noxfile.subprocess, "run", run)
    session = SimpleNamespace(posargs=["--json", "report.json"])
    ended = 0
    try:
        noxfile.verify_cuda(session)
    except SystemExit as leaving:
        ended = leaving.code
    assert ended == code
    assert ran[0][1:] == ["verify-cuda", "--json", "report.json"]
