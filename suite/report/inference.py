"""What a few runs say about a difference: intervals, tests, and how many runs it would take. Values are accuracies in points.

Everything is two-sided at 95 %. Nothing is said of fewer than two values, nor where they have no spread: numbers are absent
then (nan), not 0 or 1.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestIndPower, TTestPower

ALPHA = 0.05
POWER = 0.8
"""The chance with which `seeds_needed` finds the difference."""
LARGE = 3.5
"""An effect from which on the fewest runs will do."""
RESAMPLES = 9999

Interval = tuple[float, float]
NO_INTERVAL: Interval = (math.nan, math.nan)


def t_interval(values: Sequence[float]) -> Interval:
    """The t interval of the mean."""
    if len(values) < 2:
        return NO_INTERVAL
    mean, error = float(np.mean(values)), float(stats.sem(values))
    half = float(stats.t.ppf(1 - ALPHA / 2, len(values) - 1)) * error
    return mean - half, mean + half


def bootstrap_median_interval(values: Sequence[float]) -> Interval:
    """The percentile bootstrap interval of the median, always the same for the same values.

    Of five values it reaches from the smallest to the largest.
    """
    if len(values) < 3:
        return NO_INTERVAL
    drawn = stats.bootstrap(
        (np.sort(values),), np.median, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(0)
    )
    return float(drawn.confidence_interval.low), float(drawn.confidence_interval.high)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The mean of `a` minus that of `b`, with its t interval and p-value."""

    mean: float
    interval: Interval
    p: float
    effect: float
    """The difference in standard deviations, of the differences where paired."""
    paired: bool
    n: int
    """Pairs, or the runs of the smaller side."""


def difference(a: Sequence[float], b: Sequence[float], *, paired: bool) -> Difference:
    """The paired t test, value by value, or Welch's where the two have nothing in common."""
    first, second = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    n, mean = min(len(first), len(second)), float(first.mean() - second.mean())
    if paired:
        spread = float(np.std(first - second, ddof=1)) if n > 1 else 0.0
    else:
        spread = math.sqrt((np.var(first, ddof=1) + np.var(second, ddof=1)) / 2) if n > 1 else 0.0
    if spread < 1e-9:
        return Difference(mean=mean, interval=NO_INTERVAL, p=math.nan, effect=math.nan, paired=paired, n=n)
    test = stats.ttest_rel(first, second) if paired else stats.ttest_ind(first, second, equal_var=False)
    low, high = test.confidence_interval(1 - ALPHA)
    interval = (float(low), float(high))
    return Difference(mean=mean, interval=interval, p=float(test.pvalue), effect=mean / spread, paired=paired, n=n)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values of one family, corrected for its size by Holm's method; absent ones stay absent and do not count."""
    p = np.asarray(p_values, dtype=float)
    there = ~np.isnan(p)
    if there.any():
        p[there] = multipletests(p[there], alpha=ALPHA, method="holm")[1]
    return [float(value) for value in p]


def probability_of_improvement(a: Sequence[float], b: Sequence[float]) -> float:
    """How often a run of `a` beats a run of `b`, ties counted half: Mann and Whitney's U over all pairs."""
    return float(stats.mannwhitneyu(a, b, method="asymptotic").statistic) / (len(a) * len(b))


def seeds_needed(effect: float, *, paired: bool) -> float:
    """Runs of each method that a t test needs to find such a difference with `POWER`: at least 3; nan where it is unknown."""
    return _seeds_needed(round(min(abs(effect), LARGE), 2), paired) if math.isfinite(effect) else math.nan


@functools.cache
def _seeds_needed(effect: float, paired: bool) -> float:
    if effect < 0.01:
        return math.nan
    solver = TTestPower() if paired else TTestIndPower()
    return max(3.0, math.ceil(np.squeeze(solver.solve_power(effect, alpha=ALPHA, power=POWER))))
