"""Intervals and tests of a few runs, and the runs that a test needs.

Values are accuracies in percentage points.

Tests are two-sided at 5 % and intervals have 95 % unless a level is given. Without spread, or with fewer than two values,
numbers are absent (nan). Shapes: P pairs of methods; N and M runs of the first and of the second; R runs of a family.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import stats

ALPHA = 0.05
POWER = 0.8
"""Probability with which `seeds_needed` runs find the difference."""
FEWEST = 3
"""The least number of runs that `seeds_needed` returns."""
RESAMPLES = 9999
ALIKE = 0.2
"""Level of the F test by which a method keeps its own variance in a declared family."""
NO_SPREAD = 1e-9
"""Standard deviations up to this one come from rounding."""

Interval = tuple[float, float]
NO_INTERVAL: Interval = (math.nan, math.nan)


def t_interval(values: Sequence[float], *, alpha: float = ALPHA) -> Interval:
    """Return the t interval of the mean, with coverage 1 - `alpha`."""
    if len(values) < 2:
        return NO_INTERVAL
    mean, half = float(np.mean(values)), float(t_half_width(np.std(values, ddof=1), len(values), alpha=alpha))
    return mean - half, mean + half


def t_half_width(sd: Any, n: Any, *, alpha: float = ALPHA) -> Any:
    """Return half the width of a mean's t interval; nan for n = 1.

    The arguments are standard deviations and numbers of runs.
    """
    return sd * stats.t.ppf(1 - alpha / 2, n - 1) / np.sqrt(n)


@functools.cache
def median_sd(n: int) -> float:
    """Return the sd of the median of `n` standard normal values; 0.54 for five."""
    grid, step = np.linspace(-6, 6, 1201, retstep=True)
    below, above, density = stats.norm.cdf(grid), stats.norm.sf(grid), stats.norm.pdf(grid)
    half = (n - 1) // 2
    if n % 2:  # the density of the middle value
        weight = (below * above) ** half * density
        square = grid**2
    else:  # the joint density of the two middle values, whose mean is the median
        weight = np.triu(np.outer(below**half * density, above**half * density)) * step
        square = (np.add.outer(grid, grid) / 2) ** 2
    log_count = math.lgamma(n + 1) - 2 * math.lgamma(half + 1)
    return math.sqrt(math.exp(log_count) * float((square * weight).sum()) * float(step))


def difference_interval(values: Sequence[float], reference: float, *, median: bool, of_runs: int | None) -> Interval:
    """Return the t interval of mean or median minus a reference value.

    The reference value may have an error of its own.

    of_runs   the runs whose median the reference is; None if the source states none, and the reference then counts as exact
    The reference's runs are taken to have the standard deviation of `values`.
    """
    if len(values) < 2:
        return NO_INTERVAL
    centre = float(np.median(values) if median else np.mean(values)) - reference
    own = median_sd(len(values)) if median else 1 / math.sqrt(len(values))
    error = float(np.std(values, ddof=1)) * math.hypot(own, median_sd(of_runs) if of_runs else 0.0)
    half = float(stats.t.ppf(1 - ALPHA / 2, len(values) - 1)) * error
    return centre - half, centre + half


Equivalence = Literal["equivalent", "below", "above", "open"]


def equivalence(interval: Interval, margin: float) -> Equivalence:
    """Compare an interval of a difference with 0 -+ `margin`.

    These are two one-sided tests, each at half of 1 - coverage.

    "equivalent": all of the interval lies within the margin. "below", "above": all of it lies outside, on that side.
    """
    low, high = interval
    if low >= -margin and high <= margin:
        return "equivalent"
    return "below" if high < -margin else "above" if low > margin else "open"


def bootstrap_median_interval(values: Sequence[float]) -> Interval:
    """Return the percentile bootstrap interval of the median, the same for the same values.

    For five values the interval reaches from the smallest to the largest.
    """
    if len(values) < 3:
        return NO_INTERVAL
    drawn = stats.bootstrap(
        (np.sort(values),), np.median, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(0)
    )
    return float(drawn.confidence_interval.low), float(drawn.confidence_interval.high)


@dataclass(frozen=True, kw_only=True)
class Differences:
    """Mean of `a` minus mean of `b` for each of P pairs of methods.

    Each has a standard error and a p-value.
    """

    mean_P: np.ndarray
    error_P: np.ndarray
    """Standard error of the difference."""
    df_P: np.ndarray
    """Degrees of freedom of the t distribution."""
    p_P: np.ndarray
    effect_P: np.ndarray
    """The difference in standard deviations: of the differences if paired, else of a run."""

    def interval(self, level_P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return lower and upper ends [P].

        A pair's interval leaves out 0 if its p-value is below its level.
        """
        with np.errstate(invalid="ignore"):
            half_P = stats.t.ppf(1 - level_P / 2, self.df_P) * self.error_P
        return self.mean_P - half_P, self.mean_P + half_P


