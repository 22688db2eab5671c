"""Makes `.venv` what it has to be: the whole of `nox -s setup`.

Everything is built beside the environment in use, which is exchanged in one step at the end; so
whatever happens before that, the old environment still works.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

from env import accelerators, plan as planning, request as asking
from env.accelerate import Accelerating
from env.apart import refresh as refresh_apart
from env.build import Build
from env.errors import SetupError
from env.process import ending_cleanly
from env.report import Report
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
    before = workspace.used
    with ending_cleanly(), workspace.locked():
        try:
            _refresh(workspace, request, report)
        except BaseException as error:
            report.failed(error)
            print(f"Set-up {report.outcome}: {_state(workspace, before)}.", flush=True)
            raise
        finally:
            report.write(workspace.report)


def _state(workspace: Workspace, before: Path | None) -> str:
    if not workspace.link.exists():
        return "there is no .venv yet"
    if workspace.used != before:
        return ".venv is new and works, without what failed"
    return ".venv is as it was"


def _refresh(workspace: Workspace, request: asking.Request, report: Report) -> None:
    workspace.check_link()
    workspace.sweep()
    record = workspace.record()
    plan = planning.make(workspace.root, request, record)
    report.python = {"version": plan.python.version, "executable": plan.python.executable}
    with report.step("check") as step:
        report.reason = planning.reason_to_build(plan, request, record, workspace)
        step.detail = f"building .venv: {report.reason}" if report.reason else ".venv is up to date"
    if not request.dry_run:
        _make(workspace, request, plan, record, report)
        _write_settings(workspace.root)
    _accelerate(workspace, request, plan, report)
    if request.dry_run:
        report.outcome = "planned"
        print("Nothing was changed (--dry-run)", flush=True)


def _make(
    workspace: Workspace,
    request: asking.Request,
    plan: Plan,
    record: dict[str, Any] | None,
    report: Report,
) -> None:
    """Build `.venv` if there is a reason to."""
    if report.reason:
        kept = [
            name for name in (record or {}).get("accelerators", {}) if name not in request.without
        ]
        _build(workspace, request, plan, kept, report)
    elif record:
        report.torch, report.installed = record["torch"], record["installed"]
    report.outcome = "built" if report.reason else "up to date"


def _build(
    workspace: Workspace, request: asking.Request, plan: Plan, kept: list[str], report: Report
) -> None:
    workspace.log.write_bytes(b"")
    accelerating = Accelerating(workspace, request, report)
    with workspace.new_environment() as place:
        record = Build(workspace, plan, report, place).run()
        record["accelerators"] = {}
        for wanted in accelerators.INSIDE:
            candidate = accelerating.consider(wanted, place) if wanted.name in kept else None
            if candidate:
                record = accelerating.add(candidate, place, record)
        workspace.switch(place, record)
    report.seconds["total"] = round(sum(report.seconds.values()), 3)
    print(f"  {'total':<12}{report.seconds['total']:7.1f} s")
    print("Ready. Use it with: source .venv/bin/activate", flush=True)


def _accelerate(workspace: Workspace, request: asking.Request, plan: Plan, report: Report) -> None:
    """Add the accelerators that are asked for, each by itself; take out those apart."""
    for apart in accelerators.APART:
        if apart.name in request.accelerators:
            refresh_apart(workspace.root, apart, plan, request, report)
        elif apart.name in request.without and not request.dry_run:
            Workspace(workspace.root, apart.name).remove()
            report.say(apart.name, "removed", f".venvs/{apart.name} is not there")
    for wanted in accelerators.INSIDE:
        if wanted.name in request.accelerators:
            _add(workspace, request, wanted, report)


def _add(
    workspace: Workspace, request: asking.Request, wanted: accelerators.Inside, report: Report
) -> None:
    """Add an accelerator to a copy of `.venv`, and make that the one in use."""
    record = workspace.record()
    if record is None or (request.dry_run and report.reason):
        report.say(wanted.name, "not planned", "that is possible once .venv is built")
        return
    if wanted.name in record.get("accelerators", {}):
        report.say(wanted.name, "up to date", record["accelerators"][wanted.name])
        return
    accelerating = Accelerating(workspace, request, report)
    candidate = accelerating.consider(wanted, workspace.link)
    if candidate and not request.dry_run:
        with workspace.new_environment() as place:
            workspace.clone(place)
            workspace.switch(place, accelerating.add(candidate, place, record))
        report.outcome = "built"


def _write_settings(root: Path) -> None:
    """Give the user a `.env` to edit, all of it commented out, if there is none."""
    target = root / ".env"
    if not target.exists():
        shutil.copyfile(root / "env" / ".env.example", target)
        print("Wrote .env: settings to edit, each commented out")
