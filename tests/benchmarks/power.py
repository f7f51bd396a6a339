"""Simulate size and power of the declared family, and of two simpler tests.

These are the pooled variance alone, and paired tests of all pairs under one correction.

    python -m tests.benchmarks.power [--studies 1000]

A study has a main method and its rivals on 5 base networks. Accuracies are a base network's own level plus noise. The size is the
share of studies with a false claim; the power is the share of rivals from which a main method that is better by a gap is told
apart, at equal standard deviations of 0.2 points.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from suite.report.statistics import inference

BASES, SD, BASE_SD = 5, 0.2, 0.3
SIZE: dict[str, list[float]] = {
    "8 rivals, equal": [SD] * 9,
    "20 rivals, equal": [SD] * 21,
    "1 of 8 rivals at 0.8": [SD] * 8 + [0.8],
    "1 of 20 rivals at 1.0": [SD] * 20 + [1.0],
    "3 of 8 rivals at 0.8": [SD] * 6 + [0.8] * 3,
    "main of 8 at 0.3": [0.3] + [SD] * 8,
    "main of 8 at 0.6": [0.6] + [SD] * 8,
    "main of 8 at 1.0": [1.0] + [SD] * 8,
    "main of 20 at 0.4": [0.4] + [SD] * 20,
    "main and 1 of 8 at 1.0": [1.0] + [SD] * 7 + [1.0],
}
"""Standard deviations of the methods of a study; the first method is the main one."""
POWER = {"8 rivals": 9, "20 rivals": 21}
"""Methods of a study."""
GAP = 0.5


def accuracies(studies: int, sds: Sequence[float], gap: float, bases: int) -> np.ndarray:
    """Return simulated accuracies [studies, methods, bases]; method 0 is the main one."""
    draw = np.random.default_rng(0)
    shape = (studies, len(sds), bases)
    noise = draw.normal(0, 1, shape) * np.array(sds)[:, None] + draw.normal(0, BASE_SD, (studies, 1, bases))
    noise[:, 0] += gap
    return 90 + noise


def claims(studies: int, sds: Sequence[float], gap: float = 0.0, *, bases: int = BASES, pooled: bool = False) -> Any:
    """Return the comparisons of the declared family that each study claims, int [studies].

    `pooled` takes the pooled variance for every method.
    """
    methods = len(sds)
    method_R, block_R = (axis.ravel().tolist() for axis in np.indices((methods, bases)))
    counts = []
    for top1_MB in accuracies(studies, sds, gap, bases):
        fitted = inference.TwoWay.fit(top1_MB.ravel().tolist(), method_R, block_R)
        if pooled:
            alike_M = np.full(methods, fitted.pooled)
            fitted = dataclasses.replace(fitted, variance_M=alike_M, own_M=np.zeros(methods, dtype=bool))
        tested = fitted.differences([0] * (methods - 1), range(1, methods))
        counts.append(int((inference.holm(tested.p_P) < inference.ALPHA).sum()))
    return np.array(counts)


def claims_of_all_pairs(studies: int, sds: Sequence[float], gap: float = 0.0) -> Any:
    """Return the same when all pairs are paired t tests under one correction."""
    pairs = list(itertools.combinations(range(len(sds)), 2))
    first, second = (list(side) for side in zip(*pairs, strict=True))
    main = np.array([a == 0 for a, _ in pairs])
    counts = []
    for top1_MB in accuracies(studies, sds, gap, BASES):
        p_P = stats.ttest_rel(top1_MB[first], top1_MB[second], axis=1).pvalue
        counts.append(int((inference.holm(p_P) < inference.ALPHA)[main].sum()))
    return np.array(counts)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=1000)
    studies = parser.parse_args().studies
    print(
        f"{studies} simulated studies (error at 5 %: {100 * math.sqrt(0.05 * 0.95 / studies):.1f}), {BASES} base networks"
    )
    print(f"{'':44} declared family  pooled alone  all pairs")
    for name, sds in SIZE.items():
        counts = (claims(studies, sds), claims(studies, sds, pooled=True), claims_of_all_pairs(studies, sds))
        _line(f"false claims in % of studies, {name}", [100 * (count > 0).mean() for count in counts])
    for name, methods in POWER.items():
        sds = [SD] * methods
        counts = (
            claims(studies, sds, GAP),
            claims(studies, sds, GAP, pooled=True),
            claims_of_all_pairs(studies, sds, GAP),
        )
        _line(f"gaps of {GAP} found in %, {name}", [100 * count.mean() / (methods - 1) for count in counts])
        for bases in (6, 7):
            count = claims(studies, sds, GAP, bases=bases)
            _line(f"  on {bases} base networks", [100 * count.mean() / (methods - 1)])


def _line(name: str, shares: Sequence[float]) -> None:
    print(f"{name:54} {'   '.join(f'{share:10.1f}' for share in shares)}")


if __name__ == "__main__":
    main()
