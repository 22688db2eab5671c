"""Makes the environment of an accelerator that can't live in `.venv`: `.venvs/NAME`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from env import lockfile, plan as planning
from env.accelerate import probe
from env.accelerators import TODAY
from env.build import Build
from env.report import Report
from env.workspace import Workspace

if TYPE_CHECKING:
    from pathlib import Path

    from env.accelerators import Apart
    from env.plan import Plan
    from env.request import Request

# AutoGPTQ's source distribution: without the kernels, which only a CUDA toolkit can build and
# only torch 2.2 can load. What is left is Python.
_VARIABLES = {"BUILD_CUDA_EXT": "0"}


class ApartBuild(Build):
    """The build of such an environment: its own lock and torch, without FoloVLLM."""

    def __init__(
        self, workspace: Workspace, plan: Plan, report: Report, place: Path, wanted: Apart
    ) -> None:
        """Take what a build takes, and the accelerator."""
        super().__init__(workspace, plan, report, place, wanted.lock, _VARIABLES)
        self.workspace, self.prompt = workspace, wanted.name

    def _check_lock(self) -> None:
        # Nothing in pyproject.toml asks for what is in it.
        self.locked = lockfile.read(self.root / self.lock, self.plan.python.version)

    def _install_project(self) -> None:
        """Leave FoloVLLM out: it needs other versions."""

    def _try_out(self) -> str:
        return probe(self.prompt, self.place, self.workspace)


def refresh(root: Path, wanted: Apart, plan: Plan, request: Request, report: Report) -> None:
    """Make or refresh the environment of an accelerator, and note in `report` what was done.

    Raises:
        SetupError: it can't be done; the one that was there is as it was.
    """
    workspace = Workspace(root, wanted.name)
    workspace.check_link()
    workspace.sweep()
    record, plan = workspace.record(), planning.for_apart(plan, root, wanted)
    reason = planning.reason_to_build(plan, request, record, workspace)
    where = f".venvs/{wanted.name}"
    if not reason:
        report.say(wanted.name, "up to date", f"in {where}")
    elif request.dry_run:
        count = len(lockfile.read(root / wanted.lock, plan.python.version))
        what = f"{count} packages, as locked in {wanted.lock}, and torch ({plan.torch.variant})"
        report.say(wanted.name, "planned", f"{what} in {where}: {reason}")
    else:
        print(f"{wanted.note}\n{TODAY}\nBuilding {where}: {reason}", flush=True)
        _build(workspace, wanted, plan, report)
        use = f"{where}/bin/python, or: source {where}/bin/activate"
        report.say(wanted.name, "installed", use)


def _build(workspace: Workspace, wanted: Apart, plan: Plan, report: Report) -> None:
    own = Report(asked={})
    report.accelerator(wanted.name, "failed")  # until it is in use
    try:
        with workspace.new_environment() as place:
            workspace.switch(place, ApartBuild(workspace, plan, own, place, wanted).run())
    finally:
        parts = ("torch", "probes", "seconds", "installed")
        found = {key: value for key, value in asdict(own).items() if key in parts}
        report.accelerators[wanted.name].update(found)
