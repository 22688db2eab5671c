"""Makes `.venv` what it has to be: the whole of `nox -s setup`.

Everything is built beside the environment in use, which is exchanged in one step at the end; so
whatever happens before that, the old environment still works.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from env import plan as planning, request as asking
from env.build import Build
from env.errors import SetupError
from env.process import ending_cleanly
from env.report import Report
from env.torch_variant import NEEDED_SPACE
from env.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from env.plan import Plan


def run(root: Path, arguments: Sequence[str] = ()) -> None:
    """Make or refresh `root/.venv`.

    Args:
        root: the checkout.
        arguments: what stands after `nox -s setup --`.

    Raises:
        SetupError: it can't be done; the environment that was there is as it was.
    """
    request = asking.parse(arguments)
    try:
        _run(Workspace(root), request)
    except OSError as error:
        raise SetupError(
            f"{error}\nCheck that {root} can be written to and that its disk has space."
        ) from error


def _run(workspace: Workspace, request: asking.Request) -> None:
    report = Report.of(request)
    with ending_cleanly(), workspace.locked():
        try:
            _refresh(workspace, request, report)
        except BaseException as error:
            report.failed(error)
            state = ".venv is as it was" if workspace.link.exists() else "there is no .venv yet"
            print(f"Set-up {report.outcome}: {state}.", flush=True)
            raise
        finally:
            report.write(workspace.report)


def _refresh(workspace: Workspace, request: asking.Request, report: Report) -> None:
    workspace.check_link()
    workspace.sweep()
    record = workspace.record()
    plan = planning.make(workspace.root, request, record)
    report.python = {"version": plan.python.version, "executable": plan.python.executable}
    with report.step("check") as step:
        report.reason = planning.reason_to_build(plan, request, record, workspace.root)
        step.detail = f"building .venv: {report.reason}" if report.reason else ".venv is up to date"
    if report.reason:
        _build(workspace, plan, report)
    elif record:
        report.torch, report.installed = record["torch"], record["installed"]
    report.outcome = "built" if report.reason else "up to date"
    _write_settings(workspace.root)


def _build(workspace: Workspace, plan: Plan, report: Report) -> None:
    _require_space(workspace.folder, plan)
    workspace.log.write_bytes(b"")
    with workspace.new_environment() as place:
        record = Build(workspace, plan, report, place).run()
        workspace.switch(place, record)
    report.seconds["total"] = round(sum(report.seconds.values()), 3)
    print(f"  {'total':<12}{report.seconds['total']:7.1f} s")
    print("Ready. Use it with: source .venv/bin/activate", flush=True)


def _require_space(folder: Path, plan: Plan) -> None:
    needed, free = NEEDED_SPACE[plan.torch.variant], shutil.disk_usage(folder).free
    if free < needed:
        raise SetupError(
            f"Only {free / 1e9:.1f} GB are free at {folder}; an environment with the "
            f"{plan.torch.variant} build of torch needs {needed / 1e9:.0f} GB while it is built.\n"
            "Free some space, then run the set-up again."
        )


def _write_settings(root: Path) -> None:
    """Give the user a `.env` to edit, all of it commented out, if there is none."""
    target = root / ".env"
    if not target.exists():
        shutil.copyfile(root / "env" / ".env.example", target)
        print("Wrote .env: settings to edit, each commented out")
