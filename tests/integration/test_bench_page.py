"""The report in a real browser, where there is one: Chromium without a window."""

import pytest

from folovllm.bench.compare import compare_runs
from folovllm.bench.page import render_page
from folovllm.bench.wording import quantity
from tests.integration.browser import CHROMIUM, Browser
from tests.unit.bench.example import example_run


@pytest.fixture(scope="module")
def pair():
    return compare_runs(example_run(), example_run(slower=1.2, seed=3))


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory, pair):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render_page(pair.later, pair), encoding="utf-8")
    return path


WIDTHS = {"desktop": 1280, "telephone": 390}


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_a_browser_shows_it(browser, page_file, width, dark):
    browser.open(page_file, width, dark=dark)
    assert browser.complaints == []
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    scrolled = "[...document.querySelectorAll('.scroll')].some(e => e.scrollWidth > e.clientWidth)"
    assert not browser.evaluate(scrolled)
    paper = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(20, 23, 27)" if dark else "rgb(255, 255, 255)")
    ink = "getComputedStyle(document.querySelector('figure > svg text')).fill"
    assert browser.evaluate(ink) != paper
    assert browser.screenshot().startswith(b"\x89PNG")


OVERLAPS = """\
[...document.querySelectorAll('figure > svg')].flatMap(svg => {
  const texts = [...svg.querySelectorAll('text')].map(
    t => [t.textContent, t.getBoundingClientRect()]);
  return texts.flatMap(([one, a], i) => texts.slice(i + 1).filter(([two, b]) =>
    a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 3 && b.top < a.bottom - 3
  ).map(([two]) => one + ' / ' + two));
})
"""


def test_no_labels_of_a_plot_overlap(browser, page_file):
    browser.open(page_file, WIDTHS["telephone"])
    assert browser.evaluate(OVERLAPS) == []


def test_a_browser_shows_the_figures_of_the_results(browser, page_file, pair):
    browser.open(page_file, WIDTHS["desktop"])
    figures = browser.evaluate(
        "[...document.querySelectorAll('data')].map(d => [Number(d.value), d.textContent])"
    )
    shown = {value: text.replace("\N{NO-BREAK SPACE}", " ") for value, text in figures}
    odd = [each for each in pair.later.measurements if len(each.samples) % 2]
    assert len(odd) > 40
    for each in odd:
        middle = sorted(each.samples)[len(each.samples) // 2]
        assert shown[middle] == quantity(middle, each.unit)


def test_prints(browser, page_file):
    browser.open(page_file, WIDTHS["desktop"], dark=True)
    pdf = browser.pdf()
    assert pdf.startswith(b"%PDF")
