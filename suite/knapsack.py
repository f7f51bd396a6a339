"""Removal by importance per cost: relaxed knapsack for all budgets, exact for one.

Shapes: K steps of a family.

Source: Martello and Toth, Knapsack Problems, 1990, section 2.2 (relaxation) and the multiple-choice knapsack of chapter 2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

POINTS = 16
"""Numbers of removed steps of a family at which a cost is computed; costs between them are interpolated."""
BINS = 2000
"""Levels of the saved cost in the exact knapsack."""


@dataclass(frozen=True)
class Family:
    """Removals in a fixed order, such as those of a layer's filters.

    importance_K  float64 [K], importance that each step removes
    saved_K       float64 [K], share of the cost that all steps up to this one save together
    """

    importance_K: Tensor
    saved_K: Tensor

    def __post_init__(self) -> None:
        if self.importance_K.shape != self.saved_K.shape or self.importance_K.ndim != 1:
            raise ValueError(
                f"a family has one importance and one cost a step, got shapes {list(self.importance_K.shape)} and "
                f"{list(self.saved_K.shape)}"
            )


def chunks(count: int, step: int) -> list[int]:
    """Return the sizes of removals that leave multiples of `step`.

    The first removal takes the remainder of `count`; the last one leaves nothing.
    """
    first = count % step or min(step, count)
    return [first, *[step] * ((count - first) // step)] if count else []


def saved_shares(ends: Sequence[int], saved: Callable[[int], float]) -> Tensor:
    """Return the saved share at each of `ends` [K].

    The share is computed at `POINTS` of `ends` and interpolated between.
    saved   number of removed units -> share of the cost that their removal saves
    """
    if not ends:
        return torch.zeros(0, dtype=torch.float64)
    places = sorted({round(place) for place in np.linspace(0, len(ends) - 1, min(POINTS, len(ends)))})
    shares = [saved(ends[place]) for place in places]
    return torch.from_numpy(np.interp(ends, [ends[place] for place in places], shares))


def ranks(families: Sequence[Family]) -> list[Tensor]:
    """Return the knob above which each step is taken, float64 [K] per family.

    The knob is at least 0 and below 1. Steps go in the order of importance per saved cost. A step that saves less for its
    importance than the next one of its family goes together with the next one, so that the order within a family stays: the
    convex hull of the family's curve. A step that saves nothing goes with a later one, or last.
    """
    blocks = [(ratio, number, start, end) for number, one in enumerate(families) for ratio, start, end in _hull(one)]
    blocks.sort(key=lambda block: block[0])  # stable: families in order, then steps
    result = [torch.zeros(len(one.importance_K), dtype=torch.float64) for one in families]
    total, done = sum(len(one.importance_K) for one in families), 0
    for _, number, start, end in blocks:
        result[number][start:end] = done / total
        done += end - start
    return result


def _hull(family: Family) -> list[tuple[float, int, int]]:
    """Return (importance per saved cost, first step, end) of the steps that go together."""
    saved = np.diff(family.saved_K.numpy(), prepend=0.0)
    blocks: list[tuple[float, float, int, int]] = []
    for index, (importance, cost) in enumerate(zip(family.importance_K.tolist(), saved.tolist(), strict=True)):
        block = (importance, cost, index, index + 1)
        while blocks and _ratio(*blocks[-1][:2]) > _ratio(*block[:2]):
            before = blocks.pop()
            block = (before[0] + block[0], before[1] + block[1], before[2], block[3])
        blocks.append(block)
    return [(_ratio(importance, cost), start, end) for importance, cost, start, end in blocks]


def _ratio(importance: float, cost: float) -> float:
    return importance / cost if cost > 0 else float("inf")


def solve(families: Sequence[Family], saving: float) -> list[int]:
    """Return the number of steps per family that save at least `saving`.

    No other numbers that do remove less importance.
    Exact to a level of `BINS`: savings are rounded down.
    Raises ValueError if all steps together save less.
    """
    scale = max(saving, 1e-12) / BINS
    best = np.full(BINS + 1, np.inf)
    best[0] = 0.0
    picks = []
    for one in families:
        levels = [0, *np.clip(np.floor(one.saved_K.numpy() / scale + 1e-9), 0, BINS).astype(int).tolist()]
        losses = [0.0, *one.importance_K.cumsum(0).tolist()]
        after, pick = np.full(BINS + 1, np.inf), np.zeros(BINS + 1, dtype=int)
        for count, (level, loss) in enumerate(zip(levels, losses, strict=True)):
            reached = np.full(BINS + 1, np.inf)
            reached[level:] = best[: BINS + 1 - level] + loss
            reached[BINS] = min(reached[BINS], float(best[BINS - level :].min()) + loss)  # more than needed is enough
            better = reached < after
            after[better], pick[better] = reached[better], count
        picks.append((levels, pick, best))
        best = after
    if not np.isfinite(best[BINS]):
        raise ValueError(f"a saving of {saving:.2%} is more than all steps together save")
    counts, level = [], BINS
    for levels, pick, before in reversed(picks):
        counts.append(int(pick[level]))
        saved = levels[counts[-1]]
        level = BINS - saved + int(before[BINS - saved :].argmin()) if level == BINS else level - saved
    return counts[::-1]
