"""What can be done with this checkout: `nox -l` lists it, `nox -s SESSION` does it.

Every session but `lock` and `minimums` works in the one environment `.venv`, which the set-up in
`env/` keeps as the lock says; with nothing to change that takes a second.
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import nox

ROOT = Path(__file__).parent
sys.path.insert(0, str(ROOT))

from env import (  # noqa: E402
    accelerators,
    benchmarks,
    interpreters,
    locking,
    minimums as minimum,
    setup as environment,
    uv,
)
from env.errors import SetupError  # noqa: E402
from env.plan import LOCK as LOCK_NAME  # noqa: E402
from env.project import Project  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

LOCK = ROOT / LOCK_NAME

# A process a core, which gets one file after the other; `-n 0` behind `--` is none.
PYTEST = ("-m", "pytest", "-n", "auto", "--dist", "loadfile", "--no-loadscope-reorder")
# Containers set it, and each of the tests' hundred processes would compile what it imports.
COMPILED_ONCE = {"PYTHONDONTWRITEBYTECODE": ""}

nox.needs_version = ">=2025.2.9"


@nox.session(venv_backend="none", default=False)
def setup(session: nox.Session) -> None:
    """Make or refresh .venv [-- --python 3.12] [-- --torch cpu|cuda] [-- --with flash-attn]."""
    with _explained(session):
        environment.run(ROOT, session.posargs)


@nox.session(venv_backend="none", default=False)
def demo(session: nox.Session) -> None:
    """From nothing to a generated answer, with the time that each part takes."""
    _run(session, "folovllm", "demo", *session.posargs)


@nox.session(venv_backend="none", default=False)
def verify(session: nox.Session) -> None:
    """Check that the environment works and a real model answers [-- --json FILE]."""
    _run(session, "folovllm", "verify", *session.posargs)


@nox.session(venv_backend="none", default=False)
def verify_cuda(session: nox.Session) -> None:
    """Judge CUDA: ends with 0 well, 1 broken, 2 degraded, 3 no CUDA device [-- --json FILE]."""
    with _explained(session):
        environment.run(ROOT)
    command = [str(ROOT / ".venv" / "bin" / "folovllm"), "verify-cuda", *session.posargs]
    if code := subprocess.run(command, check=False).returncode:
        sys.exit(code)  # nox would end with 1, whatever the code


@nox.session(venv_backend="none", default=False)
def bench(session: nox.Session) -> None:
    """Measure how fast this machine loads and runs models [-- load] [-- --compare last]."""
    with _explained(session):
        asked = benchmarks.parse(ROOT, session.posargs)
    new = None
    if asked.measure is not None:
        before = benchmarks.runs(ROOT)
        (ROOT / benchmarks.RESULTS).mkdir(exist_ok=True)
        try:
            _run(session, "python", "-m", "pytest", *asked.measure)
        finally:  # also of what was interrupted
            new = benchmarks.collect(ROOT, before)
            if new is not None:
                _run(session, "folovllm", "bench", "report", str(new))
    if report := asked.compared_report(new):
        _run(session, "folovllm", "bench", *report, silent=True)
    if comparison := asked.comparison(new):
        _run(session, "folovllm", "bench", *comparison)


@nox.session(venv_backend="none")
def lint(session: nox.Session) -> None:
    """Check formatting and style."""
    _run(session, "ruff", "format", "--check", ".")
    _run(session, "ruff", "check", ".")


@nox.session(venv_backend="none")
def typecheck(session: nox.Session) -> None:
    """Check types, strictly."""
    _run(session, "mypy")


@nox.session(venv_backend="none")
def tests(session: nox.Session) -> None:
    """Run the test suite, in several processes [-- pytest's arguments]."""
    _run(session, "python", *PYTEST, *session.posargs, env=COMPILED_ONCE)


@nox.session(venv_backend="none", default=False)
def docs(session: nox.Session) -> None:
    """Generate the reference pages from the code."""
    _run(session, "python", "docs/generate_reference.py", *session.posargs)


@nox.session(default=False, reuse_venv=True)
def lock(session: nox.Session) -> None:
    """Make the locks in env/ anew [-- --until 2026-11-14: from the releases before then]."""
    session.install(uv.PINNED)
    with _explained(session):
        until = locking.cut_off(session.posargs, LOCK)
    apart = {ROOT / each.lock: ROOT / each.asked for each in accelerators.APART}
    for target, asked in {LOCK: None, **apart}.items():
        # Into a new file: uv would prefer the versions that it finds in the old one.
        new = Path(session.create_tmp()) / target.name
        source = asked and asked.relative_to(ROOT)
        session.run(*locking.lock_command(until, new, source), env=locking.index_variables())
        new.replace(target)


@nox.session(default=False, reuse_venv=True)
def minimums(session: nox.Session) -> None:
    """Run the tests with the oldest versions that pyproject.toml allows [-- pytest's arguments]."""
    session.install(uv.PINNED)
    with _explained(session):
        until = locking.cut_off([], LOCK)
        base = interpreters.choose(None, None, Project(ROOT).requires_python)
        oldest = ROOT / ".venvs" / "minimums.txt"
        resolve = locking.minimums_command(until, base.version, oldest)
        session.run(*resolve, env=locking.index_variables())
        python = minimum.build(ROOT, oldest, base.executable)
    session.run(str(python), *PYTEST, *session.posargs, external=True, env=COMPILED_ONCE)


def _run(
    session: nox.Session,
    tool: str,
    *arguments: str,
    silent: bool = False,
    env: dict[str, str] | None = None,
) -> None:
    """Run a tool of `.venv`, which is set up first; silent unless it fails where asked for."""
    with _explained(session):
        environment.run(ROOT)
    command = str(ROOT / ".venv" / "bin" / tool)
    # On Ctrl-C there are results to be written.
    session.run(command, *arguments, env=env, external=True, interrupt_timeout=30, silent=silent)


@contextmanager
def _explained(session: nox.Session) -> Iterator[None]:
    """End the session with the message of an error that a user can act on."""
    try:
        yield
    except SetupError as error:
        session.error(f"\n{error}\n")
