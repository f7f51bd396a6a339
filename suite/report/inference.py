"""What a few runs say about a difference: intervals, tests, and how many runs it would take. Values are accuracies in points.

Everything is two-sided at 95 %. Nothing is said of fewer than two values, nor where they have no spread: numbers are absent
then (nan), not 0 or 1. P pairs of methods, N and M runs of the first and the second.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats
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
    mean, half = float(np.mean(values)), float(t_half_width(np.std(values, ddof=1), len(values)))
    return mean - half, mean + half


def t_half_width(sd: Any, n: Any) -> Any:
    """Half the width of the t interval of a mean, from standard deviations and numbers of runs; nan for n = 1."""
    return sd * stats.t.ppf(1 - ALPHA / 2, n - 1) / np.sqrt(n)


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
class Differences:
    """The mean of `a` minus that of `b` for each of P pairs of methods, with t intervals and p-values."""

    mean_P: np.ndarray
    low_P: np.ndarray
    high_P: np.ndarray
    p_P: np.ndarray
    effect_P: np.ndarray
    """The difference in standard deviations, of the differences where paired."""


def differences(a_PN: np.ndarray, b_PM: np.ndarray, *, paired: bool) -> Differences:
    """The t test of every row of `a_PN` against the same row of `b_PM`: paired value by value (N = M), or Welch's."""
    mean_P = a_PN.mean(axis=1) - b_PM.mean(axis=1)
    nothing_P = np.full(len(mean_P), math.nan)
    if min(a_PN.shape[1], b_PM.shape[1]) < 2:
        return Differences(mean_P=mean_P, low_P=nothing_P, high_P=nothing_P, p_P=nothing_P, effect_P=nothing_P)
    if paired:
        spread_P = np.std(a_PN - b_PM, axis=1, ddof=1)
    else:
        spread_P = np.sqrt((np.var(a_PN, axis=1, ddof=1) + np.var(b_PM, axis=1, ddof=1)) / 2)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # of rows without spread, whose results are dropped below
        test = stats.ttest_rel(a_PN, b_PM, axis=1) if paired else stats.ttest_ind(a_PN, b_PM, axis=1, equal_var=False)
        interval = test.confidence_interval(1 - ALPHA)
        found = (interval.low, interval.high, test.pvalue, mean_P / spread_P)
    low_P, high_P, p_P, effect_P = (np.where(spread_P > 1e-9, values, math.nan) for values in found)
    return Differences(mean_P=mean_P, low_P=low_P, high_P=high_P, p_P=p_P, effect_P=effect_P)


def holm(p_P: np.ndarray) -> np.ndarray:
    """The p-values of one family, corrected for its size by Holm's method; absent ones stay absent and do not count.

    statsmodels has this too (a test compares them), but collects garbage on every call, which takes seconds over many families.
    """
    corrected_P = np.asarray(p_P, dtype=float).copy()
    order = np.argsort(corrected_P)[: int((~np.isnan(corrected_P)).sum())]
    steps = np.arange(len(order), 0, -1) * corrected_P[order]
    corrected_P[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return corrected_P


def probability_of_improvement(a: np.ndarray, b: np.ndarray) -> float:
    """How often a run of `a` beats a run of `b`, ties counted half: Mann and Whitney's U over the number of pairs."""
    return float((a[:, None] > b).mean() + (a[:, None] == b).mean() / 2)


def seeds_needed(effect: float, *, paired: bool) -> float:
    """Runs of each method that a t test needs to find such a difference with `POWER`: at least 3; nan where it is unknown."""
    return _seeds_needed(round(min(abs(effect), LARGE), 2), paired) if math.isfinite(effect) else math.nan


@functools.cache
def _seeds_needed(effect: float, paired: bool) -> float:
    if effect < 0.01:
        return math.nan
    solver = TTestPower() if paired else TTestIndPower()
    return max(3.0, math.ceil(np.squeeze(solver.solve_power(effect, alpha=ALPHA, power=POWER))))
