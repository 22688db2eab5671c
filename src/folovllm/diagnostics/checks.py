"""One check a line: what `verify`, `verify-cuda` and `env` are made of."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

from folovllm.errors import FoloVLLMError

Status = Literal["ok", "degraded", "failed", "skipped", "absent"]
"""Degraded works, but less well than it should. What is absent there is nothing to check of."""

OPTIONAL = ("advice", "figures")
"""Fields of a check that a report leaves out when there is nothing in them."""


class CheckError(FoloVLLMError):
    """A check found something wrong that raised no error by itself.

    Args:
        message: what was found.
        advice: what to do about it, where the message does not say so.
    """

    def __init__(self, message: str, advice: str = "") -> None:
        """Take both."""
        super().__init__(message)
        self.advice = advice


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        detail: in one line.
        status: how it stands.
        advice: what to do, in one line.
        figures: what was measured, by name with its unit.
    """

    detail: str
    status: Status = "ok"
    advice: str = ""
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        name: what was checked.
        status: how it stands; "skipped" also because an earlier check failed.
        detail: what was found.
        seconds: how long it took.
        advice: what to do; "" when nothing needs doing, or the detail says it.
        figures: what was measured, by name with its unit.
    """

    name: str
    status: Status
    detail: str
    seconds: float
    advice: str = ""
    figures: dict[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The fields, without those of `OPTIONAL` that are empty."""
        fields = asdict(self)
        return {name: value for name, value in fields.items() if value or name not in OPTIONAL}


class CheckStep(NamedTuple):
    """A check to do.

    Attributes:
        name: of the check.
        check: does it; a plain text is what was found to be well, an error what was not.
        needs: the checks without which this one says nothing.
    """

    name: str
    check: Callable[[], Finding | str]
    needs: tuple[str, ...] = ()


def chain(steps: Iterable[tuple[str, Callable[[], Finding | str]]]) -> list[CheckStep]:
    """Steps of which each needs the one before."""
    chained: list[CheckStep] = []
    for name, check in steps:
        chained.append(CheckStep(name, check, (chained[-1].name,) if chained else ()))
    return chained


def run_steps(
    steps: Iterable[CheckStep],
    before: Iterable[Check] = (),
    spoilt: Callable[[], bool] = lambda: False,
    advise: Callable[[Exception], str] = lambda error: "",  # noqa: ARG005 - nothing is known of it
) -> Iterator[Check]:
    """Yield each check's result when it is there.

    What needs a check that failed is skipped, and so is what needs that.

    Args:
        steps: what to do, in order.
        before: results of earlier steps, which these may need; a skipped one had a cause.
        spoilt: asked after a failure, whether it leaves nothing to be checked any more.
        advise: what to do about an error that does not say so itself.
    """
    causes = {check.name: cause for check in before if (cause := _cause(check))}
    end = ""
    for step in steps:
        cause = end or next((causes[name] for name in step.needs if name in causes), "")
        if cause:
            causes[step.name] = cause
            yield Check(step.name, "skipped", cause, 0.0)
            continue
        check = _run(step, advise)
        yield check
        if check.status in ("failed", "absent"):
            causes[step.name] = _cause(check)
            end = causes[step.name] if spoilt() else ""


def _cause(check: Check) -> str:
    """Why what needs this check is skipped; "" when it is not."""
    causes = {
        "failed": f"because {check.name} failed",
        "absent": "there is nothing to check",
        "skipped": check.detail,
    }
    return causes.get(check.status, "")


def _run(step: CheckStep, advise: Callable[[Exception], str]) -> Check:
    start = time.perf_counter()
    try:
        found = step.check()
        finding = Finding(found) if isinstance(found, str) else found
    except Exception as error:  # noqa: BLE001 - whatever goes wrong is the finding
        finding = _failure(error, advise)
    seconds = time.perf_counter() - start
    return Check(
        step.name, finding.status, finding.detail, seconds, finding.advice, finding.figures
    )


def _failure(error: Exception, advise: Callable[[Exception], str]) -> Finding:
    # Our own errors explain themselves; of others the type helps.
    ours = isinstance(error, FoloVLLMError)
    detail = str(error) if ours else f"{type(error).__name__}: {error}"
    return Finding(one_line(detail), "failed", getattr(error, "advice", "") or advise(error))


def one_line(text: str, most: int = 600) -> str:
    """The text in one line, cut where nobody reads on."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[:most]} ..."