def differences(a_PN: np.ndarray, b_PM: np.ndarray, *, paired: bool) -> Differences:
    """Test each row of `a_PN` against the same row of `b_PM`.

    Values are paired (N = M), or the test is Welch's.
    """
    mean_P = a_PN.mean(axis=1) - b_PM.mean(axis=1)
    nothing_P = np.full(len(mean_P), math.nan)
    if min(a_PN.shape[1], b_PM.shape[1]) < 2:
        return Differences(mean_P=mean_P, error_P=nothing_P, df_P=nothing_P, p_P=nothing_P, effect_P=nothing_P)
    if paired:
        spread_P = np.std(a_PN - b_PM, axis=1, ddof=1)
    else:
        spread_P = np.sqrt((np.var(a_PN, axis=1, ddof=1) + np.var(b_PM, axis=1, ddof=1)) / 2)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # of rows without spread, whose results are dropped below
        test = stats.ttest_rel(a_PN, b_PM, axis=1) if paired else stats.ttest_ind(a_PN, b_PM, axis=1, equal_var=False)
        values = (mean_P / test.statistic, np.broadcast_to(test.df, mean_P.shape), test.pvalue, mean_P / spread_P)
    error_P, df_P, p_P, effect_P = (np.where(spread_P > NO_SPREAD, value, math.nan) for value in values)
    error_P = np.where((spread_P > NO_SPREAD) & (mean_P == 0), _standard_error(a_PN, b_PM, paired), error_P)
    return Differences(mean_P=mean_P, error_P=error_P, df_P=df_P, p_P=p_P, effect_P=effect_P)


def _standard_error(a_PN: np.ndarray, b_PM: np.ndarray, paired: bool) -> np.ndarray:
    if paired:
        return np.asarray(np.std(a_PN - b_PM, axis=1, ddof=1) / math.sqrt(a_PN.shape[1]))
    return np.sqrt(np.var(a_PN, axis=1, ddof=1) / a_PN.shape[1] + np.var(b_PM, axis=1, ddof=1) / b_PM.shape[1])


