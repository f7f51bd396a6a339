"""Ablation figures: accuracy over the value of one setting of a method, all else equal."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

from suite.contract import Pruner
from suite.report import words
from suite.report.figures import pareto, style
from suite.report.figures.looks import Look
from suite.report.frames import CONDITIONS, SCHEDULES

LOG_FROM_X = 8
"""Positive values whose largest is so many times the smallest have a logarithmic axis."""


@dataclass(frozen=True, kw_only=True)
class Varied:
    """Setting that takes several values while all else is equal.

    `points` has `value` and the `line` of each point.
    """

    method: str
    setting: str
    points: pd.DataFrame


def find(lines: pd.DataFrame, runs: pd.DataFrame, settings: Mapping[str, Pruner]) -> Iterator[Varied]:
    """Yield the settings that vary while all else is equal.

    `settings` has the method of each run's key.
    """
    lines = lines.dropna(subset=["top1_mean_pct"]).drop_duplicates(["cell", *CONDITIONS])
    pruners = runs.drop_duplicates("series").set_index("series")["key"].map(settings)
    for method, own in lines.groupby("method", sort=False):
        values = pd.DataFrame(
            {series: _fields(pruners[series]) for series in dict.fromkeys(own["series"])}, dtype=object
        ).T
        varied = [str(name) for name in values if values[name].map(repr).nunique() > 1]
        for setting in varied:
            points = own.assign(value=own["series"].map(values[setting]), line=_rest(own, values, varied, setting))
            several = points.groupby("line")["value"].transform(lambda value: value.map(repr).nunique()) > 1
            if several.any():
                yield Varied(method=str(method), setting=setting, points=points[several])


def _fields(pruner: Pruner) -> dict[str, Any]:
    return {field.name: getattr(pruner, field.name) for field in dataclasses.fields(pruner)}


def _rest(lines: pd.DataFrame, values: pd.DataFrame, varied: list[str], setting: str) -> pd.Series:
    """Describe the budget, and the other settings and schedules that differ between lines."""
    budgets = map(words.budget, lines["budget"], lines["budget_scope"])
    text = pd.Series([f"{budget} cut" for budget in budgets], index=lines.index)
    for name in varied:
        if name != setting:
            text += f", {name}=" + lines["series"].map(values[name].map(str))
    for name in SCHEDULES:
        if lines[name].nunique() > 1:
            text += f", {name.removesuffix('_schedule')} " + lines[name]
    return text + words.told_apart(lines, CONDITIONS)[0]


# ---- drawing ---------------------------------------------------------------------------------------------------------


def draw(varied: Varied, folder: Path) -> style.Picture:
    """Write one figure: a line for each budget and combination of the other settings."""
    points = varied.points
    spread = pareto.spread_of(points)
    numeric = all(isinstance(value, numbers.Real) and not isinstance(value, bool) for value in points["value"])
    places = _places(points["value"], numeric)
    with style.new_figure(entries=1 + points["line"].nunique()) as figure:
        axes = figure.add_subplot()
        for index, (name, line) in enumerate(points.groupby("line", sort=False)):
            shift = 0 if numeric else 0.09 * (index - (points["line"].nunique() - 1) / 2)
            look = Look(varied.method, index).style()
            _line(
                axes, line, [places[repr(value)] + shift for value in line["value"]], str(name), look, spread, numeric
            )
        base = points.drop_duplicates(CONDITIONS)["base_top1_mean_pct"]
        for accuracy in base:
            axes.axhline(accuracy, color=style.REFERENCE, linewidth=0.9, linestyle=(0, (1, 2)), label="unpruned")
        _axis(axes, points["value"], places, numeric)
        axes.set(xlabel=varied.setting, ylabel="top-1 accuracy (%)")
        axes.xaxis.label.set_parse_math(False)
        style.legend(figure)
        return style.picture(
            figure,
            folder,
            points,
            kind="ablation",
            further=(varied.method, varied.setting),
            title=f"{varied.method}: accuracy over {varied.setting}",
            caption_text=_caption(varied, spread),
        )


def _places(values: pd.Series, numeric: bool) -> dict[str, float]:
    """Return the place of each value on the axis: the value itself, or its index."""
    unique = list({repr(value): value for value in values}.items())
    return {text: float(value) if numeric else float(index) for index, (text, value) in enumerate(unique)}


def _line(
    axes: Axes,
    line: pd.DataFrame,
    x: list[float],
    name: str,
    look: dict[str, Any],
    spread: pareto.Spread,
    numeric: bool,
) -> None:
    line = line.assign(x=x).sort_values("x")
    if spread != "none":
        half = pareto.half_width(line, spread)
        bars: dict[str, Any] = {"ecolor": look["color"], "elinewidth": 0.9, "capsize": 2, "alpha": 0.6}
        axes.errorbar(line["x"], line["top1_mean_pct"], half, fmt="none", **bars)
    look = look if numeric else {**look, "linestyle": "none"}
    axes.plot(line["x"], line["top1_mean_pct"], **look, label=style.label(name))


def _axis(axes: Axes, values: pd.Series, places: dict[str, float], numeric: bool) -> None:
    ticks = list(places.values())
    if numeric and min(ticks) > 0 and max(ticks) >= LOG_FROM_X * min(ticks):
        axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    labels = [f"{place:g}" for place in ticks] if numeric else list(dict.fromkeys(map(str, values)))
    axes.set_xticks(ticks, labels, parse_math=False)
    if not numeric:
        axes.set_xlim(-0.5, len(ticks) - 0.5)


def _caption(varied: Varied, spread: pareto.Spread) -> str:
    points = varied.points
    split = points["split"].iloc[0]
    where = "the validation part" if split == "tuning" else "the test set"
    return (
        f"{words.who(points)}, {varied.method}: mean over {words.runs(points['n'], points['base_n'])} on {where}; "
        f"{pareto.SPREAD_WORDS[spread]}. All but {varied.setting} is equal along a line. T{words.trained(points)[1:]}."
    )
