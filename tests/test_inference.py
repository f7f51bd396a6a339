"""Intervals, tests and numbers of seeds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestIndPower, TTestPower

from suite.report.statistics import inference


def test_intervals_are_those_worked_out_by_hand() -> None:
    half = 4.302652730 * 1 / math.sqrt(3)
    assert inference.t_interval([1, 2, 3]) == pytest.approx((2 - half, 2 + half))
    assert inference.bootstrap_median_interval([5, 1, 4, 2, 3]) == (1, 5)
    assert inference.bootstrap_median_interval([7, 7, 7]) == (7, 7)
    for too_few in ([], [1.0]):
        assert all(math.isnan(end) for end in inference.t_interval(too_few))


def test_the_sizing_rule_is_that_of_the_books() -> None:
    """Two methods one standard deviation apart take 17 seeds each, or 10 pairs."""
    effects, level = np.array([1.0, -1.0, 50.0, 0.0, math.nan]), np.full(5, 0.05)
    assert inference.seeds_needed(effects, level).tolist()[:3] == [17, 17, 3]
    paired = inference.seeds_needed(effects, level, paired=True)
    assert paired.tolist()[:3] == [10, 10, 3]
    assert np.isnan(paired[3:]).all()
    for effect, alpha in ((0.35, 0.05), (0.8, 0.01), (1.7, 0.002)):
        ours = [inference.seeds_needed(np.array([effect]), np.array([alpha]), paired=p)[0] for p in (True, False)]
        solvers = (TTestPower(), TTestIndPower())
        assert ours == [max(3, math.ceil(np.squeeze(s.solve_power(effect, alpha=alpha, power=0.8)))) for s in solvers]


def test_a_pooled_error_needs_fewer_seeds_the_more_methods_share_it() -> None:
    seeds = [
        inference.seeds_needed(np.array([2.0]), np.array([0.0025]), freedom=methods - 1)[0] for methods in (2, 5, 21)
    ]
    assert seeds[0] > seeds[1] >= seeds[2] >= 3


@pytest.mark.parametrize("paired", [True, False])
def test_without_spread_nothing_is_certain(paired: bool) -> None:
    alike = inference.differences(np.array([[82.0, 82.0]]), np.array([[80.0, 80.0]]), paired=paired)
    assert alike.mean_P == 2
    assert np.isnan([alike.error_P, alike.p_P, alike.effect_P, *alike.interval(np.array([0.05]))]).all()


def test_absent_p_values_do_not_count_in_the_correction() -> None:
    corrected = inference.holm(np.array([0.01, math.nan, 0.04]))
    assert (corrected[0], corrected[2]) == pytest.approx((0.02, 0.04))
    assert math.isnan(corrected[1])
    assert len(inference.holm(np.array([]))) == 0


def test_statistics_are_those_of_the_libraries() -> None:
    draw = np.random.default_rng(0)
    p = draw.uniform(size=50) ** 3
    assert inference.holm(p) == pytest.approx(multipletests(p, method="holm")[1])
    a, b = draw.integers(0, 5, size=7).astype(float), draw.integers(0, 5, size=4).astype(float)
    unpaired = inference.probability_of_improvement(a, b, paired=False)
    assert unpaired == pytest.approx(stats.mannwhitneyu(a, b).statistic / 28)


def test_improvement_of_pairs_counts_ties_half() -> None:
    a, b = np.array([1.0, 2.0, 2.0]), np.array([1.0, 1.0, 3.0])
    assert inference.probability_of_improvement(a, b, paired=True) == pytest.approx(0.5)
    assert inference.probability_of_improvement(a, b, paired=False) == pytest.approx(5 / 9)
