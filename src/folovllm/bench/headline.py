"""A run in a sentence or two."""

from folovllm.bench.facts import drift
from folovllm.bench.results import OURS, Measurement, Run
from folovllm.bench.statistics import shares_of_limit, spread
from folovllm.bench.tables import is_speed, relative, sentence
from folovllm.bench.wording import count, number, percent, quantity, times

PEERS = ("transformers", "from_pretrained")
"""Ways that a reader knows, and that ours is named beside."""


PARTIAL = "Partial: the run ended before all was measured; what was finished is here."


def headline(run: Run) -> list[str]:
    """A sentence each: how fast the engine generates, how fast it is ready, if it was measured."""
    ours = [each for each in run.measurements if each.way == OURS]
    speeds = [each for each in ours if each.unit == "tok/s"]
    loads = [each for each in ours if (each.suite, each.metric) == ("load", "ready")]
    batches = [each for each in speeds if each.case == "batch"]
    clauses = [_generates(run, each) for each in (batches or speeds)[:1]]
    clauses += [_is_ready(run, each) for each in loads[:1]]
    clauses = clauses or [_shows(run, each) for each in (ours or run.measurements)[:1]]
    return [f"{sentence(clause)}." for clause in clauses or ["nothing was measured"]]


def caveats(run: Run) -> list[str]:
    """What a reader has to know before any figure: that it is partial, that the machine changed."""
    return [PARTIAL] * run.partial + [f"{sentence(line)}." for line in drift(run)]


def _generates(run: Run, each: Measurement) -> str:
    requests = each.parameters.get("requests")
    what = (
        f" for {count(requests)} request{'s' * (requests != 1)}"
        if isinstance(requests, float | int)
        else ""
    )
    rate = number(spread(each.samples).median)
    return f"generates {rate} tokens a second{what or f' ({each.case})'}" + _context(run, each)


def _is_ready(run: Run, each: Measurement) -> str:
    taken = quantity(spread(each.samples).median, each.unit)
    return f"ready to generate {taken} after the start ({each.case})" + _context(run, each)


def _shows(run: Run, each: Measurement) -> str:
    value = quantity(spread(each.samples).median, each.unit)
    return f"{each.metric} of {each.way}, {each.case}: {value}" + _context(run, each)


def _context(run: Run, each: Measurement) -> str:
    """Beside a peer, and beside what the machine allows."""
    parts = []
    for other in run.measurements:
        same = (other.suite, other.case, other.metric) == (each.suite, each.case, each.metric)
        if same and other.way in PEERS:
            word = "fast" if is_speed(each.unit) else "much"
            parts.append(f"{times(relative(each, other).median)} times as {word} as {other.way}")
    if each.limits is not None:
        share = shares_of_limit(each.samples, each.limits, each.better).median
        parts.append(f"{percent(share)} of what this machine allows")
    return ": " + ", ".join(parts) if parts else ""
