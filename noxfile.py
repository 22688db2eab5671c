"""What can be done with this checkout: `nox -l` lists it, `nox -s SESSION` does it.

Every session but `lock` and `minimums` works in the one environment `.venv`, which the set-up in
`env/` keeps as the lock says; with nothing to change that takes a second.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nox

ROOT = Path(__file__).parent
sys.path.insert(0, str(ROOT))

from env import setup as environment  # noqa: E402
from env.errors import SetupError  # noqa: E402

nox.needs_version = ">=2025.2.9"


@nox.session(venv_backend="none", default=False)
def setup(session: nox.Session) -> None:
    """Make or refresh .venv [-- --python 3.12] [-- --torch cpu|cuda|auto] [-- --recreate]."""
    _set_up(session, session.posargs)


@nox.session(venv_backend="none", default=False)
def demo(session: nox.Session) -> None:
    """From nothing to a generated answer, with the time that each part takes."""
    _run(session, "folovllm", "demo", *session.posargs)


@nox.session(venv_backend="none", default=False)
def verify(session: nox.Session) -> None:
    """Check that the environment works and a real model answers [-- --json FILE]."""
    _run(session, "folovllm", "verify", *session.posargs)


@nox.session(venv_backend="none")
def lint(session: nox.Session) -> None:
    """Check formatting and style."""
    _run(session, "ruff", "format", "--check", ".")
    _run(session, "ruff", "check", ".")


@nox.session(venv_backend="none")
def typecheck(session: nox.Session) -> None:
    """Check types, strictly."""
    _run(session, "mypy", *session.posargs)


@nox.session(venv_backend="none")
def tests(session: nox.Session) -> None:
    """Run the test suite [-- pytest's arguments]."""
    _run(session, "python", "-m", "pytest", *session.posargs)


@nox.session(venv_backend="none", default=False)
def docs(session: nox.Session) -> None:
    """Generate the reference pages from the code."""
    _run(session, "python", "docs/generate_reference.py", *session.posargs)


def _set_up(session: nox.Session, arguments: list[str] | None = None) -> None:
    """Make `.venv` what it has to be, or end the session saying why not."""
    try:
        environment.run(ROOT, arguments or [])
    except SetupError as error:
        session.error(f"\n{error}\n")


def _run(session: nox.Session, tool: str, *arguments: str) -> None:
    """Run a tool of `.venv`, which is set up first."""
    _set_up(session)
    session.run(str(ROOT / ".venv" / "bin" / tool), *arguments, external=True)
