import itertools
import math

import numpy as np
import pytest
from hypothesis import given, strategies as st

from folovllm.bench.statistics import (
    compare_samples,
    divide,
    percentile,
    rank_test,
    shares_of_limit,
    spread,
    times_as_good,
)

few = st.lists(st.integers(0, 6).map(float), min_size=1, max_size=5)


def test_a_spread_is_the_median_and_the_range():
    assert spread([3.0, 1.0, 10.0]) == (3.0, 1.0, 10.0)
    assert percentile([1.0, 2.0, 3.0], 75) == 2.5


def test_each_sample_is_a_share_of_its_own_limit():
    assert shares_of_limit([2.0, 4.0, 4.0], [1.0, 1.0, 3.0], "lower") == (0.5, 0.25, 0.75)
    assert shares_of_limit([2.0, 4.0], [4.0, 4.0], "higher") == (0.75, 0.5, 1.0)


def test_ratios_are_those_of_the_rounds():
    # the machine was three times slower in the last round, on both sides
    assert times_as_good([1.0, 1.0, 3.0], [2.0, 2.5, 6.0], "lower") == (2.0, 2.0, 2.5)
    assert times_as_good([10.0, 20.0], [5.0, 5.0], "higher") == (3.0, 2.0, 4.0)


def test_without_the_same_rounds_it_is_the_ratio_of_the_medians():
    assert times_as_good([1.0, 2.0, 3.0], [6.0, 10.0], "lower") == (4.0, 4.0, 4.0)


@given(few, few)
def test_the_test_counts_every_way_to_draw(low, high):
    everything = low + high
    ranks = [sum(b < a for b in everything) * 2 + everything.count(a) + 1 for a in everything]
    sums = [sum(c) for c in itertools.combinations(ranks, len(high))]
    found = sum(ranks[len(low) :])
    expected = sum(s >= found for s in sums) / len(sums)
    assert rank_test(low, high) == pytest.approx(expected)


def test_beyond_counting_it_agrees_with_counting(monkeypatch):
    random = np.random.default_rng(1)
    low, high = random.normal(0, 1, 18).round(1), random.normal(0.6, 1, 18).round(1)
    exact = rank_test(low, high)
    monkeypatch.setattr("folovllm.bench.statistics.EXACT_AT_MOST", 0)
    assert rank_test(low, high) == pytest.approx(exact, rel=0.05)
    assert rank_test([1.0] * 30, [1.0] * 30) == 1.0


@pytest.mark.parametrize(
    ("earlier", "later", "verdict"),
    [
        ([1.0, 1.1, 1.2], [1.3, 1.4, 1.5], "worse"),
        ([1.3, 1.4, 1.5], [1.0, 1.1, 1.2], "better"),
        ([1.0, 1.1, 1.3], [1.2, 1.4, 1.5], "within noise"),  # they overlap
        ([1.0, 1.001, 1.002], [1.003, 1.004, 1.005], "within noise"),  # sure, but nothing
        ([1.0, 1.1], [2.0, 2.1, 2.2], "too few samples"),
        ([1.0], [2.0], "too few samples"),
        ([0.0] * 3, [0.0] * 3, "within noise"),
        ([0.0] * 3, [1.0] * 3, "worse"),
        ([1.0] * 3, [0.0] * 3, "better"),
    ],
)
def test_verdicts(earlier, later, verdict):
    assert compare_samples(earlier, later, "lower").verdict == verdict
    other = {"worse": "better", "better": "worse"}.get(verdict, verdict)
    assert compare_samples(earlier, later, "higher").verdict == other


def test_a_noisier_machine_asks_for_more():
    earlier, later = [1.0, 1.01, 1.02], [1.1, 1.11, 1.12]
    assert compare_samples(earlier, later, "lower").verdict == "worse"
    assert compare_samples(earlier, later, "lower", noise=0.15).verdict == "within noise"


def test_is_seldom_wrong_where_nothing_changed():
    random = np.random.default_rng(2)
    verdicts = [
        compare_samples(*random.lognormal(0, 0.2, (2, size)), "lower").verdict
        for size in (3, 5, 30)
        for _ in range(100)
    ]
    assert verdicts.count("worse") / len(verdicts) < 0.09
    assert verdicts.count("better") / len(verdicts) < 0.09


@given(st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=50))
def test_the_interval_is_around_1_for_the_same_samples(samples):
    change = compare_samples(samples, samples, "lower")
    assert change.ratio == 1.0
    assert change.verdict in ("within noise", "too few samples")
    assert not math.isnan(change.low)


def test_the_interval_of_few_samples_is_their_range():
    change = compare_samples([1.0, 1.1, 1.2], [2.0, 2.2, 2.4], "lower")
    assert (change.ratio, change.low, change.high) == pytest.approx((2.0, 2.0 / 1.2, 2.4))


def test_dividing_by_zero_has_an_answer():
    assert (divide(0.0, 0.0), divide(1.0, 0.0), divide(-1.0, 0.0)) == (1.0, math.inf, -math.inf)
