"""What the environment has to be, and whether the one in place already is that."""

from __future__ import annotations

import hashlib
import json
import subprocess
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from env import interpreters, torch_variant
from env.process import clean_environment
from env.project import Project

if TYPE_CHECKING:
    from pathlib import Path

    from env.accelerators import Apart
    from env.interpreters import Interpreter
    from env.request import Request
    from env.torch_variant import Wish
    from env.workspace import Workspace

LOCK = "env/requirements.lock"
INSIDE = "env/inside.py"
_PLACE, _PYTHON, _TORCH = "the checkout's place", "Python", "the torch build"


@dataclass(frozen=True)
class Plan:
    """The environment to have. `inputs`: everything that determines it, by name."""

    project: Project
    python: Interpreter
    torch_asked: str
    torch: Wish
    torch_file: Path
    inputs: dict[str, str]


def make(root: Path, request: Request, record: dict[str, Any] | None) -> Plan:
    """Plan the environment; what isn't asked for stays as the one in place (`record`) has it.

    Raises:
        SetupError: there is no such Python.
    """
    project = Project(root)
    kept = record or {"python": {"executable": None}, "torch": {"asked": "auto"}}
    python = interpreters.choose(
        request.python, kept["python"]["executable"], project.requires_python
    )
    asked = request.torch or kept["torch"]["asked"]
    wanted = torch_variant.wish(asked, torch_variant.nvidia_gpu() if asked == "auto" else None)
    file = root / "env" / f"torch-{wanted.variant}.txt"
    inputs = {
        _PLACE: str(root),
        _PYTHON: python.version,
        _TORCH: f"{wanted.variant} {_digest(file)}",
        LOCK: _digest(root / LOCK),
        "pyproject.toml": hashlib.sha256(
            json.dumps(project.determining, sort_keys=True).encode()
        ).hexdigest(),
    }
    return Plan(project, python, asked, wanted, file, inputs)


def reason_to_build(
    plan: Plan, request: Request, record: dict[str, Any] | None, workspace: Workspace
) -> str | None:
    """Say why the environment in place won't do; None if it will."""
    if record is None:
        return "there is none yet"
    if request.recreate:
        return "asked to with --recreate"
    known = record["inputs"]
    changed = [name for name, value in plan.inputs.items() if known.get(name) != value]
    if changed:
        return f"{', '.join(changed)} changed"
    dropped = [name for name in request.without if name in record.get("accelerators", {})]
    if dropped:
        return f"asked to with --without {' '.join(dropped)}"
    installed = installed_in(workspace.link, workspace.root)
    if installed is None:
        return "its Python does not run"
    # Packages that the user added are theirs; those of the set-up have to be as it left them.
    moved = [name for name, v in record["installed"].items() if installed.get(name) != v]
    return f"changed since: {', '.join(moved)}" if moved else None


def for_apart(plan: Plan, root: Path, apart: Apart) -> Plan:
    """Plan the environment of an accelerator apart: the same Python and torch, its own lock."""
    own = {name: plan.inputs[name] for name in (_PLACE, _PYTHON, _TORCH)}
    return replace(plan, inputs={**own, apart.lock: _digest(root / apart.lock)})


def installed_in(environment: Path, root: Path) -> dict[str, str] | None:
    """Return the versions installed in an environment, by name; None if its Python fails."""
    command = [str(environment / "bin" / "python"), "-I", str(root / INSIDE), "installed"]
    try:
        said = subprocess.run(
            command, capture_output=True, text=True, check=True, env=clean_environment()
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    found: dict[str, str] = json.loads(said.stdout)
    return found


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "missing"
