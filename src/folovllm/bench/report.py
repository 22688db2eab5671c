"""The reports of a run: on the terminal, as Markdown, as a page."""

from importlib.util import find_spec
from pathlib import Path

from folovllm.bench.compare import Comparison
from folovllm.bench.results import BenchError, Run
from folovllm.bench.summary import render_markdown
from folovllm.utils.files import write_text

HTML_NAME, MARKDOWN_NAME = "report.html", "summary.md"
"""Of the reports in a run's folder."""


def require_plots() -> None:
    """Complain before anything is measured.

    Raises:
        BenchError: what draws the plots is not installed.
    """
    if find_spec("matplotlib") is None:
        raise BenchError(
            "the report's plots need matplotlib, which is not installed: pip install "
            "'folovllm[bench]', or leave the HTML report out"
        )


def write_html(run: Run, path: Path, comparison: Comparison | None = None) -> None:
    """Write the page.

    Args:
        run: what it is about.
        path: the file; its folder is made.
        comparison: with an earlier run.

    Raises:
        BenchError: it cannot be written, or matplotlib is not installed.
    """
    require_plots()
    from folovllm.bench.page import render_page

    _write(path, render_page(run, comparison))


def write_markdown(run: Run, path: Path, comparison: Comparison | None = None) -> None:
    """Write the summary; see `write_html`.

    Raises:
        BenchError: it cannot be written.
    """
    _write(path, render_markdown(run, comparison))


def _write(path: Path, content: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, content)
    except (OSError, ValueError) as error:
        raise BenchError(f"the report cannot be written to {path}: {error}") from error
