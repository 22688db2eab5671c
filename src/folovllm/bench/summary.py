"""A run as Markdown, to paste into an issue, and as text for the terminal."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import NamedTuple

from folovllm.bench.compare import (
    Comparison,
    comparison_table,
    count_verdicts,
    describe_rest,
    explain,
)
from folovllm.bench.facts import date_of, limits_table, short_machine
from folovllm.bench.headline import caveats, headline
from folovllm.bench.results import Run
from folovllm.bench.tables import Cell, Table, sentence, suite_tables
from folovllm.bench.wording import duration, printable


class _Form(NamedTuple):
    """How a document is written."""

    title: Callable[[str], str]
    prose: Callable[[str], str]
    table: Callable[[Table], str]


def render_markdown(run: Run, comparison: Comparison | None = None) -> str:
    """The run as Markdown.

    Args:
        run: what it is about.
        comparison: with an earlier run.
    """
    return "\n\n".join(_document(run, comparison, _MARKDOWN)) + "\n"


def render_text(run: Run, comparison: Comparison | None = None) -> str:
    """The run as plain text, for the terminal; see `render_markdown`."""
    return "\n\n".join(_document(run, comparison, _TEXT)) + "\n"


def comparison_text(comparison: Comparison) -> str:
    """The comparison alone as plain text."""
    return "\n\n".join(_compared(comparison, _TEXT)) + "\n"


def _document(run: Run, comparison: Comparison | None, form: _Form) -> Iterator[str]:
    first, *others = headline(run)
    yield form.title(first)
    yield from map(form.prose, others)
    facts = (date_of(run), short_machine(run.machine), f"took {duration(run.seconds)}")
    yield form.prose(" · ".join(fact for fact in facts if fact))
    yield from map(form.prose, caveats(run))
    if comparison:
        yield from _compared(comparison, form)
    for suite, tables in suite_tables(run).items():
        for table in tables:
            yield form.table(replace(table, caption=f"{sentence(suite)}: {table.caption}"))
    if run.limits:
        yield form.table(limits_table(run))


def _compared(comparison: Comparison, form: _Form) -> Iterator[str]:
    """The comparison, and what a reader has to know of it."""
    yield form.prose(
        f"Beside the run of {date_of(comparison.earlier)}: {count_verdicts(comparison)}"
    )
    yield from map(form.prose, comparison.notes)
    if comparison.rows:
        yield form.table(comparison_table(comparison))
    yield from map(form.prose, describe_rest(comparison))
    yield form.prose(explain(comparison))


def _line(text: str) -> str:
    """The text in one line."""
    return " ".join(printable(text).split())


# --- Markdown


def _markdown_title(text: str) -> str:
    return f"**{_escaped(text)}**"


def _markdown(table: Table) -> str:
    """A table whose first column, where there are groups, is the group."""
    rows = [[_markdown_cell(cell) for cell in row] for row in table.rows]
    columns = [_escaped(column) for column in table.columns]
    if table.groups:
        columns = ["Case", *columns]
        rows = [
            [_markdown_cell(group), *row] for group, row in zip(table.groups, rows, strict=True)
        ]
    names = 2 if table.groups else 1
    rule = [":--"] * names + ["--:"] * (len(columns) - names)
    lines = (f"| {' | '.join(cells)} |" for cells in (columns, rule, *rows))
    return "\n".join([f"{_escaped(table.caption)}\n", *lines])


def _markdown_cell(cell: Cell) -> str:
    return _escaped(cell.text + (f" ({cell.small})" if cell.small else ""))


def _escaped(text: str) -> str:
    """The text as Markdown shows it, and not as markup."""
    for character in "\\`*_|[]<>&":
        text = text.replace(character, f"\\{character}")
    return _line(text)


# --- text


def _text(table: Table) -> str:
    """A table with aligned columns; a group is a line above its rows."""
    rows = [[_line(_text_cell(cell)) for cell in row] for row in table.rows]
    columns = [_line(column) for column in table.columns]
    lines = [columns, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    indent = "  " if table.groups else ""
    drawn = [_line(table.caption), indent + _aligned(columns, widths)]
    groups = table.groups or [Cell("")] * len(rows)
    for group, pairs in groupby(zip(groups, rows, strict=True), key=lambda pair: pair[0]):
        drawn += [_line(_text_cell(group))] if table.groups else []
        drawn += [indent + _aligned(row, widths) for _, row in pairs]
    return "\n".join(drawn)


def _text_cell(cell: Cell) -> str:
    return cell.text + (f" ({cell.small})" if cell.small else "")


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    """The first to the left, the others to the right."""
    first, *others = zip(cells, widths, strict=True)
    texts = [first[0].ljust(first[1]), *(text.rjust(width) for text, width in others)]
    return "  ".join(texts).rstrip()


_MARKDOWN = _Form(_markdown_title, _escaped, _markdown)
_TEXT = _Form(_line, _line, _text)
