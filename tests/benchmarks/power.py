"""Simulate size and power of the declared family, beside all paired tests.

    python -m tests.benchmarks.power [--studies 1000]

A study has 21 methods on 5 base networks. Accuracies are a base network's own level plus noise of 0.2 points; the main method is
better than each rival by a gap.
"""

from __future__ import annotations

import argparse
import itertools

import numpy as np
from scipy import stats

from suite.report import inference

METHODS, BASES, SD, BASE_SD = 21, 5, 0.2, 0.3


def accuracies(studies: int, gap: float, seed: int) -> np.ndarray:
    """Return simulated accuracies [studies, methods, bases]; method 0 is the main one."""
    draw = np.random.default_rng(seed)
    noise = draw.normal(0, SD, (studies, METHODS, BASES)) + draw.normal(0, BASE_SD, (studies, 1, BASES))
    noise[:, 0] += gap
    return 90 + noise


def claims(studies: int, gap: float, seed: int) -> np.ndarray:
    """Return how many of the 20 comparisons of the declared family each study claims [studies]."""
    method_R, block_R = (axis.ravel().tolist() for axis in np.indices((METHODS, BASES)))
    counts = []
    for top1_MB in accuracies(studies, gap, seed):
        fitted = inference.TwoWay.fit(top1_MB.ravel().tolist(), method_R, block_R)
        tested = fitted.differences([0] * (METHODS - 1), range(1, METHODS))
        counts.append(int((inference.holm(tested.p_P) < inference.ALPHA).sum()))
    return np.array(counts)


def claims_of_all_pairs(studies: int, gap: float, seed: int) -> np.ndarray:
    """Return the same when all 210 pairs are paired t tests under one correction."""
    pairs = list(itertools.combinations(range(METHODS), 2))
    first, second = (list(side) for side in zip(*pairs, strict=True))
    main = np.array([a == 0 for a, _ in pairs])
    counts = []
    for top1_MB in accuracies(studies, gap, seed):
        p_P = stats.ttest_rel(top1_MB[first], top1_MB[second], axis=1).pvalue
        counts.append(int((inference.holm(p_P) < inference.ALPHA)[main].sum()))
    return np.array(counts)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=1000)
    studies = parser.parse_args().studies
    print(f"{studies} simulated studies, {METHODS} methods, {BASES} base networks, sd {SD}")
    for name, count in (("declared family", claims), ("all pairs", claims_of_all_pairs)):
        size = (count(studies, 0.0, 0) > 0).mean()
        power = {gap: count(studies, gap, 1).mean() / (METHODS - 1) for gap in (0.2, 0.3, 0.5)}
        seen = ", ".join(f"{100 * share:.0f} % of gaps of {gap}" for gap, share in power.items())
        print(f"{name:16} false claims in {100 * size:.1f} % of studies; finds {seen}")


if __name__ == "__main__":
    main()
