"""Builds one environment, step by step, and proves that it works."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

from env import interpreters, lockfile, process, torch_variant
from env.creation import create
from env.errors import SetupError
from env.installer import Installer, explain
from env.plan import INSIDE, LOCK, installed_in
from env.uv import Uv

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from env.plan import Plan
    from env.report import Report
    from env.torch_variant import Choice
    from env.workspace import Workspace


class Build:
    """The build of one environment at `place`, a folder of its own."""

    prompt = "folovllm"

    def __init__(
        self,
        workspace: Workspace,
        plan: Plan,
        report: Report,
        place: Path,
        lock: str = LOCK,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        """Take what to build, where, and the report that follows it.

        Args:
            workspace: the environments that this one is to be among.
            plan: what it has to be.
            report: follows the build.
            place: where.
            lock: its lock, relative to the checkout.
            variables: for what pip builds from source.
        """
        self.root, self.log, self.lock = workspace.root, workspace.log, lock
        self.plan, self.report, self.place = plan, report, place
        self.python = place / "bin" / "python"
        self.pip = Installer(self.python, self.log, variables)
        self.uv = Uv(self.pip, self.python, place / "uv", self.log)
        self.locked: dict[str, str] = {}

    def run(self) -> dict[str, Any]:
        """Build, probe, and return the record of what the environment was made from.

        Raises:
            SetupError: a step failed.
        """
        self._check_lock()
        self._check_space()
        self._create()
        choice = self._choose_torch()
        self._install_lock()
        self._install_torch(choice)
        self._install_project()
        self._probe()
        return {
            "inputs": self.plan.inputs,
            "python": {
                "version": self.plan.python.version,
                "executable": self.plan.python.executable,
            },
            "torch": self.report.torch,
            "installed": self.report.installed,
        }

    def _check_lock(self) -> None:
        path, python = self.root / self.lock, self.plan.python.version
        self.locked = lockfile.read(path, python)
        lockfile.check_fits(self.locked, self.plan.project.requirements, python, path)

    def _check_space(self) -> None:
        folder, variant = self.place.parent, self.plan.torch.variant
        needed, free = torch_variant.NEEDED_SPACE[variant], shutil.disk_usage(folder).free
        if free < needed:
            raise SetupError(
                f"Only {free / 1e9:.1f} GB are free at {folder}; an environment with the "
                f"{variant} build of torch needs {needed / 1e9:.0f} GB while it is built.\n"
                "Free some space, then run the set-up again."
            )

    def _create(self) -> None:
        with self.report.step("environment") as step:
            base = self.plan.python.executable
            create(base, self.place, self.log, self.prompt)
            step.detail = f"Python {self.plan.python.version} ({base})"

    def _choose_torch(self) -> Choice:
        wanted, file = self.plan.torch, self.plan.torch_file
        with self.report.step("torch?") as step:
            offered = self.pip.versions("torch")
            choice = torch_variant.choose(
                wanted, file, offered, lambda: self.uv.has_cpu_torch(file)
            )
            if choice is None:
                python = self.plan.python.version
                raise torch_variant.missing(wanted, file, python, self._other_pythons())
            step.detail = f"{choice.variant} build: {choice.why}"
            if choice.variant == "cuda":
                step.detail += "; several GB to download"
        self.report.torch = {
            "asked": self.plan.torch_asked,
            "variant": choice.variant,
            "getter": choice.getter,
            "why": choice.why,
        }
        return choice

    def _other_pythons(self) -> list[str]:
        """Return the Pythons of this machine for which pip has the build that is wanted."""
        needed = torch_variant.requirement(self.plan.torch_file)
        return [
            version
            for version in interpreters.usable_versions(self.plan.project.requires_python)
            if needed and any(map(needed.specifier.contains, self.pip.versions("torch", version)))
        ]

    def _install_lock(self) -> None:
        with self.report.step("packages") as step:
            self.pip.install(
                "Installing the locked packages",
                *("--require-hashes", "--no-deps", "-r", str(self.root / self.lock)),
            )
            step.detail = f"{len(self.locked)} packages, as locked in {self.lock}"

    def _install_torch(self, choice: Choice) -> None:
        with self.report.step("torch") as step:
            file = str(self.plan.torch_file)
            if choice.getter == "uv":
                self.uv.install_cpu_torch(self.plan.torch_file)
            elif choice.variant == "cpu":
                self.pip.install("Installing torch", "--no-deps", "-r", file)
            else:
                # The CUDA build brings the versions of the CUDA libraries that it was built with.
                constraints = self.place / "constraints.txt"
                pins = (f"{name}=={version}\n" for name, version in self.locked.items())
                constraints.write_text("".join(pins), encoding="utf-8")
                self.pip.install("Installing torch", "-r", file, "-c", str(constraints))
            self.uv.remove()
            step.detail = f"{choice.variant} build, by {choice.getter}"

    def _install_project(self) -> None:
        with self.report.step("folovllm") as step:
            self.pip.install(
                "Installing folovllm",
                *("--no-build-isolation", "--no-deps", "--editable", str(self.root)),
            )
            step.detail = "editable: changes in src/ count at once"

    def _probe(self) -> None:
        with self.report.step("consistent", probe=True) as step:
            step.detail = self.pip.check()
        with self.report.step("as locked", probe=True) as step:
            self.report.installed = installed = installed_in(self.place, self.root) or {}
            self._check_installed(installed)
            step.detail = f"{len(installed)} packages installed, the locked ones as locked"
        with self.report.step("works", probe=True) as step:
            step.detail = self._try_out()

    def _check_installed(self, installed: dict[str, str]) -> None:
        wrong = [
            f"{name} {installed.get(name, 'missing')}, not {version}"
            for name, version in self.locked.items()
            if installed.get(name) != version
        ]
        needed = torch_variant.requirement(self.plan.torch_file)
        if needed and not needed.specifier.contains(installed.get("torch", "0")):
            wrong.append(f"torch {installed.get('torch', 'missing')}, not {needed.specifier}")
        if wrong:
            raise SetupError("Pip did not install what the lock says: " + "; ".join(wrong))

    def _try_out(self) -> str:
        command = [str(self.python), "-I", str(self.root / INSIDE), "try"]
        command += self.plan.project.probed_modules
        try:
            return process.run(command, self.log).strip()
        except process.CommandFailed as failure:
            raise explain("Trying the new environment", failure.output, self.log) from failure
