"""Pareto figures: accuracy over the cut in MACs and over the measured speed-up, for every data set and model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from matplotlib.axes import Axes

from suite.report import style, words
from suite.report.cells import t95_half_width
from suite.report.frames import CONDITIONS, TIMED_CONDITIONS

Over = Literal["macs", "speedup"]
Spread = Literal["t95", "sd", "none"]
_SPREAD_WORDS: dict[Spread, str] = {
    "t95": "vertical bars: t 95 % intervals of the mean",
    "sd": "vertical bars: sample standard deviation",
    "none": "no spread",
}

NARROW = 0.25
"""Points whose cuts differ by less than this share of the largest have an axis of their own."""


@dataclass(frozen=True)
class Axis:
    """What a Pareto figure has on its horizontal axis: the column, its label, and where the unpruned network stands."""

    column: str
    label: str
    dense: float
    conditions: tuple[str, ...]
    """Columns that keep lines apart."""


AXES: dict[Over, Axis] = {
    "macs": Axis("macs_cut_pct", "MACs cut (% of the whole network)", 0, tuple(CONDITIONS)),
    "speedup": Axis("speedup_x", "measured speed-up (dense time / packed time)", 1, (*CONDITIONS, *TIMED_CONDITIONS)),
}


def draw_all(lines: pd.DataFrame, folder: Path) -> tuple[list[tuple[str, str, str]], list[Path]]:
    """Write every Pareto figure that has a point; (data, model, PNG's name) of each, and all paths.

    A figure that an earlier report drew and that has no point any more is deleted.
    """
    pictures, paths = [], []
    for (data, model), part in lines.groupby(["data", "model"], sort=False):
        for over, axis in AXES.items():
            path = folder / words.file_name("pareto", over, str(data), str(model))
            points = _points(part, axis)
            if points.empty:
                for suffix in (".png", ".pdf"):
                    path.with_name(path.name + suffix).unlink(missing_ok=True)
                continue
            paths += draw(points, over, path)
            pictures.append((str(data), str(model), f"{path.name}.png"))
    return pictures, paths


def _points(lines: pd.DataFrame, axis: Axis) -> pd.DataFrame:
    """The lines of the table that have a place in the figure, each once."""
    there = lines.dropna(subset=["top1_mean_pct", axis.column])
    return there.drop_duplicates(["cell", *axis.conditions])


def draw(points: pd.DataFrame, over: Over, path: Path) -> list[Path]:
    """Write one figure as PNG and PDF."""
    axis, spread = AXES[over], _spread(points)
    letters, meanings = words.told_apart(points, axis.conditions)
    points = points.assign(name=points["short"] + letters)
    keys = ["series", *axis.conditions]
    with style.new_figure(entries=1 + points.groupby(keys).ngroups) as figure:
        axes = figure.add_subplot()
        axes.margins(x=0.06, y=0.08)
        cut = over == "macs" and _is_narrow(points[axis.column])
        _reference(axes, points, axis, spread, cut)
        for index, (_, line) in enumerate(points.groupby(keys, sort=False)):
            _line(axes, line.sort_values("macs_cut_pct"), axis, spread, style.of_series(index))
        axes.set_xlabel(axis.label)
        axes.set_ylabel("top-1 accuracy (%)")
        if over == "speedup":
            _no_gain(axes)
        if cut:
            axes.set_xlim(*_window(points[axis.column]))
        style.legend(figure)
        style.caption(figure, _caption(points, over, spread, cut, meanings))
        return style.save(figure, path)


def _line(axes: Axes, line: pd.DataFrame, axis: Axis, spread: Spread, look: dict[str, Any]) -> None:
    """One method: its points in the order of their budgets. Hollow markers have no difference in speed."""
    x, y = line[axis.column], line["top1_mean_pct"]
    bars: dict[str, Any] = {"yerr": _half_width(line, spread)} if spread != "none" else {}
    if axis.column == "speedup_x":
        bars["xerr"] = [x - line["speedup_low_x"], line["speedup_high_x"] - x]
    if bars:
        axes.errorbar(x, y, **bars, fmt="none", ecolor=look["color"], elinewidth=0.9, capsize=2, alpha=0.6)
    axes.plot(x, y, **look, markeredgecolor="white", markeredgewidth=0.7, label=style.label(line["name"].iloc[0]))
    hollow = (line["verdict"] == "no difference") & (axis.column == "speedup_x")
    marker: dict[str, Any] = {
        "linestyle": "none",
        "marker": look["marker"],
        "markersize": look["markersize"],
        "markeredgecolor": look["color"],
    }
    axes.plot(x[hollow], y[hollow], **marker, markerfacecolor="white", markeredgewidth=1.2)


def _reference(axes: Axes, points: pd.DataFrame, axis: Axis, spread: Spread, cut: bool) -> None:
    """The unpruned network: a star with its spread and a line at its accuracy. One for every set of conditions.

    Where the axis is `cut` the star stands at its left end.
    """
    most = points.loc[points.groupby(CONDITIONS, sort=False)["base_n"].idxmax()]
    half = t95_half_width(most["base_top1_sd_pp"], most["base_n"]) if spread == "t95" else most["base_top1_sd_pp"]
    x, transform = (0.025, axes.get_yaxis_transform()) if cut else (axis.dense, axes.transData)
    look: dict[str, Any] = {"color": style.REFERENCE, "linewidth": 0.8, "linestyle": (0, (1, 2))}
    for index, (accuracy, bar) in enumerate(zip(most["base_top1_mean_pct"], half, strict=True)):
        axes.axhline(accuracy, **look, zorder=1)
        label = "unpruned" if index == 0 else None
        axes.plot([x], [accuracy], **look, marker="*", markersize=11, label=label, zorder=1.5, transform=transform)
        if spread != "none" and pd.notna(bar):
            bars: dict[str, Any] = {"fmt": "none", "ecolor": style.REFERENCE, "capsize": 2}
            axes.errorbar([x], [accuracy], yerr=[bar], **bars, transform=transform)


def _is_narrow(cuts: pd.Series) -> bool:
    """Do all points lie together, far from 0? An axis from 0 would then squeeze them into a column."""
    return bool(cuts.max() - cuts.min() < NARROW * cuts.max())


def _window(cuts: pd.Series) -> tuple[float, float]:
    """Limits around the points, with room for the star and for at least four points of cut."""
    room = max(2.0, 0.12 * (cuts.max() - cuts.min()))
    return cuts.min() - room, cuts.max() + room


def _no_gain(axes: Axes) -> None:
    axes.axvline(1, color=style.REFERENCE, linewidth=0.8, zorder=1)
    axes.annotate(
        "no gain",
        (1, 1),
        xycoords=("data", "axes fraction"),
        xytext=(0, 2),
        textcoords="offset points",
        ha="center",
        va="bottom",
        fontsize=8,
        color=style.REFERENCE,
    )


def _spread(points: pd.DataFrame) -> Spread:
    """One meaning of the bars for the whole figure."""
    return "t95" if points["n"].min() >= 3 else "sd" if points["n"].max() >= 2 else "none"


def _half_width(line: pd.DataFrame, spread: Spread) -> pd.Series:
    return line["top1_t95_pp"] if spread == "t95" else line["top1_sd_pp"]


def _caption(points: pd.DataFrame, over: Over, spread: Spread, cut: bool, meanings: Sequence[str]) -> str:
    """What is shown: data, model, n, bars, device, commit."""
    first, few, many = points.iloc[0], points["n"].min(), points["n"].max()
    n = f"n = {few}" if few == many else f"n = {few} to {many}"
    bars = [f"{first['data']}, {first['model']}: mean over {n} {'run' if many == 1 else 'runs'}", _SPREAD_WORDS[spread]]
    where = [f"T{words.trained(points)[1:]}"]
    if over == "speedup":
        bars += ["horizontal bars: the range of the runs' 95 % intervals around the median speed-up"]
        bars += ["hollow: this range contains 1"]
        where.insert(0, f"Speed-up {words.measured(points)}")
    if cut:
        bars.append("the horizontal axis does not start at 0, where the star belongs")
    return ". ".join(["; ".join(bars), *where, *(["; ".join(meanings)] if meanings else [])]) + "."
