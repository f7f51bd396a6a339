"""Pareto figures: accuracy over cut, measured speed-up or latency.

Front    the measured points (means) and the unpruned network that no other point beats on both axes. It is a staircase: at each
         place the best accuracy of the points there or further. Spread and published points have no part in it.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from suite.report import words
from suite.report.figures import extent, style
from suite.report.frames import CONDITIONS, TIMED_CONDITIONS
from suite.report.statistics import inference
from suite.report.statistics.published import REFERENCE

Over = Literal["macs", "params", "speedup", "latency"]
Spread = Literal["t95", "sd", "none"]
SPREAD_WORDS: dict[Spread, str] = {
    "t95": "vertical bars: t 95 % intervals of the mean",
    "sd": "vertical bars: sample standard deviation",
    "none": "no spread",
}

KEY_CHARACTERS = 62
AXES_IN = 3.2
"""About the height of the axes in a figure of the usual size."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """Horizontal axis of a Pareto figure."""

    title: str
    column: str
    label: str
    timed: bool = False
    less_is_better: bool = False
    published: str = ""
    """The column of published numbers that it is compared with."""

    @property
    def conditions(self) -> tuple[str, ...]:
        """Columns that keep lines apart."""
        return (*CONDITIONS, *TIMED_CONDITIONS) if self.timed else tuple(CONDITIONS)

    def dense(self, points: pd.DataFrame) -> float:
        """Return the place of the unpruned network."""
        return {"speedup_x": 1.0, "packed_ms": points["dense_ms"].median()}.get(self.column, 0.0)


AXES: dict[Over, Axis] = {
    "macs": Axis(
        title="Accuracy over MACs cut",
        column="macs_cut_pct",
        label="MACs cut (% of the whole network)",
        published="flops_cut_pct",
    ),
    "params": Axis(
        title="Accuracy over parameters cut",
        column="params_cut_pct",
        label="parameters cut (%)",
        published="params_cut_pct",
    ),
    "speedup": Axis(
        title="Accuracy over measured speed-up",
        column="speedup_x",
        label="measured speed-up (dense time / packed time)",
        timed=True,
    ),
    "latency": Axis(
        title="Accuracy over latency",
        column="packed_ms",
        label="latency of the packed network (ms a batch)",
        timed=True,
        less_is_better=True,
    ),
}


def points_of(lines: pd.DataFrame, over: Over) -> pd.DataFrame:
    """Return the lines of the table with a place in the figure, each once.

    There are none if no network is pruned. An absolute time means something on a named GPU only: what was timed on a CPU has
    its speed-up, not its latency.
    """
    axis = AXES[over]
    lines_with_value = lines.dropna(subset=["top1_mean_pct", axis.column])
    if over == "latency":
        lines_with_value = lines_with_value[~lines_with_value["timed_device"].str.startswith("cpu")]
    points = lines_with_value.drop_duplicates(["cell", *axis.conditions])
    return points if points["removes"].astype(bool).any() else points[:0]


def spreads(points: pd.DataFrame, over: Over, published: pd.DataFrame) -> bool:
    """Return True if networks of one budget lie apart on the axis.

    Their cuts differ by overshoot alone, so only published numbers lie apart from these. Measured times lie apart if there
    are two.
    """
    axis, pruned = AXES[over], points[points["removes"].astype(bool)]
    own = pruned[axis.column] if over != "macs" else pruned[axis.column].iloc[:1]
    if axis.timed:
        return len(own) > 1
    return not extent.is_narrow(pd.concat([own, published[axis.published]]))


def draw(points: pd.DataFrame, over: Over, published: pd.DataFrame, folder: Path) -> style.Picture:
    """Draw one figure.

    `published` has the published numbers of this data set and model.
    """
    axis, spread = AXES[over], spread_of(points)
    letters, meanings = words.told_apart(points, axis.conditions)
    points = points.assign(name=points["short"] + letters)
    numbers = published.dropna(subset=[axis.published]) if axis.published else published.iloc[:0]
    keys = ["series", *axis.conditions]
    count = points.groupby(keys).ngroups
    with style.new_figure(entries=0) as figure:
        axes = figure.add_subplot()
        axes.margins(x=0.05, y=0.07)
        shown = pd.concat([points[axis.column], numbers[axis.published]]) if axis.published else points[axis.column]
        cut = not axis.timed and extent.is_narrow(shown)
        front = _front(points, axis) if not meanings else None
        ends = [
            _line(axes, line, axis, spread, line["look"].iloc[0].style(), _weight(line, front, count))
            for _, line in points.groupby(keys, sort=False)
        ]
        _reference(axes, points, axis, spread, cut)
        _published(axes, numbers, axis.published)
        if front is not None and len(front) > 1:
            _draw_front(axes, front)
        axes.set(xlabel=axis.label, ylabel="top-1 accuracy (%)")
        if axis.timed:
            extent.no_gain(axes, axis.dense(points))
        if cut:
            extent.broken(axes, *extent.window(shown))
        below = extent.lift(axes, points, numbers["top1_pct"])
        if below is not None:
            for end, (_, line) in zip(ends, points.groupby(keys, sort=False), strict=True):
                extent.mark_below(axes, line[axis.column], line["top1_mean_pct"], below, end.look["color"])
            if axis.published:
                extent.mark_below(axes, numbers[axis.published], numbers["top1_pct"], below, style.PUBLISHED)
        style.legend(figure, "outside upper left", ncols=2, fontsize=7, handlelength=2, columnspacing=1.2)
        text = _caption(points, numbers, over, spread, front, cut=cut, below=below)
        text = f"{text} {'; '.join(meanings)}." if meanings else text
        return style.picture(
            figure,
            folder,
            points,
            kind=f"pareto_{over}",
            title=axis.title,
            caption_text=text,
            arrange=lambda: style.name_ends(figure, axes, ends, AXES_IN),
        )


# ---- what is measured ------------------------------------------------------------------------------------------------


def _line(axes: Axes, line: pd.DataFrame, axis: Axis, spread: Spread, look: dict[str, Any], weight: float) -> style.End:
    """Draw one method's points, ordered by budget.

    Hollow markers: no difference in speed.
    """
    line = line.sort_values("macs_cut_pct")
    x, y = line[axis.column], line["top1_mean_pct"]
    bars: dict[str, Any] = {"yerr": half_width(line, spread)} if spread != "none" else {}
    if axis.column == "speedup_x":
        bars["xerr"] = style.arms(x, line["speedup_low_x"], line["speedup_high_x"])
    if bars and weight == 1:
        axes.errorbar(x, y, **bars, fmt="none", ecolor=look["color"], elinewidth=0.8, capsize=1.8, alpha=0.5)
    light: dict[str, Any] = {"linewidth": 1.4 if weight == 1 else 0.8, "alpha": 1 if weight == 1 else 0.6}
    look = {**look, "markersize": look["markersize"] * (1 if weight == 1 else 0.7)}
    axes.plot(x, y, **look, **light)
    hollow = (line["verdict"] == "no difference") & axis.timed
    marker = {"marker": look["marker"], "markersize": look["markersize"], "markeredgecolor": look["color"]}
    axes.plot(x[hollow], y[hollow], **marker, linestyle="none", markerfacecolor="white", markeredgewidth=1.2)
    end = line.iloc[int(x.argmax())]
    return style.End(str(line["name"].iloc[0]), end[axis.column], end["top1_mean_pct"], look)


def _reference(axes: Axes, points: pd.DataFrame, axis: Axis, spread: Spread, cut: bool) -> None:
    """Draw the unpruned network: a star with its spread, and a line.

    There is one for each set of conditions.

    Where the axis is `cut` the star stands at its left end, before the break.
    """
    most = points.loc[points.groupby(CONDITIONS, sort=False)["base_n"].idxmax()]
    half = (
        inference.t_half_width(most["base_top1_sd_pp"], most["base_n"]) if spread == "t95" else most["base_top1_sd_pp"]
    )
    x, transform = (extent.STAR, axes.get_yaxis_transform()) if cut else (axis.dense(points), axes.transData)
    look: dict[str, Any] = {"color": style.REFERENCE, "linewidth": 0.8, "linestyle": (0, (1, 2))}
    for index, (accuracy, bar) in enumerate(zip(most["base_top1_mean_pct"], half, strict=True)):
        axes.axhline(accuracy, **look, zorder=1)
        label = "unpruned network" if index == 0 else None
        axes.plot([x], [accuracy], **look, marker="*", markersize=11, label=label, zorder=2.5, transform=transform)
        if spread != "none" and pd.notna(bar):
            bars: dict[str, Any] = {"fmt": "none", "ecolor": style.REFERENCE, "capsize": 2}
            axes.errorbar([x], [accuracy], yerr=[bar], **bars, transform=transform)


def _front(points: pd.DataFrame, axis: Axis) -> pd.DataFrame:
    """Return the corners of the front as `x`, `y` and `cell`.

    The unpruned network is cell -1, first if it is on the front. Methods from abstracts are on no front. Coarse cells are no
    corners, and neither are cells that a coarse one is better than.
    """
    dense = {"x": axis.dense(points), "y": points["base_top1_mean_pct"].mean(), "cell": -1, "coarse": 0}
    signed = points[points["evidence"] != "abstract"]
    own = signed[[axis.column, "top1_mean_pct", "cell", "coarse"]].set_axis(["x", "y", "cell", "coarse"], axis=1)
    every = pd.concat([pd.DataFrame([dense]), own], ignore_index=True)
    best_first = every.sort_values(["x", "y"], ascending=[axis.less_is_better, False], kind="stable")
    above = best_first["y"] > best_first["y"].cummax().shift(fill_value=-np.inf)
    return best_first[above & ~best_first["coarse"].astype(bool)].iloc[::-1]


def _draw_front(axes: Axes, front: pd.DataFrame) -> None:
    look: dict[str, Any] = {"color": style.FRONT, "linewidth": 4, "solid_joinstyle": "miter", "zorder": 0.9}
    axes.plot(front["x"], front["y"], **look, drawstyle="steps-pre", label="Pareto front of what is measured")


def _weight(line: pd.DataFrame, front: pd.DataFrame | None, count: int) -> float:
    """Return 1 for a line with full weight: few lines, or it reaches the front."""
    if count <= style.MANY or front is None or line["cell"].isin(front["cell"]).any():
        return 1
    return 0.5


# ---- what others published -------------------------------------------------------------------------------------------


def _published(axes: Axes, numbers: pd.DataFrame, column: str) -> None:
    """Draw hollow marks: a shape for each source, a number for each method."""
    number = 0
    for index, (source, part) in enumerate(numbers.groupby("source", sort=False)):
        names = []
        for method, same in part.groupby("method", sort=False):
            number += 1
            names.append(f"{number} {method}")
            for x, y in zip(same[column], same["top1_pct"], strict=True):
                offset: dict[str, Any] = {"xytext": (3, 2.5), "textcoords": "offset points"}
                axes.annotate(str(number), (x, y), **offset, fontsize=5.5, color=style.PUBLISHED)
        text = f"{'' if source == REFERENCE else 'published, '}{source!s}: {', '.join(names)}"
        label = "\n".join(textwrap.wrap(text, KEY_CHARACTERS))
        axes.plot(part[column], part["top1_pct"], **style.of_source(index), zorder=1.8, label=label)


def spread_of(points: pd.DataFrame) -> Spread:
    """Return the meaning of the bars in the whole figure."""
    return "t95" if points["n"].min() >= 3 else "sd" if points["n"].max() >= 2 else "none"


def half_width(line: pd.DataFrame, spread: Spread) -> pd.Series:
    """Return half the length of the error bars, as `spread` has it."""
    return line["top1_t95_pp"] if spread == "t95" else line["top1_sd_pp"]


# ---- words -----------------------------------------------------------------------------------------------------------


def _caption(
    points: pd.DataFrame,
    numbers: pd.DataFrame,
    over: Over,
    spread: Spread,
    front: pd.DataFrame | None,
    *,
    cut: bool,
    below: float | None,
) -> str:
    """Describe data, model, n, bars, device, commit, and pitfalls of reading."""
    axis = AXES[over]
    about = [f"{words.who(points)}: mean over {words.runs(points['n'], points['base_n'])}", SPREAD_WORDS[spread]]
    if over == "speedup":
        about.append("horizontal bars: the range of the runs' 95 % intervals around the median speed-up")
    if axis.timed:
        about.append("hollow: the range of the speed-up contains 1")
    sentences = ["; ".join(about)]
    thin = points["series"].nunique() > style.MANY
    sentences += (
        ["Thick, with bars: methods that reach the front; thin: the others"] if thin and front is not None else []
    )
    sentences += ["No front is drawn through points of different conditions"] if front is None else []
    sentences += [f"Arrows at the lower edge: points below {below:.1f} %"] if below is not None else []
    sentences += ["The horizontal axis is broken between the star, at 0, and the points"] if cut else []
    sentences += [f"Time {words.measured(points)}"] if axis.timed else []
    sentences += [f"T{words.trained(points)[1:]}"]
    return ". ".join([*sentences, *_about_published(numbers)]) + "."


def _about_published(numbers: pd.DataFrame) -> list[str]:
    """Describe the published numbers and reference rows."""
    reference = [words.REFERENCE] if (numbers["source"] == REFERENCE).any() else []
    numbers = numbers[numbers["source"] != REFERENCE]
    if numbers.empty:
        return reference
    text = "Published numbers are as stated, from other base networks and schedules"
    scopes = numbers.loc[numbers["flops_scope"] == "prunable convs", "source"].unique()
    if len(scopes):
        text += f"; cuts of {' and '.join(scopes)} count the prunable convolutions only"
    if (numbers["selection"] == "best epoch on test").any():
        text += ", and its epoch is the best on the test set"
    return [text, *reference]
