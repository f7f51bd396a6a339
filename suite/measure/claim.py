"""Claim that the intervals of a measurement and the state of the machine allow."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

Verdict = Literal["faster", "slower", "no difference", "not trusted"]
Interval = tuple[float, float, float]
"""Median, lower and upper end of the 95 % interval of a ratio of times."""
UNTUNED = "dense network untuned: speed-ups are not comparable with those of the full protocol"
"""Mark of the quick protocol, whose dense network has one execution in one runtime and layout."""
_BUSY = "other processes"
"""Words of every flag of a busy machine (`machine.flags`)."""


def verdict(ratio: Interval, null: Interval, *, cpu: Interval | None = None, flags: Iterable[str] = ()) -> Verdict:
    """Return the claim about dense time / packed time.

    A claim in either direction needs an interval apart from the null interval, and an effect larger than the whole width of the
    null interval on a logarithmic scale. "not trusted" if the null interval misses 1, if the machine was busy, or if the
    interval of CPU time lies on the other side of 1.

    ratio, null   dense / packed and dense / dense by the wall clock or CUDA events
    cpu           dense / packed in CPU time, if it was measured
    flags         reasons to doubt the measurement; throttling slows both networks alike and forbids no claim
    """
    middle, low, high = ratio
    if not null[1] <= 1 <= null[2] or is_busy(flags) or min(null[1], middle) <= 0:
        return "not trusted"
    claim: Verdict = "faster" if low > null[2] else "slower" if high < null[1] else "no difference"
    if claim == "no difference" or not abs(math.log(middle)) > math.log(null[2] / null[1]):
        return "no difference"
    if cpu is not None and (cpu[2] < 1 if claim == "faster" else cpu[1] > 1):
        return "not trusted"
    return claim


def is_busy(flags: Iterable[str]) -> bool:
    """Return True if a flag names other processes on the device."""
    return any(_BUSY in flag for flag in flags)
