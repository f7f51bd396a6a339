"""Latency of a network beside the dense one in one process, by alternating blocks.

On a GPU blocks are timed with CUDA events, on a CPU with the wall clock. Both networks are ready for inference (batch norm
folded). The null test measures the dense network against itself in the same blocks. If its interval misses 1, the measurement
was disturbed, and no speed-up is claimed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from suite.measure.protocol import Protocol
from suite.timing import Run, rounds, warm_up

Verdict = Literal["faster", "slower", "no difference", "not trusted"]
ORDERS = 6
"""Permutations of the three runs of a block; blocks are measured in multiples of these."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Milliseconds for one batch in every block, and two ratios.

    ratio, null   dense / packed and dense / dense: median, lower and upper end of the 95 % interval
    attempts      measurements until the null test passed, or until the protocol's limit
    """

    dense_ms: np.ndarray
    packed_ms: np.ndarray
    ratio: tuple[float, float, float]
    null: tuple[float, float, float]
    attempts: int = 1

    @property
    def passed(self) -> bool:
        """True if the interval of dense over dense contains 1."""
        return self.null[1] <= 1 <= self.null[2]

    @property
    def verdict(self) -> Verdict:
        """The claim that the intervals allow."""
        if not self.passed:
            return "not trusted"
        _, low, high = self.ratio
        return "faster" if low > 1 else "slower" if high < 1 else "no difference"

    def columns(self) -> dict[str, Any]:
        """Return the columns of a `TimedRow`: quantiles of both times, then `ratios`."""
        quantiles = {
            f"{name}_ms{suffix}": float(np.quantile(values, q))
            for name, values in (("dense", self.dense_ms), ("packed", self.packed_ms))
            for suffix, q in (("", 0.5), ("_q1", 0.25), ("_q3", 0.75), ("_p5", 0.05), ("_p95", 0.95))
        }
        return {**quantiles, **self.ratios()}

    def ratios(self) -> dict[str, Any]:
        """Return the columns that a row also lists for each process."""
        return {
            **dict(zip(("speedup_x", "speedup_low_x", "speedup_high_x"), self.ratio, strict=True)),
            **dict(zip(("null_x", "null_low_x", "null_high_x"), self.null, strict=True)),
            "blocks": len(self.dense_ms),
            "attempts": self.attempts,
            "verdict": self.verdict,
        }


def combine(measurements: Sequence[Measurement]) -> Measurement:
    """Combine the measurements of several processes into one.

    The ratio is the median of the processes' medians. Its interval reaches from their lowest lower end to their highest upper
    end: three processes are too few to estimate how processes vary, so the interval covers each of them. The null test is the
    worst of the processes', so all must pass. Times are those of all blocks; attempts are the most.
    """
    middle = float(np.median([one.ratio[0] for one in measurements]))
    ratio = middle, min(one.ratio[1] for one in measurements), max(one.ratio[2] for one in measurements)
    nulls = (one.null for one in measurements)
    return Measurement(
        dense_ms=np.concatenate([one.dense_ms for one in measurements]),
        packed_ms=np.concatenate([one.packed_ms for one in measurements]),
        ratio=ratio,
        null=max(nulls, key=lambda null: (max(null[1] - 1, 1 - null[2]), abs(null[0] - 1))),
        attempts=max(one.attempts for one in measurements),
    )


def alternate(dense: Run, packed: Run, device: str, protocol: Protocol) -> Measurement:
    """Measure until the null test passes, `protocol.attempts` times at most; return the last measurement."""
    attempts = 1
    while (result := _alternate_once(dense, packed, device, protocol)).verdict == "not trusted":
        if attempts == protocol.attempts:
            break
        attempts += 1
    return replace(result, attempts=attempts)


def _alternate_once(dense: Run, packed: Run, device: str, protocol: Protocol) -> Measurement:
    """Time blocks of dense, packed and dense again.

    All six orders rotate, so position effects cancel in both ratios: dense over packed, and dense over dense (null).
    """
    runs = {"dense": dense, "packed": packed, "null": dense}
    dense_s, packed_s = (warm_up(run, device, protocol.warmup_s) for run in (dense, packed))
    repeats = max(1, round(0.008 / max(dense_s, packed_s)))
    blocks_ms: list[dict[str, float]] = []
    started = time.perf_counter()
    for block_s in rounds(runs, device, repeats, permute=True):
        blocks_ms.append({name: 1e3 * seconds for name, seconds in block_s.items()})
        if len(blocks_ms) < protocol.min_blocks or len(blocks_ms) % ORDERS:
            continue
        if time.perf_counter() - started >= protocol.seconds or _is_narrow(blocks_ms, protocol.precision):
            break
    dense_ms, packed_ms, null_ms = (_column(blocks_ms, name) for name in runs)
    ratio, null = _interval(dense_ms / packed_ms), _interval(dense_ms / null_ms)
    return Measurement(dense_ms=dense_ms, packed_ms=packed_ms, ratio=ratio, null=null)


def _column(blocks_ms: Sequence[Mapping[str, float]], name: str) -> np.ndarray:
    return np.array([block[name] for block in blocks_ms])


def _is_narrow(blocks_ms: Sequence[Mapping[str, float]], precision: float | None) -> bool:
    """Return True if the ratio's interval is narrower than +- `precision` of the ratio."""
    if precision is None:
        return False
    ratio, low, high = _interval(_column(blocks_ms, "dense") / _column(blocks_ms, "packed"))
    return (high - low) / 2 < precision * ratio


def _interval(ratios: np.ndarray) -> tuple[float, float, float]:
    """Return the median and its bootstrap 95 % interval (percentile)."""
    from scipy.stats import bootstrap  # a fifth of the time in which a job starts, and only timing needs it

    if np.ptp(ratios) == 0:
        return (float(ratios[0]),) * 3
    result = bootstrap((ratios,), np.median, n_resamples=2000, method="percentile", rng=np.random.default_rng(0))
    interval = result.confidence_interval
    return float(np.median(ratios)), float(interval.low), float(interval.high)
