"""Measured speed-up over the theoretical one.

On the diagonal the measured speed-up is the ratio of MACs.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from suite.report import words
from suite.report.figures import style
from suite.report.frames import CONDITIONS, TIMED_CONDITIONS, TIMING

PANEL_IN = 2.7
COLUMNS = 3
TICKS_X = (0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32)
TITLE = "Theoretical against measured speed-up"


def points_of(latency: pd.DataFrame) -> pd.DataFrame:
    """Return the latency lines that have both numbers; none if no network is pruned."""
    points = latency.dropna(subset=["speedup_x", "theoretical_x"])
    return points if (points["budget"] > 0).any() else points[:0]


def draw(points: pd.DataFrame, folder: Path) -> style.Picture:
    """Draw one figure, with a panel for each timing of the grid."""
    keys = [*CONDITIONS, *TIMED_CONDITIONS]
    letters, meanings = words.told_apart(points, keys)
    points = points.assign(name=points["short"] + letters)
    panels = list(points.groupby("timing", sort=True))
    columns = min(COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    with style.new_figure(entries=points["name"].nunique() if len(panels) > 1 else 0) as figure:
        figure.set_size_inches(PANEL_IN * columns + 1.9, max(PANEL_IN * rows + 0.6, figure.get_figheight()))
        if len(panels) == 1:
            figure.set_figwidth(style.SIZE_IN[0])
        grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        ends: list[style.End] = []
        for axes, (_, part) in zip(grid.flat, panels, strict=False):
            ends = _panel(axes, part)
            if len(panels) > 1:
                axes.set_title(_title(part), fontsize=8, loc="left", parse_math=False)
        for axes in grid.flat[len(panels) :]:
            axes.remove()
        _limits(grid.flat[0], points)
        figure.supylabel("measured: dense time / packed time", fontsize=9.5)
        for axes in grid[-1]:
            axes.set_xlabel("theoretical: dense MACs / packed MACs")
        named = functools.partial(style.name_ends, figure, grid[0, 0], ends, 3.6)
        return style.picture(
            figure,
            folder,
            points,
            kind="speed",
            title=TITLE,
            caption_text=_caption(points, meanings),
            arrange=functools.partial(style.legend, figure) if len(panels) > 1 else named,
        )


def _panel(axes: Axes, points: pd.DataFrame) -> list[style.End]:
    ends = []
    axes.axline((1, 1), (2, 2), color="0.6", linewidth=1, zorder=1)
    axes.axhline(1, color=style.REFERENCE, linewidth=0.8, zorder=1)
    for name, line in points.groupby("name", sort=False):
        style_of = line["look"].iloc[0].style()
        line = line.sort_values("theoretical_x")
        x, y = line["theoretical_x"], line["speedup_x"]
        bars = style.arms(y, line["speedup_low_x"], line["speedup_high_x"])
        axes.errorbar(x, y, bars, fmt="none", ecolor=style_of["color"], elinewidth=0.9, capsize=2, alpha=0.6)
        thin = {**style_of, "linewidth": 0.7}
        axes.plot(x, y, **thin, label=style.label(str(name)))
        hollow = line["verdict"] == "no difference"
        mark: dict[str, Any] = {k: style_of[k] for k in ("marker", "markersize")}
        mark |= {"linestyle": "none", "markerfacecolor": "white", "markeredgewidth": 1.2}
        axes.plot(x[hollow], y[hollow], **mark, markeredgecolor=style_of["color"])
        ends.append(style.End(str(name), x.iloc[-1], y.iloc[-1], style_of))
    return ends


def _limits(axes: Axes, points: pd.DataFrame) -> None:
    """Set logarithmic axes that contain 1."""
    largest = max(points["theoretical_x"].max(), points["speedup_high_x"].max(), 1.5)
    smallest = min(points["speedup_low_x"].min(), 1.0)
    axes.set(xscale="log", yscale="log")
    axes.set_xlim(min(0.95, points["theoretical_x"].min() / 1.05), largest * 1.08)
    axes.set_ylim(smallest / 1.06, largest * 1.08)
    for each in (axes.xaxis, axes.yaxis):
        each.set_major_locator(FixedLocator(list(TICKS_X)))
        each.set_minor_locator(NullLocator())
        each.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    at = (largest * points["theoretical_x"].min()) ** 0.5
    rotation: dict[str, Any] = {"rotation": 45, "rotation_mode": "anchor", "transform_rotates_text": True}
    axes.text(at, at * 1.03, "ratio of MACs", fontsize=7, color="0.4", ha="center", va="bottom", **rotation)
    axes.annotate(
        "no gain",
        (1, 1),
        xycoords=("axes fraction", "data"),
        xytext=(-2, -2),
        textcoords="offset points",
        ha="right",
        va="top",
        fontsize=7,
        color=style.REFERENCE,
    )


def _title(points: pd.DataFrame) -> str:
    first = points.iloc[0]
    return f"{first['asked_device']}, " + ", ".join(
        f"batch {first[name]:.0f}" if name == "batch" else str(first[name]) for name in TIMING
    )


def _caption(points: pd.DataFrame, meanings: list[str]) -> str:
    sentences = [
        f"{words.who(points)}: median over {words.runs(points['speedup_n'], points['bases'])}; bars: the range of the "
        "runs' 95 % intervals",
        "Hollow: the range contains 1. On the diagonal, measured and theoretical speed-up are equal",
        f"Measured {words.measured(points)}",
        *(["; ".join(meanings)] if meanings else []),
    ]
    return ". ".join(sentences) + "."