@dataclass(frozen=True, kw_only=True)
class TwoWay:
    """Methods and blocks as additive effects on R runs, fitted by least squares.

    A block is what runs of several methods share: base network and seed. The variance of a run is pooled over all runs of all
    methods, so that a comparison of two methods has the degrees of freedom of the family. A method whose own variance is larger
    (F test at level `ALIKE`) keeps its own, and its comparisons get Satterthwaite's degrees of freedom.

    Own variances are unbiased: the sums of squared residuals of the methods are solved for them (Rao's MINQUE). Simulated with
    Holm's correction, 2 to 20 rivals, standard deviations that differ by factors up to 6, at most 5 % of studies with 5 blocks
    have a false claim, and at most 7 % with 3 blocks. A gap of 0.5 points at equal standard deviations of 0.2 is found in 79 % of
    cases with 8 rivals and in 69 % with 20; 90 % take 6 and 7 blocks. The pooled variance alone finds 92 % and 90 %, with up to
    38 % of false claims (`tests/benchmarks/power.py`).
    """

    effect_M: np.ndarray
    weight_MR: np.ndarray
    """Of the runs in each effect."""
    method_RM: np.ndarray
    """1 where the run is of the method."""
    fixed_MM: np.ndarray
    """Of the effects in the fitted ones: a contrast that this matrix keeps can be estimated."""
    pooled: float
    """Variance of a run; nan without degrees of freedom or without spread."""
    df: float
    variance_M: np.ndarray
    df_M: np.ndarray
    """Degrees of freedom of `variance_M`; those of the pooled variance where it holds."""
    own_M: np.ndarray
    """True for methods that keep their own variance."""

    @staticmethod
    def fit(top1_R: Sequence[float], method_R: Sequence[int], block_R: Sequence[Hashable]) -> TwoWay:
        """Fit methods numbered 0..M-1. Blocks that hold one run determine nothing."""
        number = {block: index for index, block in enumerate(dict.fromkeys(block_R))}
        methods = 1 + max(method_R)
        method_RM = np.eye(methods)[list(method_R)]
        design = np.hstack([method_RM, np.eye(len(number))[[number[block] for block in block_R]]])
        inverse = np.linalg.pinv(design)
        effect = inverse @ np.asarray(top1_R, dtype=float)
        residual_RR = np.eye(len(design)) - design @ inverse
        square_M = method_RM.T @ (residual_RR @ np.asarray(top1_R, dtype=float)) ** 2
        df = len(design) - int(np.linalg.matrix_rank(design))
        pooled = float(square_M.sum()) / df if df > 0 else math.nan
        pooled = pooled if pooled > NO_SPREAD**2 else math.nan
        variance_M, df_M = _own_variances(square_M, residual_RR, method_RM)
        with np.errstate(invalid="ignore"):
            own_M = variance_M > stats.f.isf(ALIKE, df_M, df) * pooled
        return TwoWay(
            effect_M=effect[:methods],
            weight_MR=inverse[:methods],
            method_RM=method_RM,
            fixed_MM=inverse[:methods] @ design,
            pooled=pooled,
            df=df,
            variance_M=np.where(own_M, variance_M, pooled),
            df_M=np.where(own_M, df_M, df),
            own_M=own_M,
        )

    def estimable(self, first_P: Sequence[int], second_P: Sequence[int]) -> np.ndarray:
        """Return for each pair of methods whether blocks connect the two, bool [P]."""
        contrast_PE = np.eye(*self.fixed_MM.shape)[list(first_P)] - np.eye(*self.fixed_MM.shape)[list(second_P)]
        fitted_PE = self.fixed_MM[list(first_P)] - self.fixed_MM[list(second_P)]
        return np.asarray(np.isclose(contrast_PE, fitted_PE, atol=1e-6).all(axis=1))

    def differences(self, first_P: Sequence[int], second_P: Sequence[int]) -> Differences:
        """Return the tested difference of effects for each pair.

        Without blocks that connect the pair, all numbers are nan.
        """
        a, b = np.asarray(first_P), np.asarray(second_P)
        estimable_P = self.estimable(first_P, second_P)
        mean_P = np.where(estimable_P, self.effect_M[a] - self.effect_M[b], math.nan)
        part_PM = (self.weight_MR[a] - self.weight_MR[b]) ** 2 @ self.method_RM * self.variance_M
        shared_P = part_PM[:, ~self.own_M].sum(axis=1)
        own_P = (part_PM**2 / self.df_M)[:, self.own_M].sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            error_P = np.where(estimable_P, np.sqrt(part_PM.sum(axis=1)), math.nan)
            df_P = error_P**4 / (shared_P**2 / self.df + own_P)
            p_P = 2 * stats.t.sf(np.abs(mean_P / error_P), df_P)
        sd_P = np.sqrt((self.variance_M[a] + self.variance_M[b]) / 2)
        return Differences(mean_P=mean_P, error_P=error_P, df_P=df_P, p_P=p_P, effect_P=mean_P / sd_P)


