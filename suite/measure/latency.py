"""Latency of a network beside the dense one in one process, by alternating blocks.

On a GPU blocks are timed with CUDA events, on a CPU with the wall clock and with CPU time of the process. Both networks are ready
for inference (batch norm folded). The null test measures the dense network against itself in the same blocks. If its interval
misses 1, the measurement was disturbed, and no speed-up is claimed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from suite.measure.claim import Interval, Verdict, verdict
from suite.measure.protocol import Protocol
from suite.timing import Run, both_clocks, rounds, warm_up

ORDERS = 6
"""Permutations of the three runs of a block; blocks are measured in multiples of these."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Milliseconds for one batch in every block, and two ratios.

    ratio, null   dense / packed and dense / dense: median, lower and upper end of the 95 % interval
    attempts      measurements until the null test passed, or until the protocol's limit
    cpu           dense / packed in CPU time of the process; None on a GPU
    cpu_ms        median CPU milliseconds of dense and packed; None on a GPU
    flags         reasons to doubt the measurement (`machine.flags`)
    """

    dense_ms: np.ndarray
    packed_ms: np.ndarray
    ratio: Interval
    null: Interval
    attempts: int = 1
    cpu: Interval | None = None
    cpu_ms: tuple[float, float] | None = None
    flags: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """True if the interval of dense over dense contains 1."""
        return self.null[1] <= 1 <= self.null[2]

    @property
    def verdict(self) -> Verdict:
        """The claim that the intervals and the flags allow."""
        return verdict(self.ratio, self.null, cpu=self.cpu, flags=self.flags)

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
            **dict(
                zip(("cpu_speedup_x", "cpu_speedup_low_x", "cpu_speedup_high_x"), self.cpu or (None,) * 3, strict=True)
            ),
            **dict(zip(("dense_cpu_ms", "packed_cpu_ms"), self.cpu_ms or (None,) * 2, strict=True)),
            "blocks": len(self.dense_ms),
            "attempts": self.attempts,
            "verdict": self.verdict,
        }


def combine(measurements: Sequence[Measurement]) -> Measurement:
    """Combine the measurements of several processes into one.

    The ratio is the median of the processes' medians. Its interval reaches from their lowest lower end to their highest upper
    end: three processes are too few to estimate how processes vary, so the interval covers each of them. The null interval
    does the same if all processes pass; else it is that of the worst process, so all must pass. Times are those of all blocks;
    attempts are the most.
    """
    cpu = [one.cpu for one in measurements if one.cpu is not None]
    cpu_ms = [one.cpu_ms for one in measurements if one.cpu_ms is not None]
    nulls = [one.null for one in measurements]
    worst = max(nulls, key=lambda null: (max(null[1] - 1, 1 - null[2]), abs(null[0] - 1)))
    return Measurement(
        dense_ms=np.concatenate([one.dense_ms for one in measurements]),
        packed_ms=np.concatenate([one.packed_ms for one in measurements]),
        ratio=_hull([one.ratio for one in measurements]),
        null=_hull(nulls) if all(one.passed for one in measurements) else worst,
        attempts=max(one.attempts for one in measurements),
        cpu=_hull(cpu) if cpu else None,
        cpu_ms=(float(np.median([ms[0] for ms in cpu_ms])), float(np.median([ms[1] for ms in cpu_ms])))
        if cpu_ms
        else None,
        flags=tuple(dict.fromkeys(flag for one in measurements for flag in one.flags)),
    )


def _hull(intervals: Sequence[Interval]) -> Interval:
    """Return the median of the medians, the lowest lower end and the highest upper end."""
    middle, low, high = zip(*intervals, strict=True)
    return float(np.median(middle)), min(low), max(high)


def alternate(
    dense: Run,
    packed: Run,
    device: str,
    protocol: Protocol,
    report: Callable[[float], object] = lambda share: None,
) -> Measurement:
    """Measure until the null test passes, `protocol.attempts` times at most; return the last measurement.

    report   is called with the share that is done, 0 to 1, after every block
    """
    attempts = 1
    while not (result := _alternate_once(dense, packed, device, protocol, report)).passed:
        if attempts == protocol.attempts:
            break
        attempts += 1
    return replace(result, attempts=attempts)


def _alternate_once(
    dense: Run, packed: Run, device: str, protocol: Protocol, report: Callable[[float], object]
) -> Measurement:
    """Time blocks of dense, packed and dense again.

    All six orders rotate, so position effects cancel in both ratios: dense over packed, and dense over dense (null).
    """
    runs = {"dense": dense, "packed": packed, "null": dense}
    dense_s, packed_s = (warm_up(run, device, protocol.warmup_s) for run in (dense, packed))
    repeats = max(1, round(0.008 / max(dense_s, packed_s)))
    blocks: list[dict[str, tuple[float, float]]] = []
    started = time.perf_counter()
    for block in rounds(runs, device, repeats, permute=True, clock=both_clocks):
        blocks.append(block)
        spent = time.perf_counter() - started
        report(min(spent / max(protocol.seconds, 1e-9), len(blocks) / protocol.min_blocks, 1.0))
        if len(blocks) < protocol.min_blocks or len(blocks) % ORDERS:
            continue
        if spent >= protocol.seconds or _is_narrow(blocks, protocol.precision):
            break
    (dense_ms, dense_cpu), (packed_ms, packed_cpu), (null_ms, _) = (_columns(blocks, name) for name in runs)
    has_cpu = device == "cpu" and min(dense_cpu.min(), packed_cpu.min()) > 0
    return Measurement(
        dense_ms=dense_ms,
        packed_ms=packed_ms,
        ratio=median_interval(dense_ms / packed_ms),
        null=median_interval(dense_ms / null_ms),
        cpu=median_interval(dense_cpu / packed_cpu) if has_cpu else None,
        cpu_ms=(float(np.median(dense_cpu)), float(np.median(packed_cpu))) if has_cpu else None,
    )


def _columns(blocks: Sequence[Mapping[str, tuple[float, float]]], name: str) -> np.ndarray:
    """Return the milliseconds of a run by each clock, [2, blocks]."""
    return 1e3 * np.array([block[name] for block in blocks]).T


def _is_narrow(blocks: Sequence[Mapping[str, tuple[float, float]]], precision: float | None) -> bool:
    """Return True if the ratio's interval is narrower than +- `precision` of the ratio."""
    if precision is None:
        return False
    ratio, low, high = median_interval(_columns(blocks, "dense")[0] / _columns(blocks, "packed")[0])
    return (high - low) / 2 < precision * ratio


def median_interval(ratios: np.ndarray) -> Interval:
    """Return the median and its bootstrap 95 % interval (percentile)."""
    from scipy.stats import bootstrap  # a fifth of the time in which a job starts, and only timing needs it

    if np.ptp(ratios) == 0:
        return (float(ratios[0]),) * 3
    result = bootstrap((ratios,), np.median, n_resamples=2000, method="percentile", rng=np.random.default_rng(0))
    interval = result.confidence_interval
    return float(np.median(ratios)), float(interval.low), float(interval.high)
