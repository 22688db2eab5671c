"""Medians and spreads of raw samples, and whether two sets of samples really differ."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Verdict = Literal["better", "worse", "within noise", "too few samples"]

SIGNIFICANCE = 0.05
"""How often at most a verdict says "worse" (and "better" as often) where nothing has changed."""

SMALLEST_CHANGE = 0.02
"""What nobody decides by, however sure it is: two runs of the same code differ by as much."""

EXACT_AT_MOST = 40
"""Samples of both sides for which the test counts; beyond, the normal distribution is as good."""

RESAMPLES = 1000


class Spread(NamedTuple):
    """A middle, and how far to both sides of it."""

    median: float
    lowest: float
    highest: float


class Change(NamedTuple):
    """From some samples to others.

    Attributes:
        ratio: of the medians, later over earlier.
        low, high: its 95 % bootstrap interval.
        verdict: of the later samples.
    """

    ratio: float
    low: float
    high: float
    verdict: Verdict


def spread(samples: Sequence[float]) -> Spread:
    """The median, and the range that all samples are in."""
    return Spread(float(np.median(samples)), min(samples), max(samples))


def percentile(samples: Sequence[float], percent: float) -> float:
    """The value that so many percent of the samples are at or below, linearly interpolated."""
    return float(np.percentile(samples, percent))


def shares_of_limit(samples: Sequence[float], limits: Sequence[float], better: str) -> Spread:
    """How much of what the machine allows was reached, 1 being all, each sample by its limit."""
    pairs = list(zip(samples, limits, strict=True))
    return spread([divide(lim, s) if better == "lower" else divide(s, lim) for s, lim in pairs])


def times_as_good(ours: Sequence[float], theirs: Sequence[float], better: str) -> Spread:
    """How many times as good our samples are as theirs.

    Samples of one round were taken close together, so that each round gives a ratio of its own
    and a machine that slows down between rounds spoils none of them. Without as many rounds on
    both sides, the medians' ratio alone is known.
    """
    if len(ours) != len(theirs):
        ours, theirs = [float(np.median(ours))], [float(np.median(theirs))]
    pairs = list(zip(ours, theirs, strict=True))
    return spread([divide(b, a) if better == "lower" else divide(a, b) for a, b in pairs])


def compare_samples(
    earlier: Sequence[float], later: Sequence[float], better: str, noise: float = SMALLEST_CHANGE
) -> Change:
    """Whether the later samples are better or worse than the earlier ones.

    They are if both hold: the ratio of the medians is further from 1 than the noise, and the
    exact rank-sum test of Mann and Whitney (1947), one-sided for each of the two directions,
    gives at most 5 %. Its smallest answer is one over the ways of drawing one side's samples
    from all: 5 % for three and three, which just serves; fewer decide nothing.

    Args:
        earlier: raw samples of the one run.
        later: raw samples of the other.
        better: "lower" or "higher".
        noise: what the medians must differ by.
    """
    ratio = divide(float(np.median(later)), float(np.median(earlier)))
    low, high = _interval(earlier, later)
    return Change(ratio, low, high, _verdict(earlier, later, better, ratio, noise))


def divide(a: float, b: float) -> float:
    """`a / b`, where two zeros are equal and a single one below is infinitely far away."""
    if b == 0:
        return 1.0 if a == 0 else math.copysign(math.inf, a)
    return a / b


def inverse(ratio: float) -> float:
    """One over it."""
    return divide(1.0, ratio)


def _verdict(
    earlier: Sequence[float], later: Sequence[float], better: str, ratio: float, noise: float
) -> Verdict:
    if 1 / math.comb(len(earlier) + len(later), len(later)) > SIGNIFICANCE:
        return "too few samples"
    if max(ratio, inverse(ratio)) - 1 <= noise:
        return "within noise"
    higher = ratio > 1
    chance = rank_test(earlier, later) if higher else rank_test(later, earlier)
    if chance > SIGNIFICANCE:
        return "within noise"
    return "better" if higher == (better == "higher") else "worse"


def rank_test(low: Sequence[float], high: Sequence[float]) -> float:
    """How likely chance alone puts samples as high among all as `high` are, or higher.

    Args:
        low: the other samples; ties share their ranks.
        high: the samples that may be higher.
    """
    everything = np.concatenate([np.asarray(low, float), np.asarray(high, float)])
    _, place, counts = np.unique(everything, return_inverse=True, return_counts=True)
    # Twice the rank, so that shared ranks are whole numbers.
    ranks = (2 * np.cumsum(counts) - counts + 1)[place]
    found = int(ranks[len(low) :].sum())
    if len(everything) <= EXACT_AT_MOST:
        return _exact_tail(ranks, len(high), found)
    mean = len(high) * ranks.mean()
    deviation = math.sqrt(len(low) * len(high) / (len(everything) - 1) * ranks.var())
    return 0.5 * math.erfc((found - 1 - mean) / deviation / math.sqrt(2)) if deviation else 1.0


def _exact_tail(ranks: NDArray[np.intp], count: int, least: int) -> float:
    """The share of all subsets of `count` ranks whose sum is at least `least`."""
    ways = np.zeros((count + 1, int(ranks.sum()) + 1))  # by size and sum of the subset
    ways[0, 0] = 1
    for rank in ranks:
        ways[1:, rank:] += ways[:-1, :-rank].copy()
    return float(ways[count, least:].sum() / ways[count].sum())


def _interval(earlier: Sequence[float], later: Sequence[float]) -> tuple[float, float]:
    """Percentile bootstrap (Efron 1979) of the ratio of medians; the same for the same samples."""
    random = np.random.default_rng(0)
    below, above = (
        np.median(random.choice(np.asarray(side, float), (RESAMPLES, len(side))), axis=1)
        for side in (earlier, later)
    )
    ratios = [divide(float(a), float(b)) for a, b in zip(above, below, strict=True)]
    # "nearest" never computes with the infinities that a median of zero leaves
    low, high = np.percentile(ratios, [2.5, 97.5], method="nearest")
    return float(low), float(high)
