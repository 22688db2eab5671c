"""The facts beside results, in words: the machine, its limits, and what makes two alike."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from folovllm.bench.results import Run
from folovllm.bench.tables import Cell, Table, sentence
from folovllm.bench.wording import DASH, change, quantity

GIB = 2**30

DRIFT = 0.1
"""From this share on, a change of the machine's limits during a run is worth saying."""


def identity(machine: Mapping[str, Any]) -> dict[str, Any]:
    """What must be the same for results to be compared, by what a reader calls it.

    Memory is rounded: a kernel keeps a little more or less of it for itself.
    """
    cpu, memory, torch = (_part(machine, name) for name in ("cpu", "memory", "torch"))
    return {
        "processor": cpu.get("model"),
        "architecture": cpu.get("architecture"),
        "allowed cores": cpu.get("allowed_cores"),
        "threads": torch.get("threads"),
        "memory": _gibibytes(memory.get("total")),
        "memory limit": _gibibytes(memory.get("cgroup_limit")),
        "GPUs": [f"{gpu.get('name')}, {_gibibytes(gpu.get('memory'))}" for gpu in _gpus(machine)],
    }


def software(machine: Mapping[str, Any]) -> dict[str, Any]:
    """What may be another without the results being of another machine."""
    return {
        "Python": machine.get("python"),
        "commit": machine.get("commit"),
        **_part(machine, "packages"),
        **_part(machine, "thread_variables"),
    }


def date_of(run: Run) -> str:
    """When it was, for a reader: "21 November 2026, 17:32 UTC"."""
    try:
        started = datetime.fromisoformat(run.started)
    except ValueError:
        return run.started
    return f"{started.day} {started:%B %Y, %H:%M %Z}".strip()


def describe_machine(machine: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Rows of a name and a text; what the facts lack is left out."""
    packages = [f"{name} {version}" for name, version in _part(machine, "packages").items()]
    rows = [
        ("Processor", _processor(_part(machine, "cpu"))),
        ("Memory", _memory(_part(machine, "memory"))),
        *[("GPU", _gpu(gpu)) for gpu in _gpus(machine)],
        ("System", _system(_part(machine, "os"))),
        ("Threads", _threads(machine)),
        ("Software", _listed(machine.get("python"), *packages)),
        ("Commit", str(machine.get("commit") or "")),
    ]
    return [(name, text) for name, text in rows if text]


def describe_settings(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was asked for: rows of a name and a text."""
    return [
        (sentence(str(name).replace("_", " ")), describe_value(value))
        for name, value in settings.items()
    ]


def limits_table(run: Run) -> Table:
    """What the machine could do at the start and at the end; what changed is drift."""
    times = list(run.limits)
    names = dict.fromkeys(name for limits in run.limits.values() for name in limits)
    rows = []
    for name in names:
        title, unit = LIMITS.get(name, (name, ""))
        values = [run.limits[time].get(name) for time in times]
        cells = [Cell(DASH) if v is None else Cell(quantity(v, unit), value=v) for v in values]
        first, last = values[0], values[-1]
        moved = change(last / first) if first and last is not None and len(times) > 1 else DASH
        rows.append([Cell(title), *cells, Cell(moved)])
    columns = ["", *[f"At the {time}" for time in times], "Drift"]
    return Table("What the machine allows, measured in this run", columns, rows)


def drift(run: Run) -> list[str]:
    """What of the machine's limits was another at the run's end than at its start, a line each."""
    before, after = run.limits.get("start", {}), run.limits.get("end", {})
    changes = {name: after[name] / before[name] for name in before if name in after}
    return [
        f"the machine changed meanwhile: its {name} is {change(ratio)} against the start"
        for name, ratio in changes.items()
        if abs(ratio - 1) > DRIFT
    ]


LIMITS = {
    "bandwidth": ("Reading memory", "B/s"),
    "rate": ("Matrix product", "FLOP/s"),
}
"""Titles and units of `Run.limits`."""


def short_machine(machine: Mapping[str, Any]) -> str:
    """The machine in a few words."""
    cpu, gpus = _part(machine, "cpu"), _gpus(machine)
    cores = cpu.get("allowed_cores")
    name = ", ".join(str(gpu.get("name")) for gpu in gpus) or str(cpu.get("model") or "")
    return _listed(name, cores and f"{cores} core" + "s" * (cores != 1))


def describe_value(value: object) -> str:
    """A setting, or a fact, as text."""
    if isinstance(value, list | tuple):
        return ", ".join(map(describe_value, value)) or "none"
    if value is None or isinstance(value, bool):
        return {True: "yes", False: "no", None: "none"}[value]
    return str(value)


def _part(machine: Mapping[str, Any], name: str) -> dict[str, Any]:
    part = machine.get(name)
    return part if isinstance(part, dict) else {}


def _gpus(machine: Mapping[str, Any]) -> list[dict[str, Any]]:
    gpus = machine.get("gpus")
    return [gpu for gpu in gpus if isinstance(gpu, dict)] if isinstance(gpus, list) else []


def _gibibytes(size: object) -> str | None:
    return f"{size / GIB:.0f} GiB" if isinstance(size, int | float) else None


def _listed(*parts: object) -> str:
    return ", ".join(str(part) for part in parts if part)


def _processor(cpu: Mapping[str, Any]) -> str:
    allowed, there = cpu.get("allowed_cores"), cpu.get("logical_cores")
    cores = allowed and f"{allowed} of {there} cores" if allowed != there else f"{there} cores"
    sets = [str(name) for name in cpu.get("instruction_sets") or []]
    return _listed(cpu.get("model"), cores if allowed else None, " ".join(sets))


def _memory(memory: Mapping[str, Any]) -> str:
    total, limit = (_gibibytes(memory.get(name)) for name in ("total", "cgroup_limit"))
    return _listed(total, limit and f"of which {limit} are allowed")


def _gpu(gpu: Mapping[str, Any]) -> str:
    capability, driver = gpu.get("capability"), gpu.get("driver")
    return _listed(
        gpu.get("name"),
        _gibibytes(gpu.get("memory")),
        capability and f"compute capability {capability}",
        driver and f"driver {driver}",
    )


def _system(system: Mapping[str, Any]) -> str:
    kernel = system.get("kernel")
    container = "in a container" if system.get("container") else None
    return _listed(system.get("name"), kernel and f"kernel {kernel}", container)


def _threads(machine: Mapping[str, Any]) -> str:
    variables = [f"{n}={v}" for n, v in _part(machine, "thread_variables").items()]
    return _listed(_part(machine, "torch").get("threads"), *variables)
