"""A run as one HTML page that needs nothing else: no network, no scripts."""

from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from itertools import count, groupby
from string import Template

from folovllm.bench.charts import comparison_plots, suite_plots
from folovllm.bench.compare import (
    Comparison,
    comparison_table,
    count_verdicts,
    describe_rest,
    explain,
)
from folovllm.bench.drawing import Key, Plot, with_ids
from folovllm.bench.facts import (
    date_of,
    describe_machine,
    describe_settings,
    limits_table,
    short_machine,
)
from folovllm.bench.headline import caveats, headline
from folovllm.bench.results import Run
from folovllm.bench.tables import Cell, Table, sentence, suite_tables
from folovllm.bench.wording import duration, printable

Section = tuple[str, str]
"""A title and its content."""

READING = (
    "Figures are medians of the samples, with the lowest and the highest below them; from ten "
    "samples on, with percentiles. The limit is what the machine, as it was measured in this run, "
    "would have allowed at best, and the share of it is the median of each sample's own. Ratios "
    "are medians of the ratios of rounds that were taken in turn. All samples are in results.json."
)


def render_page(run: Run, comparison: Comparison | None = None) -> str:
    """The page.

    Args:
        run: what it is about.
        comparison: with an earlier run.
    """
    plots, tables = suite_plots(run), suite_tables(run)
    numbers = count()
    sections = [_comparison(comparison, numbers)] if comparison and comparison.rows else []
    sections += [
        (sentence(suite), _figures(plots[suite], numbers) + "".join(map(_table, tables[suite])))
        for suite in tables
    ]
    sections.append(("Machine and settings", _machine(run)))
    body = _header(run, [title for title, _ in sections]) + "".join(
        f'<section id="section-{place}"><h2>{text(title)}</h2>{content}</section>'
        for place, (title, content) in enumerate(sections)
    )
    template = Template(files("folovllm.bench").joinpath("page.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=text(f"Benchmarks, {date_of(run)}"),
        body=f"{body}<footer>{text(READING)}</footer>",
    )


def text(content: str) -> str:
    """What a page may contain, whatever the content is."""
    return escape(printable(content)).replace(" %", "\N{NO-BREAK SPACE}%")


def _header(run: Run, titles: Sequence[str]) -> str:
    facts = (date_of(run), short_machine(run.machine), f"took {duration(run.seconds)}")
    line = " · ".join(text(fact) for fact in facts if fact)
    links = "".join(
        f'<li><a href="#section-{place}">{text(title)}</a></li>'
        for place, title in enumerate(titles)
    )
    first, *others = headline(run)
    banners = "".join(f'<p class="banner">{text(each)}</p>' for each in caveats(run))
    lead = "".join(f'<p class="lead">{text(other)}</p>' for other in others)
    return (
        f"<header><p>FoloVLLM benchmarks</p><h1>{text(first)}</h1>{lead}<p>{line}</p>"
        f"{banners}<nav><ul>{links}</ul></nav></header>"
    )


def _comparison(comparison: Comparison, numbers: "count[int]") -> Section:
    earlier = comparison.earlier
    intro = f"The earlier run: {date_of(earlier)}. {count_verdicts(comparison)}"
    notes = "".join(f"<li>{text(note)}</li>" for note in comparison.notes)
    content = (
        f"<p>{text(intro)}</p>"
        + (f'<ul class="notes">{notes}</ul>' if notes else "")
        + _figures(comparison_plots(comparison), numbers)
        + _table(comparison_table(comparison))
        + _only(comparison)
        + f"<p><small>{text(explain(comparison))}</small></p>"
    )
    return "Since the earlier run", content


def _only(comparison: Comparison) -> str:
    return "".join(f"<p>{text(line)}</p>" for line in describe_rest(comparison))


def _figures(plots: Iterable[Plot], numbers: "count[int]") -> str:
    figures = "".join(_figure(plot, f"plot-{next(numbers)}") for plot in plots)
    return f'<div class="plots">{figures}</div>' if figures else ""


def _figure(plot: Plot, name: str) -> str:
    spoken = text(f"Plot: {plot.title}. {plot.note} The figures are in the tables.")
    svg = with_ids(plot.svg, name).replace("<svg ", f'<svg role="img" aria-label="{spoken}" ', 1)
    legend = "".join(map(_key, plot.legend))
    return (
        f"<figure><figcaption><strong>{text(plot.title)}</strong><p>{text(plot.note)}</p>"
        f"</figcaption>{f'<ul class=legend>{legend}</ul>' if legend else ''}{svg}</figure>"
    )


_DASHES = {"-": "none", "--": "6 3", ":": "2 3", "-.": "7 3 2 3"}
"""How a line style is drawn in a legend."""


def _key(key: Key) -> str:
    colour = "muted" if key.series is None else f"series-{key.series}"
    mark = key.mark
    if key.mark in _DASHES:
        mark = (
            '<svg width="26" height="8"><path d="M0 4h26" fill="none" stroke="currentColor" '
            f'stroke-width="2" stroke-dasharray="{_DASHES[key.mark]}"/></svg>'
        )
    mark = f'<span style="color: var(--{colour})" aria-hidden="true">{mark}</span>'
    return f"<li>{mark}{text(key.label)}</li>"


def _table(table: Table) -> str:
    head = "".join(
        f'<th role="columnheader" scope="col">{text(column)}</th>' for column in table.columns
    )
    groups: Sequence[Cell | None] = table.groups or [None] * len(table.rows)
    body = ""
    for group, rows in groupby(zip(groups, table.rows, strict=True), key=lambda pair: pair[0]):
        lines = "".join(_row(row) for _, row in rows)
        body += f"<tbody role=rowgroup>{_group(group, len(table.columns))}{lines}</tbody>"
    return (
        f'<div class="scroll"><table role=table><caption>{text(table.caption)}</caption>'
        f"<thead role=rowgroup><tr role=row>{head}</tr></thead>{body}</table></div>"
    )


def _group(group: Cell | None, width: int) -> str:
    if group is None:
        return ""
    small = f" <small>{text(group.small)}</small>" if group.small else ""
    span = f'colspan="{width}" scope="rowgroup"'
    return f'<tr role="row"><th role="rowheader" {span}>{text(group.text)}{small}</th></tr>'


def _row(cells: Sequence[Cell]) -> str:
    first, *others = (_content(cell) for cell in cells)
    tones = (f' class="{cell.tone}"' if cell.tone else "" for cell in cells[1:])
    data = "".join(
        f"<td role=cell{tone}>{each}</td>" for tone, each in zip(tones, others, strict=True)
    )
    return f'<tr role="row"><th role="rowheader" scope="row">{first}</th>{data}</tr>'


def _content(cell: Cell) -> str:
    shown = text(cell.text)
    if cell.value is not None:
        shown = f'<data value="{cell.value!r}">{shown}</data>'
    return shown + (f"<small>{text(cell.small)}</small>" if cell.small else "")


def _machine(run: Run) -> str:
    rows = [*describe_machine(run.machine), *describe_settings(run.settings)]
    facts = "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in rows)
    return f"<dl>{facts}</dl>" + (_table(limits_table(run)) if run.limits else "")
