"""Pip inside the new environment, and what its failures mean.

Pip, because it is what the user has configured: index, wheel folders, proxies, certificates.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from env import process
from env.errors import SetupError

if TYPE_CHECKING:
    from pathlib import Path

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
    r"NewConnectionError|ConnectTimeoutError|ReadTimeout|Connection refused|ProxyError|SSLError"
    r"|CERTIFICATE_VERIFY_FAILED|name resolution|Name or service not known|NameResolutionError"
    r"|ConnectionResetError|RemoteDisconnected|Network is unreachable": (
        "The package index could not be reached. Check the network, then what pip is told\n"
        "(`python -m pip config list`): a proxy (HTTPS_PROXY), an index of your own\n"
        "(PIP_INDEX_URL), its certificate (PIP_CERT), or a folder of wheels (PIP_FIND_LINKS with\n"
        "PIP_NO_INDEX=1)."
    ),
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


def explain(doing: str, output: str, log: Path) -> SetupError:
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
    return SetupError(f"{doing} failed.\n{advice}\nThe end of {log}:\n{shown}")


class Installer:
    """Pip of one environment."""

    def __init__(self, python: Path, log: Path) -> None:
        """Take the environment's Python and the log that pip's output goes to."""
        self._pip = [str(python), "-m", "pip"]
        self._log = log

    def install(self, doing: str, *arguments: str) -> None:
        """Run `pip install`; `doing` says in an error what could not be done.

        Modules are not compiled on installing: Python does it on first import, for the few of
        transformers' thousands that are ever imported.

        Raises:
            SetupError: pip failed.
        """
        self._run(doing, "install", "--no-compile", *arguments)

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
            return process.run([*self._pip, *arguments], self._log)
        except process.CommandFailed as failure:
            raise explain(doing, failure.output, self._log) from failure
