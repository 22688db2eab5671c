"""Plots as inline SVG whose colours are the page's: they follow its light and dark mode.

matplotlib draws with colours that stand for the page's variables, and each is replaced by its
variable at the end. Text stays text, in the page's font; legends are the page's own.
"""

import io
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from folovllm.bench.wording import count, printable, scale_of

INK, MUTED, LINE = "#010101", "#020202", "#030303"
SERIES = ("#040404", "#050505", "#060606", "#070707", "#080808", "#090909")
MARKERS = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼", "P": "✚"}
"""matplotlib's, and what a legend shows of them."""

_VARIABLES = {INK: "ink", MUTED: "muted", LINE: "line"} | {
    colour: f"series-{place}" for place, colour in enumerate(SERIES)
}

WIDTH = 340
"""Of a plot, in points: as wide as a telephone, and twice side by side on a desktop."""

POINTS = 72
"""In an inch."""

WIDE = 20
"""From this ratio of the largest to the smallest value on, an axis is logarithmic."""

TICK = 0.12
"""The share of an axis that a tick's label takes."""

LONGEST = 52
"""Characters of a label that fit the width."""

_STYLE: Any = {  # whose keys matplotlib's own types name, from 3.11 on
    "svg.fonttype": "none",
    "svg.hashsalt": "folovllm",
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "text.parse_math": False,  # a name with two dollar signs is no formula
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "ytick.major.size": 0,
    "lines.linewidth": 1.8,
}


@dataclass(frozen=True, slots=True)
class Key:
    """An entry of a legend.

    Attributes:
        mark: what is drawn: a line style of matplotlib's, or a character that looks like it.
        series: whose colour it has; None for that of the text.
        label: what it is.
    """

    mark: str
    series: int | None
    label: str


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot, ready for the page.

    Attributes:
        title: what it shows.
        note: how to read it.
        legend: what its marks are.
        svg: the drawing; has ids that another drawing may have, too: see `with_ids`.
    """

    title: str
    note: str
    legend: list[Key]
    svg: str


@contextmanager
def style() -> Iterator[None]:
    """Draw and finish within this, and matplotlib's settings are as they were afterwards."""
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        # The page's font may well have what matplotlib's lacks; the text is not drawn as paths.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield


def new_axes(height: float) -> Axes:
    """An empty drawing of the common width; the height is in points."""
    return Figure((WIDTH / POINTS, height / POINTS)).add_subplot()


def finish(axes: Axes, title: str, note: str, legend: Sequence[Key] = ()) -> Plot:
    """Make a plot of what was drawn."""
    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    axes.get_figure(root=True).savefig(file, format="svg", transparent=True, metadata=nothing)  # type: ignore[union-attr]
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'width="[\d.]+pt" height="[\d.]+pt" ', "", svg, count=1)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "inherit", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(f": {colour}", f": var(--{variable})")
    return Plot(title, note, list(legend), svg)


def with_ids(svg: str, prefix: str) -> str:
    """The drawing with ids that no other drawing of the page has."""
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", svg)


def label(text: str) -> str:
    """The text as far as it fits."""
    text = printable(text).replace("\n", " ")
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def value_axis(axes: Axes, which: str, values: Sequence[float], unit: str) -> None:
    """An axis of measured values: from 0, or logarithmic where they are far apart.

    Args:
        axes: where.
        which: "x" or "y".
        values: all that are drawn.
        unit: theirs.
    """
    axis, low, high = getattr(axes, f"{which}axis"), min(values), max(values)
    set_limits = getattr(axes, f"set_{which}lim")
    if low > 0 and high / low > WIDE:
        getattr(axes, f"set_{which}scale")("log")
        subs = (1.0, 2.0, 5.0) if high / low < 200 else (1.0,)
        axis.set_major_locator(LogLocator(10, subs, numticks=12))
        set_limits(low / 1.3, high * 1.3)
        axis.set_major_formatter(FuncFormatter(lambda value, _: _short(value, unit)))
    else:
        size, name = scale_of(max(abs(low), abs(high)), unit)
        margin = 0.06 * ((max(high, 0) - min(low, 0)) or 1.0)
        ends = (low - margin if low < 0 else 0, high + margin if high > 0 else 0)
        set_limits(*ends)
        ticks = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(*(end / size for end in ends))
        axis.set_major_locator(FixedLocator([tick * size for tick in ticks]))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / size:g}"))
        getattr(axes, f"set_{which}label")(label(name))
    axis.set_minor_locator(NullLocator())


def _short(value: float, unit: str) -> str:
    size, name = scale_of(value, unit)
    return label(f"{value / size:g} {name}".strip())


def condition_axis(axes: Axes, values: Sequence[float], title: str) -> None:
    """The horizontal axis of a condition, with a tick at each value, as far as there is room."""
    values = sorted(set(values))
    if is_log := values[0] > 0 and values[-1] / values[0] >= 8:
        axes.set_xscale("log", base=2)
    else:
        axes.set_xlim(0 if values[0] >= 0 else None, values[-1] * 1.06)
    places = {value: math.log(value) if is_log else value for value in values}
    room = TICK * (places[values[-1]] - (places[values[0]] if is_log else min(0.0, values[0])))
    ticks = values[-1:]
    for value in reversed(values[:-1]):
        if places[ticks[-1]] - places[value] >= room:
            ticks.append(value)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
    axes.set_xlabel(label(title))
    axes.grid(visible=False, axis="x")