def _own_variances(
    square_M: np.ndarray, residual_RR: np.ndarray, method_RM: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the variance of a run of each method, and its degrees of freedom.

    square_M      sums of squared residuals
    residual_RR   matrix that maps accuracies to residuals
    Degrees of freedom are nan for a method whose runs leave no residual.
    """
    share_MM = method_RM.T @ residual_RR**2 @ method_RM
    variance_M = np.linalg.lstsq(share_MM, square_M, rcond=None)[0]
    trace_M = method_RM.T @ np.diag(residual_RR)
    with np.errstate(invalid="ignore", divide="ignore"):
        return variance_M, np.where(trace_M > 1e-9, trace_M**2 / np.diag(share_MM), math.nan)


def holm(p_P: np.ndarray) -> np.ndarray:
    """Return the p-values of one family, corrected by Holm's method.

    Absent p-values stay absent and do not count.

    statsmodels has the same function (a test compares both), but takes seconds over many families.
    """
    corrected_P = np.asarray(p_P, dtype=float).copy()
    order = np.argsort(corrected_P)[: int((~np.isnan(corrected_P)).sum())]
    steps = np.arange(len(order), 0, -1) * corrected_P[order]
    corrected_P[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return corrected_P


def holm_levels(p_P: np.ndarray) -> np.ndarray:
    """Return the level of Holm's method for each p-value; nan for absent ones.

    The smallest of K p-values is tested at ALPHA / K, the next at ALPHA / (K - 1), up to the first that is not rejected. Equal
    ones (to nine digits) have the level of the first of them, and all after the first that is not rejected have its level. So a
    p-value lies below its level if, and only if, Holm's method rejects it.
    """
    level_P = np.full(len(p_P), math.nan)
    present_P = ~np.isnan(p_P)
    # CPUs differ in the last digits of equal p-values, which then would have to be tested in another order.
    rounded = np.array([float(f"{p:.9g}") for p in p_P[present_P]])
    left = len(rounded) - np.searchsorted(np.sort(rounded), rounded)
    rejected = int((holm(p_P)[present_P] < ALPHA).sum())
    level_P[present_P] = ALPHA / np.maximum(left, len(rounded) - rejected)
    return level_P


def probability_of_improvement(a: np.ndarray, b: np.ndarray, *, paired: bool) -> float:
    """Return the share of comparisons in which `a` is above `b`; ties count half.

    Values are paired, or each of `a` is compared with each of `b`: Mann and Whitney's U over the number of pairs.
    """
    first = a if paired else a[:, None]
    return float((first > b).mean() + (first == b).mean() / 2)


def seeds_needed(
    effect_P: np.ndarray, level_P: np.ndarray, *, paired: bool = False, freedom: float | np.ndarray | None = None
) -> np.ndarray:
    """Return the runs of each method that a t test needs, float [P].

    The test finds the effect with `POWER`; the result is at least `FEWEST`.

    effect_P   differences in standard deviations, as `Differences.effect_P`
    level_P    levels of the two-sided tests
    freedom    degrees of freedom per run beyond the first, a number or [P]; None takes 1 if paired, else 2
    Absent (nan) if the effect is absent or below 0.01.
    """
    effect, level = np.abs(effect_P), np.asarray(level_P, dtype=float)
    per_run = np.broadcast_to(
        np.asarray((1 if paired else 2) if freedom is None else freedom, dtype=float), effect.shape
    )
    finite = np.isfinite(effect) & (effect >= 0.01) & np.isfinite(level)
    result = np.full(len(effect), math.nan)
    effect, level, per_run = effect[finite], level[finite], per_run[finite]
    normal = (1 if paired else 2) * ((stats.norm.isf(level / 2) + stats.norm.ppf(POWER)) / effect) ** 2
    runs = np.maximum(FEWEST, np.floor(normal))
    while len(weak := np.flatnonzero(_power(runs, effect, level, paired, per_run) < POWER)):
        runs[weak] += np.maximum(1, np.floor(0.001 * runs[weak]))
    result[finite] = runs
    return result


def _power(runs: np.ndarray, effect: np.ndarray, level: np.ndarray, paired: bool, freedom: np.ndarray) -> np.ndarray:
    """Return the power of two-sided t tests by the non-central t distribution."""
    df = freedom * (runs - 1)
    shift = effect * np.sqrt(runs if paired else runs / 2)
    critical = stats.t.isf(level / 2, df)
    power = stats.nct.sf(critical, df, shift)
    return np.where(np.isnan(power) | (shift > 30), 1.0, power)
