import math

import pytest
from hypothesis import given, strategies as st

from folovllm.bench.wording import (
    change,
    count,
    duration,
    number,
    percent,
    printable,
    quantity,
    span,
    times,
)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (1.234, "s", "1.23 s"),
        (0.9996, "s", "1.00 s"),
        (0.04567, "s", "45.7 ms"),
        (1.2e-5, "s", "12.0 µs"),
        (0.0, "s", "0 s"),
        (1e-12, "s", "0.00100 ns"),
        (3723.0, "s", "3,723 s"),
        (1.5 * 2**30, "bytes", "1.50 GiB"),
        (700 * 2**20, "bytes", "700 MiB"),
        (3.456e10, "B/s", "34.6 GB/s"),
        (1.5e11, "FLOP/s", "150 GFLOP/s"),
        (228.4, "tok/s", "228 tok/s"),
        (0.0417, "tok/s", "0.0417 tok/s"),
        (12.0, "", "12.0"),
        (-0.5, "s", "−500 ms"),
        (5.0, "<script>", "5.00 <script>"),
    ],
)
def test_quantities(value, unit, text):
    assert quantity(value, unit) == text


def test_a_span_has_one_unit():
    assert span(0.9, 1.0, 1.2, "s") == "0.900 – 1.20"
    assert span(0.9, 0.99, 1.2, "s") == "900 – 1,200"
    assert span(0.0, 0.0, 0.0, "s") == "0 – 0"


@pytest.mark.parametrize(
    ("value", "text"),
    [(9.996, "10.0"), (99.96, "100"), (1e9, "1.00e+09"), (1e-4, "1.00e−04"), (math.inf, "∞")],
)
def test_numbers(value, text):
    assert number(value) == text


def test_counts_percent_and_changes():
    assert (count(512.0), count(2.5), count(2048)) == ("512", "2.5", "2,048")
    assert (percent(0.414), percent(0.042), percent(0.0996), percent(0.0)) == (
        "41 %",
        "4.2 %",
        "10 %",
        "0 %",
    )
    assert (change(1.12), change(0.97), change(1.0)) == ("+12 %", "−3.0 %", "0 %")


def test_times_durations_and_text():
    assert (times(0.5531), times(5.8), times(18.34)) == ("0.55", "5.80", "18.3")
    assert (duration(42.4), duration(523.0)) == ("42 s", "8 min 43 s")
    assert change(0.99999) == "0 %"
    assert printable("a\x1b\ud800\n模") == "a\ufffd\ufffd\n模"


@given(st.floats(-1e300, 1e300), st.sampled_from(["s", "bytes", "B/s", "x"]))
def test_a_quantity_is_right_to_half_a_percent_and_short(value, unit):
    text, _, _ = quantity(value, "x").partition(" ")
    assert float(text.replace(",", "").replace("−", "-")) == pytest.approx(value, rel=0.0051)
    assert len(quantity(value, unit)) < 20
