"""What a set-up did: lines on the terminal as it goes, and `setup-report.json` at its end."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from env.request import Request

SCHEMA = 1


@dataclass
class Step:
    """A step under way; its `detail` is shown and kept when it is done."""

    detail: str = ""


@dataclass
class Report:
    """Everything worth knowing about one set-up."""

    asked: dict[str, Any]
    outcome: str = "failed"
    error: str | None = None
    reason: str | None = None
    python: dict[str, str] = field(default_factory=dict)
    torch: dict[str, str] = field(default_factory=dict)
    probes: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    installed: dict[str, str] = field(default_factory=dict)
    accelerators: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, request: Request) -> Report:
        """Begin the report of a set-up."""
        return cls(asked=asdict(request))

    @contextmanager
    def step(self, name: str, *, probe: bool = False) -> Iterator[Step]:
        """Time a step and show it when it is done; `probe` keeps what it found among the probes."""
        step = Step()
        start = time.monotonic()
        try:
            yield step
        except BaseException:
            if probe:
                self.probes[name] = "failed"
            raise
        finally:
            self.seconds[name] = round(time.monotonic() - start, 3)
        if probe:
            self.probes[name] = step.detail
        print(f"  {name:<12}{self.seconds[name]:7.1f} s  {step.detail}", flush=True)

    def accelerator(self, name: str, outcome: str, **more: Any) -> None:
        """Note what became of an accelerator."""
        self.accelerators.setdefault(name, {}).update(outcome=outcome, **more)

    def say(self, name: str, outcome: str, detail: str) -> None:
        """Note what became of an accelerator, and show it."""
        self.accelerator(name, outcome, detail=detail)
        print(f"  {name}: {outcome}: {detail}", flush=True)

    def failed(self, error: BaseException) -> None:
        """Note what ended the set-up."""
        interrupted = isinstance(error, (KeyboardInterrupt, SystemExit))
        self.outcome = "interrupted" if interrupted else "failed"
        self.error = str(error) or type(error).__name__

    def write(self, path: Path) -> None:
        """Write the report, whole or not at all."""
        content = {"schema": SCHEMA, "machine": _machine(), **asdict(self)}
        new = path.with_suffix(".new")
        new.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        new.replace(path)


def _machine() -> dict[str, Any]:
    return {
        "system": platform.platform(),
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "nox_python": sys.version.split()[0],
    }
