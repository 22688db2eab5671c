"""What a run of benchmarks leaves behind: raw samples, and all that one has to know of them.

A run is a folder with `results.json` in it. The file is written anew, whole, after every
measurement: of a run that is interrupted, or killed, it holds what was finished, marked partial.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

from folovllm.errors import FoloVLLMError

SCHEMA = 1
"""Of `results.json`; a run of another schema is refused, not guessed at."""

FILE_NAME = "results.json"

AT_LEAST = "at least"
"""The parameter "bound" of a measurement that may be more, had anybody tried."""


OURS = "folovllm"
"""The way that the others stand beside."""


class BenchError(FoloVLLMError):
    """A benchmark cannot be run, or its results cannot be used."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One figure of one way of doing one thing, sampled several times.

    The first four attributes together name it; no other of a run has the same.

    Attributes:
        suite: what is measured: "load", "latency", "throughput", ...
        case: under what conditions, as a reader would say it: "float32, cold page cache".
        way: who does it: "folovllm", "transformers", ...
        metric: which figure: "ready", "time to first token", "output tokens", ...
        unit: of the samples: "s", "tok/s", "bytes", ...
        better: which of two samples is the better one.
        samples: as they were taken, in that order.
        limits: what the machine would have allowed at best, for each sample, in the same unit;
            None where nobody knows such a limit.
        parts: what each sample is made of, by part, in the same unit and order.
        parameters: the conditions as values, for the axes of plots.
    """

    suite: str
    case: str
    way: str
    metric: str
    unit: str
    better: Literal["lower", "higher"]
    samples: list[float]
    limits: list[float] | None = None
    parts: dict[str, list[float]] = field(default_factory=dict)
    parameters: dict[str, float | str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what no benchmark can have measured.

        Raises:
            BenchError: there are no samples, or not one of everything for each of them.
        """
        columns = {"limits": self.limits} if self.limits is not None else {}
        for name, values in {"samples": self.samples, **columns, **self.parts}.items():
            if (
                not values
                or len(values) != len(self.samples)
                or not all(map(math.isfinite, values))
            ):
                raise BenchError(f"{', '.join(self.key)}: {name} are {values}")

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What it is known by."""
        return self.suite, self.case, self.way, self.metric


Record: TypeAlias = Callable[[Measurement], None]
"""Takes what was measured."""

Say: TypeAlias = Callable[[str], None]
"""Shows a line at once: measuring takes minutes."""

T = TypeVar("T")


def back_and_forth(cases: Iterable[T], rounds: int) -> Iterator[list[T]]:
    """The cases round by round, every other round backwards.

    What else the machine does falls on all alike, and none always follows the same other one.
    """
    order = list(cases)
    for number in range(rounds):
        yield order[:: -1 if number % 2 else 1]


@dataclass(slots=True)
class Run:
    """Everything of one run.

    Attributes:
        started: when, in UTC, as ISO 8601 has it.
        machine: `diagnostics.machine.machine_facts()`.
        settings: what was asked for.
        seconds: how long it took; so far, if it is partial.
        partial: whether it ended before all was measured.
        limits: what the machine could do, by when it was measured ("start", "end"): bytes a
            second ("bandwidth") and floating-point operations a second ("rate").
        measurements: in the order in which they were finished.
        schema: of the file.
    """

    started: str
    machine: dict[str, Any]
    settings: dict[str, Any]
    seconds: float = 0.0
    partial: bool = True
    limits: dict[str, dict[str, float]] = field(default_factory=dict)
    measurements: list[Measurement] = field(default_factory=list)
    schema: int = SCHEMA

    @classmethod
    def begin(cls, machine: Mapping[str, Any], settings: Mapping[str, Any]) -> "Run":
        """A run that starts now."""
        return cls(datetime.now(timezone.utc).isoformat("T", "seconds"), {**machine}, {**settings})

    def add(self, measurement: Measurement) -> None:
        """Add what was measured.

        Raises:
            BenchError: there is one of that name.
        """
        if any(other.key == measurement.key for other in self.measurements):
            raise BenchError(f"measured twice: {', '.join(measurement.key)}")
        self.measurements.append(measurement)

    def write(self, place: Path) -> None:
        """Write the run, whole or not at all.

        Args:
            place: a folder, for its `results.json`, or a file whose name ends in `.json`.

        Raises:
            BenchError: nothing can be written there.
        """
        content = json.dumps(asdict(self), indent=1, allow_nan=False)
        target = place if place.suffix == ".json" else place / FILE_NAME
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            new = target.with_suffix(".new")
            new.write_text(content + "\n", encoding="utf-8")
            new.replace(target)
        except OSError as error:
            raise BenchError(f"results cannot be written to {place}: {error}") from error


def read_run(place: Path) -> Run:
    """Read a run.

    Args:
        place: its folder, or its `results.json`.

    Raises:
        BenchError: there is none, it is damaged, or it is of another schema.
    """
    path = place / FILE_NAME if place.is_dir() else place
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BenchError(f"no results at {place}: {error}") from error
    except ValueError as error:
        raise BenchError(f"{path} is damaged: {error}") from error
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema != SCHEMA:
        raise BenchError(
            f"{path} has the schema {schema!r}, and this version of folovllm reads {SCHEMA}: read "
            "it with the version that wrote it, or measure anew"
        )
    try:
        measurements = [Measurement(**each) for each in content.pop("measurements")]
        return Run(**content, measurements=measurements)
    except (KeyError, TypeError) as error:
        raise BenchError(f"{path} is damaged: {error}") from error
