"""Pip inside the new environment, and what its failures mean.

Pip, because it is what the user has configured: index, wheel folders, proxies, certificates.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from packaging.utils import canonicalize_name

from env import process
from env.errors import SetupError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_UNREACHABLE = (
    r"NewConnectionError|ConnectTimeoutError|ReadTimeout|Connection refused|ProxyError|SSLError"
    r"|CERTIFICATE_VERIFY_FAILED|name resolution|Name or service not known|NameResolutionError"
    r"|ConnectionResetError|RemoteDisconnected|Network is unreachable"
)
_LACKING = r"No matching distribution found for (?P<what>[\w.-]+)\S*"

# What pip prints -> what it means and what to do. The first that matches counts: a lost
# connection makes pip say "no matching distribution" too.
_EXPLANATIONS = {
    r"No space left on device|Errno 28|Disk quota exceeded": (
        "The disk is full. Free some space where the checkout is and where temporary files go\n"
        "(TMPDIR names another folder for those), then run the set-up again."
    ),
    r"DO NOT MATCH THE HASHES": (
        "A file is not the one that the lock names: it was changed on the way, or the index or a\n"
        "wheel folder has another file under the same name. Don't use it. If the lock itself is\n"
        "wrong, make it anew: nox -s lock"
    ),
    _UNREACHABLE: (
        "The package index could not be reached. Check the network, then what pip is told\n"
        "(`python -m pip config list`): a proxy (HTTPS_PROXY), an index of your own\n"
        "(PIP_INDEX_URL), its certificate (PIP_CERT), or a folder of wheels (PIP_FIND_LINKS with\n"
        "PIP_NO_INDEX=1)."
    ),
    r"ResolutionImpossible": "No set of versions satisfies everything that is asked for.",
    r"No matching distribution found for (?P<what>\S+)": (
        "{what} is not to be had from where pip looks, for this Python and system. See which\n"
        "index and wheel folders are set: `python -m pip config list`."
    ),
    r"Failed to build|subprocess-exited-with-error": (
        "A package had no ready-made wheel for this Python and system, and building it failed.\n"
        "Another Python may have wheels: nox -s setup -- --python X.Y"
    ),
}
_TAIL = 12  # lines of the log to show


class ToolError(SetupError):
    """A tool failed; `output` is what it printed."""

    def __init__(self, message: str, output: str) -> None:
        """Keep what tells one cause from another."""
        super().__init__(message)
        self.output = output

    def lacks(self, name: str) -> bool:
        """Tell whether it failed because nobody offers package `name` for this machine."""
        hit = re.search(_LACKING, self.output)
        reached = not re.search(_UNREACHABLE, self.output)
        return bool(hit and reached and canonicalize_name(hit["what"]).startswith(name))

    @property
    def conflicts(self) -> bool:
        """Whether it failed because what is asked for does not fit together."""
        return "ResolutionImpossible" in self.output


def explain(doing: str, output: str, log: Path) -> ToolError:
    """Return the error for a failed command: what it was doing, what it means, what to do."""
    for pattern, meaning in _EXPLANATIONS.items():
        hit = re.search(pattern, output)
        if hit:
            advice = meaning.format(**hit.groupdict())
            break
    else:
        advice = "What was printed may tell why."
    lines = [line for line in output.splitlines() if line.strip()][-_TAIL:]
    shown = "\n".join(f"  | {line}" for line in lines)
    return ToolError(f"{doing} failed.\n{advice}\nThe end of {log}:\n{shown}", output)


class Installer:
    """Pip of one environment."""

    def __init__(self, python: Path, log: Path, variables: Mapping[str, str] | None = None) -> None:
        """Take the environment's Python, the log of pip's output, and variables for builds."""
        self._pip = [str(python), "-m", "pip"]
        self._log = log
        self._variables = variables

    def install(self, doing: str, *arguments: str) -> None:
        """Run `pip install`; `doing` says in an error what could not be done.

        Modules are not compiled on installing: Python does it on first import, for the few of
        transformers' thousands that are ever imported.

        Raises:
            SetupError: pip failed.
        """
        self._run(doing, "install", "--no-compile", *arguments)

    def resolve(self, doing: str, report: Path, *arguments: str) -> dict[str, str]:
        """Return what `pip install` would install, by normalised name, without installing it.

        Args:
            doing: what could not be done, for an error.
            report: a file for pip to write its plan to.
            arguments: for `pip install`.

        Raises:
            SetupError: pip found no solution, or can't look.
        """
        self._run(doing, "install", "--dry-run", "--report", str(report), *arguments)
        plan = json.loads(report.read_text(encoding="utf-8"))
        report.unlink()
        found = [each["metadata"] for each in plan["install"]]
        return {canonicalize_name(each["name"]): each["version"] for each in found}

    def build(self, doing: str, target: Path, *arguments: str) -> None:
        """Compile a package with what is installed here, and leave its wheel in `target`.

        Pip's cache is left out: it takes no heed of the torch that a wheel was compiled against.

        Raises:
            SetupError: it failed.
        """
        options = ("--no-deps", "--no-build-isolation", "--no-cache-dir", "-w", str(target))
        self._run(doing, "wheel", *options, *arguments)

    def versions(self, name: str, python: str | None = None) -> list[str]:
        """Return the versions that pip would install here, without fetching any.

        Args:
            name: the package.
            python: for this Python (such as `3.12`) rather than the environment's own.

        Raises:
            SetupError: pip finds none at all, or can't look.
        """
        target = ["--python-version", python] if python else []
        output = self._run(f"Looking for {name}", "index", "versions", name, *target)
        hit = re.search(r"^Available versions: (.*)$", output, re.MULTILINE)
        return hit[1].split(", ") if hit else []

    def check(self) -> str:
        """Run `pip check`; return what it says.

        Raises:
            SetupError: installed packages don't fit together.
        """
        return self._run("Checking that the packages fit together", "check").strip()

    def _run(self, doing: str, *arguments: str) -> str:
        try:
            return process.run([*self._pip, *arguments], self._log, self._variables)
        except process.CommandFailed as failure:
            raise explain(doing, failure.output, self._log) from failure
