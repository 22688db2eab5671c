"""Adds an accelerator to an environment: preflight, plan, install, probe.

What it adds may not change anything that is there. It works on a copy of `.venv`, or on a new
environment on its way to become `.venv`; so whatever fails, the one in use is as it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from env import preflight, process
from env.errors import SetupError
from env.installer import Installer, ToolError, explain
from env.plan import installed_in

if TYPE_CHECKING:
    from pathlib import Path

    from env.accelerators import Inside
    from env.preflight import Facts
    from env.report import Report
    from env.request import Request
    from env.workspace import Workspace

PROBES = "env/probes.py"


@dataclass(frozen=True)
class Candidate:
    """An accelerator that can be added: what pip would install, by name, and how."""

    wanted: Inside
    facts: Facts
    packages: dict[str, str]
    compiles: bool

    def __str__(self) -> str:
        """Return the plan in one line."""
        names = ", ".join(f"{name} {version}" for name, version in sorted(self.packages.items()))
        return f"{'compiling and ' if self.compiles else ''}adding {names}"


class Accelerating:
    """Adds accelerators to the environments of one set-up."""

    def __init__(self, workspace: Workspace, request: Request, report: Report) -> None:
        """Take the workspace, what was asked, and the report that follows."""
        self.workspace, self.request, self.report = workspace, request, report
        self.constraints = workspace.folder / "constraints.txt"

    def consider(self, wanted: Inside, place: Path) -> Candidate | None:
        """Say what adding it to the environment at `place` takes; None if it is skipped.

        Raises:
            SetupError: it would change what is installed, or it is skipped and required.
        """
        with self.report.step(f"{wanted.name}?") as step:
            decision = self._decide(wanted, place)
            skipped = isinstance(decision, str)
            step.detail = f"skipped: {decision}" if skipped else str(decision)
        if isinstance(decision, Candidate):
            plan, compiles = decision.packages, decision.compiles
            self.report.accelerator(wanted.name, "planned", plan=plan, compile=compiles)
            return decision
        self.report.accelerator(wanted.name, "skipped", why=decision)
        if self.request.require:
            raise SetupError(f"{wanted.name} is required (--require) and can't be had: {decision}")
        return None

    def _decide(self, wanted: Inside, place: Path) -> Candidate | str:
        """Return what can be added, or why nothing can."""
        facts = preflight.look(place, self.workspace.root)
        why_not = preflight.why_not(wanted, facts)
        if why_not:
            return why_not
        packages = self._resolve(wanted, place, facts, compiles=False)
        if packages is not None:
            return Candidate(wanted, facts, packages, compiles=False)
        why_not = self._why_not_compile(wanted, facts)
        if why_not:
            return why_not
        packages = self._resolve(wanted, place, facts, compiles=True)
        if packages is not None:
            return Candidate(wanted, facts, packages, compiles=True)
        return f"nobody offers {wanted.requirement}, not even its source"

    def add(self, candidate: Candidate, place: Path, record: dict[str, Any]) -> dict[str, Any]:
        """Install and try out what was considered, in the environment at `place`.

        Args:
            candidate: what was considered.
            place: a folder that is not in use yet.
            record: what the environment was made from; returned with what was added.

        Raises:
            SetupError: it can't be installed, changes something, or computes wrongly.
        """
        name, facts = candidate.wanted.name, candidate.facts
        self.report.accelerator(name, "failed")  # until it has proved good
        before = installed_in(place, self.workspace.root) or {}
        pip = Installer(place / "bin" / "python", self.workspace.log, facts.build_variables)
        if candidate.compiles:
            self._compile(candidate, pip)
        with self.report.step(name) as step:
            pins = [f"{each}=={version}" for each, version in candidate.packages.items()]
            options = self._options(name, facts, compiles=False)
            self._write_constraints(before)
            pip.install(f"Installing {name}", *options, *pins)
            step.detail = f"{len(pins)} packages added"
        with self.report.step(f"{name} fits", probe=True) as step:
            step.detail = pip.check()
            self.report.installed = after = self._check_unchanged(before, place)
        with self.report.step(f"{name} works", probe=True) as step:
            step.detail = probe(name, place, self.workspace)
        version = candidate.packages[name]
        self.report.accelerator(name, "installed", version=version, probe=step.detail)
        added = {**record.get("accelerators", {}), name: version}
        return {**record, "installed": after, "accelerators": added}

    def _resolve(
        self, wanted: Inside, place: Path, facts: Facts, *, compiles: bool
    ) -> dict[str, str] | None:
        """Return what pip would add; None if nobody offers it in that form."""
        pip = Installer(place / "bin" / "python", self.workspace.log, facts.build_variables)
        installed = installed_in(place, self.workspace.root) or {}
        self._write_constraints(installed)
        options = self._options(wanted.name, facts, compiles=compiles)
        doing, report = f"Planning {wanted.name}", self.workspace.folder / "plan.json"
        try:
            return pip.resolve(doing, report, *options, wanted.requirement)
        except ToolError as error:
            if error.lacks(wanted.name):
                return None
            if not error.conflicts:
                raise
            unbound = [each for each in options if each not in ("-c", str(self.constraints))]
            packages = pip.resolve(doing, report, *unbound, wanted.requirement)
            raise self._refuse(wanted, packages, installed) from error

    def _refuse(
        self, wanted: Inside, packages: dict[str, str], installed: dict[str, str]
    ) -> SetupError:
        changes = {
            name: f"{installed[name]} -> {version}"
            for name, version in packages.items()
            if name in installed
        }
        self.report.accelerator(wanted.name, "refused", would_change=changes)
        listed = "\n".join(f"  {name} {change}" for name, change in sorted(changes.items()))
        return SetupError(
            f"{wanted.name} is not installed, because it would change what .venv has:\n{listed}\n"
            f"A release or a wheel of {wanted.name} that fits these versions can be had from a\n"
            "folder of wheels: PIP_FIND_LINKS=<folder>"
        )

    def _why_not_compile(self, wanted: Inside, facts: Facts) -> str | None:
        """Say why there being no wheel is the end of it; None if it can be compiled."""
        nobody = (
            f"where pip looks there is no wheel of {wanted.requirement} for "
            f"Python {facts.python} and torch {facts.torch}"
        )
        if not wanted.compiles:
            return nobody
        missing = preflight.why_not_compile(facts)
        if missing:
            return f"{nobody}, and it can't be compiled: {missing}"
        if not self.request.build:
            return (
                f"{nobody}. Compiling it takes up to an hour: "
                f"nox -s setup -- --with {wanted.name} --build"
            )
        return None

    def _compile(self, candidate: Candidate, pip: Installer) -> None:
        name = candidate.wanted.name
        with self.report.step(f"{name} build") as step:
            variables = candidate.facts.build_variables
            target = self._wheels(name, candidate.facts)
            pin = f"{name}=={candidate.packages[name]}"
            pip.build(f"Compiling {name}", target, "--no-binary", name, pin)
            step.detail = (
                f"for compute capability {variables['TORCH_CUDA_ARCH_LIST']}, "
                f"{variables['MAX_JOBS']} jobs; the wheel is kept in {target}"
            )

    def _options(self, name: str, facts: Facts, *, compiles: bool) -> list[str]:
        """Return pip's options: wheels only, but perhaps for the accelerator; all else stays."""
        options = ["--only-binary", ":all:", "-c", str(self.constraints)]
        if compiles:
            return [*options, "--no-binary", name, "--no-build-isolation"]
        wheels = self._wheels(name, facts)
        return [*options, "--find-links", str(wheels)] if wheels.is_dir() else options

    def _wheels(self, name: str, facts: Facts) -> Path:
        """Return the folder of wheels compiled here; each torch and GPU needs its own."""
        major, minor = facts.capability or (0, 0)
        return self.workspace.folder / "wheels" / f"{name}-torch-{facts.torch}-sm{major}{minor}"

    def _write_constraints(self, installed: dict[str, str]) -> None:
        lines = (f"{name}=={version}\n" for name, version in installed.items())
        self.constraints.write_text("".join(lines), encoding="utf-8")

    def _check_unchanged(self, before: dict[str, str], place: Path) -> dict[str, str]:
        """Return what is installed now, if that is no other version of what was there before."""
        after = installed_in(place, self.workspace.root) or {}
        moved = [
            f"{name} {version}" for name, version in before.items() if after.get(name) != version
        ]
        if moved:
            raise SetupError(f"Pip changed what it was told to keep: {', '.join(moved)}")
        return after


def probe(name: str, place: Path, workspace: Workspace) -> str:
    """Try out an accelerator with the Python of the environment at `place`; return what it says.

    Raises:
        SetupError: it does not import, or computes wrongly.
    """
    command = [str(place / "bin" / "python"), "-I", str(workspace.root / PROBES), name]
    try:
        said = process.run(command, workspace.log)
    except process.CommandFailed as failure:
        raise explain(f"Trying out {name}", failure.output, workspace.log) from failure
    return said.strip().splitlines()[-1]  # what it imports may be talkative
