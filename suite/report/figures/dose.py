"""Dose figures: accuracy, sparsity and group entropy over the dose of a penalty.

Drawn for a setting that changes the dose of a learned state while all else is equal. A panel is left out if no row has its
number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

from suite.report import words
from suite.report.figures import pareto, style
from suite.report.figures.ablation import Varied
from suite.report.figures.looks import Look
from suite.report.statistics import cells

APART = 1.5
"""Ratio of two doses from which on a setting counts as changing the dose."""
PANEL_IN = (2.5, 2.3)
AXES_IN = 1.5
LEGEND_IN = 2.0


def varies(points: pd.DataFrame) -> bool:
    """Return True if the dose differs between the values of a setting."""
    dose = points.get("dose", pd.Series(dtype=float))
    return bool(dose.notna().all() and len(dose) and dose.min() > 0 and dose.max() > APART * dose.min())


def draw(varied: Varied, control: pd.DataFrame, folder: Path) -> style.Picture:
    """Write one figure: accuracy, sparsity and group entropy over the dose's factor.

    `control` are the lines of dense controls.
    """
    points = varied.points.assign(
        factor=varied.points["dose"] / varied.points["dose"].min(),
        sparse_pct=100 * varied.points["sparse_share"],
    ).sort_values("factor", kind="stable")
    shown = [name for name in ("sparse_pct", "group_entropy_nats") if points[name].notna().any()]
    with style.new_figure(entries=0) as figure:
        figure.set_size_inches(PANEL_IN[0] * (1 + len(shown)) + LEGEND_IN, PANEL_IN[1])
        panels = figure.subplots(1, 1 + len(shown), squeeze=False)[0]
        _accuracy(panels[0], varied, points, control)
        for axes, name in zip(panels[1:], shown, strict=True):
            _learned(axes, varied, points, name)
        _axes(panels, points)
        style.legend(figure)
        return style.picture(
            figure,
            folder,
            points,
            kind="dose",
            further=(varied.method, varied.setting),
            title=f"{varied.method}: accuracy, sparsity and groups over the dose",
            caption_text=_caption(varied, points, control),
            arrange=lambda: style.fit(figure, panels[0], AXES_IN),
        )


def _accuracy(axes: Axes, varied: Varied, points: pd.DataFrame, control: pd.DataFrame) -> None:
    spread = pareto.spread_of(points)
    for index, (name, line) in enumerate(points.groupby("line", sort=False)):
        look = Look(varied.method, index).style()
        if spread != "none":
            half = pareto.half_width(line, spread)
            axes.errorbar(line["factor"], line["top1_mean_pct"], half, fmt="none", ecolor=look["color"], capsize=2)
        axes.plot(line["factor"], line["top1_mean_pct"], **look, label=style.label(str(name)))
    dashes = (0, (1, 2))
    axes.axhline(
        points["base_top1_mean_pct"].mean(), color=style.REFERENCE, linewidth=0.9, linestyle=dashes, label="base"
    )
    if len(control):
        axes.axhline(control["top1_mean_pct"].mean(), color=style.REFERENCE, linewidth=0.9, label="dense control")
    axes.set_title("top-1 accuracy (%)", fontsize=8.5, loc="left")


def _learned(axes: Axes, varied: Varied, points: pd.DataFrame, name: str) -> None:
    """Draw a number of the learned state; all budgets share it."""
    once = points.groupby("factor", sort=True)[name].mean()
    look = Look(varied.method, points["line"].nunique()).style()
    axes.plot(once.index, once, **look)
    if name == "sparse_pct":
        axes.set_title("sparse kernels (%)", fontsize=8.5, loc="left")
        axes.set_ylim(0, max(1.0, 1.1 * once.max()))
        return
    limit = math.log(points["groups"].max())
    axes.axhline(limit, color=style.REFERENCE, linewidth=0.8, linestyle=(0, (1, 2)))
    axes.annotate(
        "ln G: not learned",
        (1, limit),
        xycoords=("axes fraction", "data"),
        xytext=(0, 2),
        textcoords="offset points",
        ha="right",
        va="bottom",
        fontsize=7,
        color=style.REFERENCE,
    )
    axes.set_title("group entropy (nats)", fontsize=8.5, loc="left")
    axes.set_ylim(0, 1.15 * limit)


def _axes(panels: Sequence[Axes], points: pd.DataFrame) -> None:
    """Label the factors, with the dose below each."""
    ticks = points.groupby(points["factor"].map(words.significant), sort=False)[["factor", "dose"]].first()
    labels = [f"×{factor}\n{words.significant(dose)}" for factor, dose in zip(ticks.index, ticks["dose"], strict=True)]
    for axes in panels:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(ticks["factor"].tolist()))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(ticks["factor"].tolist(), labels, fontsize=7)
        axes.tick_params(axis="y", labelsize=7.5)
    panels[len(panels) // 2].set_xlabel("factor, and dose below it", fontsize=8)


def _caption(varied: Varied, points: pd.DataFrame, control: pd.DataFrame) -> str:
    where = "the validation part" if points["split"].iloc[0] == "tuning" else "the test set"
    sentences = [
        f"{words.who(points)}, {varied.method}: mean over {words.runs(points['n'], points['base_n'])} on {where}; "
        f"{pareto.SPREAD_WORDS[pareto.spread_of(points)]}",
        f"The dose is changed by {varied.setting}; ×1 is a dose of {words.significant(points['dose'].min())}, and below "
        "about 1 no channel becomes small",
        *(
            ["Sparse: kernels that learning brings below 1 % of their layer's mean norm before"]
            if points["sparse_pct"].notna().any()
            else []
        ),
        *_learned_words(points),
        *(["The dense control trained for the same epochs"] if len(control) else []),
        f"T{words.trained(points)[1:]}",
    ]
    return ". ".join(sentences) + "."


def _learned_words(points: pd.DataFrame) -> list[str]:
    """Return which factors learned no groups."""
    if points["group_entropy_nats"].isna().all():
        return []
    without = points[cells.is_unlearned(points)]["factor"].map(lambda factor: f"×{words.significant(factor)}").unique()
    every = points["factor"].map(words.significant).nunique()
    if not len(without):
        return ["Groups were learned at every dose"]
    at = "any dose" if len(without) == every else ", ".join(without)
    return [f"No groups were learned at {at}: the entropy stays at ln G"]
