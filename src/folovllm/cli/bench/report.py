"""`folovllm bench report`: the reports of a run that was measured before."""

import argparse
import sys
from pathlib import Path

from folovllm.cli.files import check_writable
from folovllm.cli.options import add_plain_command


def add_parser(benchmarks: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    text = "print a run's results and write them as a page and as Markdown"
    parser = add_plain_command(benchmarks, "report", text)
    parser.add_argument("place", metavar="RUN", type=Path, help="folder of the run, or its file")
    parser.add_argument(
        "--html", metavar="FILE", type=Path, help="for the page; unset, report.html beside the run"
    )
    parser.add_argument(
        "--markdown", metavar="FILE", type=Path, help="for Markdown; unset, summary.md beside it"
    )
    parser.add_argument(
        "--against", metavar="RUN", help='an earlier run to compare with, or "last" for the newest'
    )
    parser.add_argument(
        "--other-machine", action="store_true", help="compare even runs of different machines"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print and write; 0 when that was done."""
    from folovllm.bench.compare import compare_runs, find_run
    from folovllm.bench.report import HTML_NAME, MARKDOWN_NAME, write_html, write_markdown
    from folovllm.bench.results import read_run
    from folovllm.bench.summary import render_text

    check_writable("--markdown", arguments.markdown)
    check_writable("--html", arguments.html)
    place: Path = arguments.place
    measured, folder = read_run(place), place if place.is_dir() else place.parent
    comparison = None
    if arguments.against:
        earlier = read_run(find_run(arguments.against, folder.absolute().parent, before=place))
        comparison = compare_runs(earlier, measured, other_machine=arguments.other_machine)
    sys.stdout.write(render_text(measured, comparison))
    sys.stdout.flush()
    markdown, html = (
        arguments.markdown or folder / MARKDOWN_NAME,
        arguments.html or folder / HTML_NAME,
    )
    write_markdown(measured, markdown, comparison)
    write_html(measured, html, comparison)
    sys.stdout.write(f"\nwritten: {markdown}, {html}\n")
    return 0
