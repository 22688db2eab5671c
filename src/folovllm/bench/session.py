"""A run of benchmarks in the making: facts and limits of the machine, and results kept safe."""

import re
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from typing_extensions import Self

from folovllm.bench.facts import drift
from folovllm.bench.results import BenchError, Measurement, Run, Say
from folovllm.config import ENGINE_CLASSES, EngineConfig
from folovllm.config.settings import public_value
from folovllm.diagnostics.limits import DeviceLimits, measure_limits
from folovllm.machine.facts import machine_facts
from folovllm.machine.threads import use_allowed_cores
from folovllm.utils.common import get_device


class Session:
    """A run in the making.

    As a context manager it begins and ends the run; one that ends by an exception, Ctrl-C among
    them, stays partial. What was recorded until then is in the file.

    Args:
        settings: what was asked for; see `settings_of`.
        place: where results go: a folder, or a `.json` file; None for nowhere. Or what makes
            one of the machine's facts.
        limits: measures what the machine can do.
        say: shows progress.

    Attributes:
        run: what there is so far.
        place: where it is written.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        place: Path | Callable[[Mapping[str, Any]], Path] | None,
        limits: Callable[[], DeviceLimits],
        say: Say,
    ) -> None:
        """Note what the machine is; nothing is measured or written yet."""
        use_allowed_cores()  # the facts have the threads that are used
        facts = machine_facts()
        self.run = Run.begin(facts, settings)
        self.place = place(facts) if callable(place) else place
        self.say = say
        self._measure_limits = limits
        self._start = time.perf_counter()

    def begin(self) -> None:
        """Measure the machine's limits.

        Raises:
            BenchError: results cannot be written.
        """
        self._write()  # complains before anything is measured
        self._take_limits("start")

    def record(self, measurement: Measurement) -> None:
        """Keep what was measured.

        Raises:
            BenchError: there is one of that name, or results cannot be written.
        """
        self.run.add(measurement)
        self._write()

    def end(self, *, complete: bool) -> None:
        """End the run.

        Args:
            complete: whether all was measured that was to be. The machine's limits are measured
                again then, and what changed is said.

        Raises:
            BenchError: results cannot be written.
        """
        if complete:
            self._take_limits("end")
            for line in drift(self.run):
                self.say(line)
            self.run.partial = False
        self._write()

    def _take_limits(self, when: str) -> None:
        limits = self._measure_limits()
        self.run.limits[when] = {"bandwidth": limits.bandwidth, "rate": limits.rate}
        self._write()

    def _write(self) -> None:
        self.run.seconds = round(time.perf_counter() - self._start, 3)
        if self.place is not None:
            self.run.write(self.place)

    def __enter__(self) -> Self:
        """Begin."""
        self.begin()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End; complete unless by an exception."""
        self.end(complete=error is None)


def device_limits(config: EngineConfig) -> DeviceLimits:
    """The limits of the device that an engine of that configuration runs on, in its data type."""
    device = get_device()
    automatic = torch.float32 if device.type == "cpu" else torch.bfloat16
    return measure_limits(device, config.model_config.torch_dtype or automatic)


def settings_of(config: EngineConfig, **more: Any) -> dict[str, Any]:
    """What was asked for, ready for JSON: the engine's settings that are not left to defaults.

    Args:
        config: of the engine.
        **more: other settings; those that are None are left out.
    """
    settings: dict[str, Any] = {}
    for attribute in ENGINE_CLASSES:
        part = getattr(config, attribute)
        settings |= {name: public_value(getattr(part, name)) for name in part.asked_fields}
    for name in ("model", "tokenizer"):
        if name in settings:  # a path tells who measured, and is another on the next machine
            settings[name] = _name_of(str(settings[name]))
    everything = {**dict(sorted(settings.items())), **more}
    return {name: value for name, value in everything.items() if value is not None}


def _name_of(model: str) -> str:
    path = Path(model).expanduser()
    return path.absolute().name if path.exists() else model


def results_folder(root: Path, facts: Mapping[str, Any]) -> Path:
    """A folder of its own for a run that starts now: `<root>/<date>-<machine>`.

    Raises:
        BenchError: there is one; no two runs start in one second.
    """
    folder = root / f"{datetime.now().astimezone():%Y-%m-%dT%H-%M-%S}-{machine_name(facts)}"
    if folder.exists():
        raise BenchError(f"{folder} is there already; start the run again")
    return folder


def machine_name(facts: Mapping[str, Any]) -> str:
    """A short name of a machine for files: its GPU's or else its processor's, and its cores."""
    gpus, cpu = facts["gpus"], facts["cpu"]
    words = f"{len(gpus)}x {gpus[0]['name']}" if gpus else str(cpu["model"])
    words = re.sub(r"\((R|TM)\)|@.*|\b(CPU|Processor)\b", " ", words, flags=re.IGNORECASE)
    name = re.sub(r"[^a-z0-9]+", "-", f"{words} {cpu['allowed_cores']} cores".lower())
    return name.strip("-")
