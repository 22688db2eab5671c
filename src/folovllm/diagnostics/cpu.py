"""What this machine's CPU can do for the engine, and which settings keep it from that."""

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch

from folovllm.diagnostics.checks import Check, CheckStep, Finding, run_steps
from folovllm.diagnostics.limits import DeviceLimits, measure_limits
from folovllm.machine.threads import use_allowed_cores

GIB = 1 << 30
LITTLE_MEMORY = 2 * GIB
"""The default model, its cache and torch take about half of it."""

BINDING = ("GOMP_CPU_AFFINITY", "KMP_AFFINITY", "OMP_PLACES")


class CpuReport:
    """One line a subject, with what to change where a setting hurts.

    Args:
        facts: `machine_facts()`.
    """

    def __init__(self, facts: dict[str, Any]) -> None:
        """Take the facts; nothing is measured yet."""
        self.facts = facts

    def run(self) -> Iterator[Check]:
        """Yield a line at a time: what is known at once, then what is measured."""
        return run_steps(
            [
                CheckStep("system", self._system),
                CheckStep("packages", self._packages),
                CheckStep("processor", self._processor),
                CheckStep("cores", lambda: cores(self.facts)),
                CheckStep("threads", lambda: threads(self.facts)),
                CheckStep("memory", lambda: memory(self.facts)),
                CheckStep("huge pages", lambda: huge_pages(self.facts)),
                CheckStep("memory bandwidth", self._bandwidth),
                CheckStep("float32 rate", self._rate),
            ]
        )

    @cached_property
    def _limits(self) -> DeviceLimits:
        use_allowed_cores()  # as the engine does
        return measure_limits(torch.device("cpu"), torch.float32)

    def _system(self) -> str:
        system = self.facts["os"]
        kinds = {"in a container": system["container"], "virtual": self.facts["cpu"]["virtual"]}
        parts = [system["name"], f"kernel {system['kernel']}"]
        return ", ".join([*parts, *(kind for kind, holds in kinds.items() if holds)])

    def _packages(self) -> str:
        versions = [f"{name} {version}" for name, version in self.facts["packages"].items()]
        commit = [f"commit {self.facts['commit']}"] if self.facts["commit"] else []
        return ", ".join([self.facts["python"], *versions, *commit])

    def _processor(self) -> str:
        cpu = self.facts["cpu"]
        sets = " ".join(cpu["instruction_sets"]) or "instruction sets unknown"
        text = f"{cpu['model']} ({cpu['architecture']}), {sets}"
        if self.facts["torch"]:
            text += f"; torch uses {self.facts['torch']['instruction_set']}"
        return text

    def _bandwidth(self) -> Finding:
        return self._measured("bandwidth", "GB/s")

    def _rate(self) -> Finding:
        return self._measured("rate", "GFLOP/s")

    def _measured(self, limit: str, unit: str) -> Finding:
        if self.facts["memory"]["available"] < LITTLE_MEMORY:
            return Finding("measuring takes 1.5 GiB of memory", "skipped")
        speed: float = getattr(self._limits, limit) / 1e9
        return Finding(f"{speed:.3g} {unit}", figures={unit.replace("/", "_per_"): speed})


def cores(facts: dict[str, Any]) -> Finding:
    """How many cores there are, and how many this process may use."""
    cpu = facts["cpu"]
    allowed, affinity, quota = cpu["allowed_cores"], cpu["affinity_cores"], cpu["cgroup_cores"]
    detail = f"{cpu['physical_cores'] or cpu['logical_cores']} cores, {cpu['logical_cores']} "
    detail += f"logical, {cpu['numa_nodes']} NUMA node{'s' * (cpu['numa_nodes'] > 1)}; "
    detail += f"this process may use {allowed}"
    if quota is not None and quota < (affinity or cpu["logical_cores"]):
        return Finding(
            f"{detail}, by a quota of {quota:g}",
            "degraded",
            "a quota stops all threads when it is spent: give the container whole cores of its own "
            "(`--cpuset-cpus`) instead",
        )
    return Finding(detail)


def threads(facts: dict[str, Any]) -> Finding:
    """Whether as many threads compute as there are cores for."""
    allowed, variables = facts["cpu"]["allowed_cores"], facts["thread_variables"]
    # Two threads of one core share what multiplies matrices.
    useful = min(allowed, facts["cpu"]["physical_cores"] or allowed)
    asked = variables.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    shown = ", ".join(f"{name}={value}" for name, value in variables.items()) or "no variables set"
    if asked and not (asked.isdigit() and int(asked)):
        return Finding(f"{shown}: no number of threads", "degraded", "`unset OMP_NUM_THREADS`")
    default = facts["torch"]["threads"] if facts["torch"] else useful
    used = int(asked) if asked else min(default, allowed)
    detail = f"{shown}; FoloVLLM computes on {used}, and there are cores for {useful}"
    if used > allowed:
        return Finding(
            f"{detail}: threads wait for one another",
            "degraded",
            f"`export OMP_NUM_THREADS={useful}`, or `unset OMP_NUM_THREADS`",
        )
    if used < useful:
        advice = f"`export OMP_NUM_THREADS={useful}`, unless other cores have other work"
        return Finding(detail, "degraded", advice)
    return _affinity(variables, detail)


def _affinity(variables: dict[str, str], detail: str) -> Finding:
    """Threads that are bound to places share them with those of other processes."""
    bound = [name for name in BINDING if name in variables]
    if variables.get("OMP_PROC_BIND", "false").lower() != "false":
        bound.append("OMP_PROC_BIND")
    if not bound:
        return Finding(detail)
    return Finding(
        detail,
        "degraded",
        f"threads are bound to cores by {', '.join(bound)}: good for one process alone on its "
        "cores, and bad for several; unset it if in doubt",
    )


def memory(facts: dict[str, Any]) -> Finding:
    """Whether there is memory for a model."""
    sizes = facts["memory"]
    detail = f"{sizes['available'] / GIB:.1f} of {sizes['total'] / GIB:.1f} GiB available"
    if sizes["cgroup_limit"] is not None:
        detail += f", the container's limit is {sizes['cgroup_limit'] / GIB:.1f} GiB"
    if sizes["available"] < LITTLE_MEMORY:
        advice = "free some, or allow the container more; or take a smaller model or data type"
        return Finding(detail, "degraded", advice)
    return Finding(detail)


def huge_pages(facts: dict[str, Any]) -> Finding:
    """Whether weights can be had in pages of 2 MiB."""
    setting = facts["memory"]["huge_pages"]
    if setting is None:
        return Finding("not said")
    if setting == "never":
        return Finding(
            "off: to get weights in pages of 4 KiB takes longer than to fill them",
            "degraded",
            "`echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled`",
        )
    return Finding(f"{setting}: weights get pages of 2 MiB")
