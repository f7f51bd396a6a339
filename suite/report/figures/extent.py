"""Limits of the axes of a Pareto figure; distant points squeeze nothing."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.markers import CARETDOWN
from matplotlib.ticker import MaxNLocator

from suite.report.figures import style

NARROW = 0.25
"""Points whose cuts differ by less than this share of the largest have an axis of their own."""
FLOOR = 4.0
"""Points below the best by more than this many times the third quartile of that distance are marked at the lower edge."""
STAR = 0.03
"""Where the star of the unpruned network stands on an axis that is broken, as a share of its length."""


def lift(axes: Axes, points: pd.DataFrame, published: pd.Series) -> float | None:
    """Cut the vertical axis above distant points; return the limit, or None.

    The unpruned network stays in sight, and so do `published` accuracies, but for those below such a cut.
    """
    accuracy, base = points["top1_mean_pct"], points["base_top1_mean_pct"]
    top = max(accuracy.max(), base.max())
    floor = top - farthest(top - accuracy)
    if accuracy.min() >= floor:
        every = [accuracy.min(), base.min(), top, *published]
        _bound(axes, min(every), max(every))
        return None
    lowest = min(accuracy[accuracy >= floor].min(), base.min())
    bottom = lowest - max(0.12 * (top - lowest), 0.1)
    axes.set_ylim(bottom, max([top, *published]) + 0.07 * (top - bottom))
    return float(bottom)


def _bound(axes: Axes, lowest: float, top: float) -> None:
    """Limit the axis: long bars run out of it and do not squeeze points."""
    low, high = axes.get_ylim()
    room = max(0.3 * (top - lowest), 1.0)
    axes.set_ylim(max(low, lowest - room), min(high, top + room))


def farthest(distances: pd.Series) -> float:
    """Return the distance from the best up to which a point is drawn in place."""
    return max(1.0, FLOOR * float(distances.quantile(0.75)))


def mark_below(axes: Axes, x: pd.Series, top1_pct: pd.Series, bottom: float, colour: str) -> None:
    """Mark each point below `bottom` by an arrow at the lower edge."""
    x = x[top1_pct < bottom]
    mark: dict[str, Any] = {"color": colour, "linestyle": "none", "markersize": 5}
    axes.plot(x, [0.012] * len(x), marker=CARETDOWN, transform=axes.get_xaxis_transform(), **mark)


def is_narrow(values: pd.Series) -> bool:
    """Return True if all points lie close together and far from 0.

    An axis from 0 would squeeze such points into a column.
    """
    return bool(values.max() - values.min() < NARROW * values.max())


def window(values: pd.Series) -> tuple[float, float]:
    """Return limits around the points.

    There is room for the star and for at least four points of cut.
    """
    room = max(2.0, 0.12 * (values.max() - values.min()))
    return values.min() - room, values.max() + room


def broken(axes: Axes, low: float, high: float) -> None:
    """Set a broken axis: 0 at the left end, then `low` to `high`.

    The star of the unpruned network is at the left end, before the mark of the break.
    """
    axes.set_xlim(low, high)
    start = low + STAR * (high - low)
    ticks = [tick for tick in MaxNLocator(6).tick_values(low, high) if low + 2.5 * STAR * (high - low) < tick <= high]
    axes.set_xticks([start, *ticks], ["0", *(f"{tick:g}" for tick in ticks)])
    where: dict[str, Any] = {"transform": axes.transAxes, "ha": "center", "va": "center", "clip_on": False, "zorder": 4}
    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
    axes.text(2.1 * STAR, 0, "//", **where, fontsize=8, color="0.3", bbox=box)


def no_gain(axes: Axes, x: float) -> None:
    """Mark the speed of the unpruned network by a line."""
    axes.axvline(x, color=style.REFERENCE, linewidth=0.8, zorder=1)
    where: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "xytext": (0, 2)}
    axes.annotate("no gain", (x, 1), **where, ha="center", va="bottom", fontsize=7.5, color=style.REFERENCE)
