"""Latency of a packed network beside its dense one: alternating blocks in one process, medians and intervals of the ratio.

On a GPU blocks are timed with CUDA events, on a CPU with the wall clock. Both networks are ready for inference (batch norm
folded). The null test measures the dense network against itself in the same blocks; when its interval misses 1, something
else was measured, and no speed-up is claimed. fp32 means fp32: TF32 is off. The full protocol repeats all of it in fresh
processes, because the choice of algorithms differs between processes (`combined` says how they become one number).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from scipy.stats import bootstrap

from suite.cudagraph import Run

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
Verdict = Literal["faster", "slower", "no difference", "not trusted"]
Name = TypeVar("Name", bound=str)


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How long is measured. `precision` is the wanted half-width of the ratio's interval; None: as long as `seconds`."""

    warmup_s: float
    seconds: float
    min_blocks: int
    precision: float | None
    attempts: int = 3
    """Measurements at most in a process, until the null test passes."""
    processes: int = 1


def protocol(name: str, device: str) -> Protocol:
    """ "quick": about a second; "full": in each of three processes until the interval is narrow (3 % on a CPU, 1 % on a GPU),
    for half a minute at most, or for the 30 blocks that there must be where these take longer."""
    if name == "quick":
        return Protocol(warmup_s=0.05, seconds=0.6, min_blocks=18, precision=None)
    narrow = 0.01 if device == "cuda" else 0.03
    return Protocol(warmup_s=0.5, seconds=30, min_blocks=30, precision=narrow, processes=3)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Milliseconds for one batch in every block, and the ratio dense / packed with its 95 % interval."""

    dense_ms: np.ndarray
    packed_ms: np.ndarray
    ratio: tuple[float, float, float]
    """Median, lower and upper end."""
    null: tuple[float, float, float]
    attempts: int = 1
    """Measurements until the null test passed, or until it was given up."""

    @property
    def passed(self) -> bool:
        """Does the interval of dense over dense contain 1?"""
        return self.null[1] <= 1 <= self.null[2]

    @property
    def verdict(self) -> Verdict:
        """What may be claimed."""
        if not self.passed:
            return "not trusted"
        _, low, high = self.ratio
        return "faster" if low > 1 else "slower" if high < 1 else "no difference"

    def columns(self) -> dict[str, Any]:
        """The columns of a `TimedRow`."""
        quantiles = {
            f"{name}_ms{suffix}": float(np.quantile(values, q))
            for name, values in (("dense", self.dense_ms), ("packed", self.packed_ms))
            for suffix, q in (("", 0.5), ("_q1", 0.25), ("_q3", 0.75), ("_p5", 0.05), ("_p95", 0.95))
        }
        return {**quantiles, **self.ratios()}

    def ratios(self) -> dict[str, Any]:
        """The columns that stand for one process as well."""
        return {
            **dict(zip(("speedup_x", "speedup_low_x", "speedup_high_x"), self.ratio, strict=True)),
            **dict(zip(("null_x", "null_low_x", "null_high_x"), self.null, strict=True)),
            "blocks": len(self.dense_ms),
            "attempts": self.attempts,
            "verdict": self.verdict,
        }


def combined(found: Sequence[Comparison]) -> Comparison:
    """Several processes' comparisons as one.

    The ratio is the median of the processes' medians, its interval reaches from their lowest lower to their highest upper
    end: three processes are too few to estimate how processes vary, so the interval covers each of them. The null test is
    that of the process which fails it worst, so all must pass. Times are those of all blocks; attempts are the most.
    """
    middle = float(np.median([one.ratio[0] for one in found]))
    ratio = middle, min(one.ratio[1] for one in found), max(one.ratio[2] for one in found)
    return Comparison(
        dense_ms=np.concatenate([one.dense_ms for one in found]),
        packed_ms=np.concatenate([one.packed_ms for one in found]),
        ratio=ratio,
        null=max((one.null for one in found), key=lambda null: (max(null[1] - 1, 1 - null[2]), abs(null[0] - 1))),
        attempts=max(one.attempts for one in found),
    )


def compare(dense: Run, packed: Run, device: str, plan: Protocol) -> Comparison:
    """Measure until the null test passes, `plan.attempts` times at most; the last measurement counts."""
    attempts = 1
    while (result := _compare_once(dense, packed, device, plan)).verdict == "not trusted" and attempts < plan.attempts:
        attempts += 1
    return replace(result, attempts=attempts)


def _compare_once(dense: Run, packed: Run, device: str, plan: Protocol) -> Comparison:
    """Blocks of dense, packed and dense again, in each of the six orders in turn: the null ratio, dense over dense, is
    measured just as the ratio is, and each of the three stands as often in each place."""
    dense_s, packed_s = (warm_up(run, device, plan.warmup_s) for run in (dense, packed))
    repeats = max(1, round(0.008 / max(dense_s, packed_s)))
    runs = (dense, packed, dense)
    orders = list(itertools.permutations(range(len(runs))))
    times: list[list[float]] = [[] for _ in runs]
    started = time.perf_counter()
    for block in itertools.count(1):
        for which in orders[block % len(orders)]:
            times[which].append(_time(runs[which], repeats, device))
        if block < plan.min_blocks or block % len(orders):
            continue
        if time.perf_counter() - started >= plan.seconds:
            break
        if plan.precision is not None:
            ratio, low, high = _interval(np.divide(times[0], times[1]))
            if (high - low) / 2 < plan.precision * ratio:
                break
    first, middle, second = (np.array(values) for values in times)
    return Comparison(
        dense_ms=1e3 * first, packed_ms=1e3 * middle, ratio=_interval(first / middle), null=_interval(first / second)
    )


def _interval(ratios: np.ndarray) -> tuple[float, float, float]:
    """Median and its bootstrap 95 % interval (percentile)."""
    if np.ptp(ratios) == 0:
        return (float(ratios[0]),) * 3
    found = bootstrap((ratios,), np.median, n_resamples=2000, method="percentile", rng=np.random.default_rng(0))
    return float(np.median(ratios)), float(found.confidence_interval.low), float(found.confidence_interval.high)


def warm_up(run: Run, device: str, seconds: float, cap_s: float = 10.0) -> float:
    """Run until the median of the last ten moves by less than 1 % and `seconds` have passed; seconds a run takes."""
    times: list[float] = []
    previous = float("inf")
    started = time.perf_counter()
    while True:
        times.append(_time(run, 1, device))
        spent = time.perf_counter() - started
        if len(times) % 10 == 0 or spent > cap_s:
            median = float(np.median(times[-10:]))
            if spent > cap_s or (spent >= seconds and abs(median - previous) < 0.01 * median) or spent > 5 * seconds:
                return median
            previous = median


@torch.inference_mode()
def _time(run: Run, repeats: int, device: str) -> float:
    """Seconds for one run, over `repeats` of them."""
    if device == "cuda":
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        begin.record()
        for _ in range(repeats):
            run()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1e3 / repeats
    started = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - started) / repeats


def fastest(candidates: Mapping[Name, Run], device: str, rounds: int = 5) -> tuple[Name, dict[Name, float]]:
    """The name of the fastest candidate and the median milliseconds of each, over alternating rounds."""
    for run in candidates.values():
        warm_up(run, device, 0.02)
    times: dict[Name, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            times[name].append(1e3 * _time(run, 3, device))
    medians = {name: float(np.median(values)) for name, values in times.items()}
    return min(medians, key=medians.__getitem__), medians
