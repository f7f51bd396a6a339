"""Accuracy at equal time beside accuracy at equal MACs: one set of methods, two orders.

A cell with a run that misses its budget is drawn hollow, and its method does not count in the agreement of the orders.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from scipy import stats

from suite.report import words
from suite.report.figures import style
from suite.report.statistics import inference
from suite.report.statistics.leader import on_common_blocks

SIDES = ("equal MACs", "equal time")


def points_of(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs of methods with a budget of MACs and one of time.

    runs   runs of the comparison sets, coarse ones too (`comparison.compared`)

    Adds `pair`, the share of time, and `side`, an index of `SIDES`. The budget of MACs beside a share of time is the one of the
    nearest share. The frame is empty if no pair has two methods on both sides.
    """
    pairs = [runs.iloc[:0].assign(pair=0.0, side=0)]
    if len(runs):
        timed, counted = (runs[(runs["budget_scope"] == "latency") == flag] for flag in (True, False))
        for share in sorted(timed["budget"].unique()) if len(counted) else ():
            nearest = counted.iloc[(counted["budget"] - share).abs().argmin()]["at"]
            both = pd.concat(
                [
                    counted[counted["at"] == nearest].assign(side=0),
                    timed[timed["budget"] == share].assign(side=1),
                ]
            ).assign(pair=share)
            both = both[both.groupby("name")["side"].transform("nunique") == len(SIDES)]
            if both["name"].nunique() > 1:
                pairs.append(both)
    return pd.concat(pairs)


def draw(points: pd.DataFrame, folder: Path) -> style.Picture:
    """Draw a panel for each pair of budgets and a line for each method."""
    pairs = list(dict.fromkeys(points["pair"]))
    with style.new_figure(entries=points["name"].nunique()) as figure:
        figure.set_size_inches(2.6 + 2.1 * len(pairs), figure.get_figheight())
        panels = figure.subplots(1, len(pairs), squeeze=False, sharey=True)[0]
        for axes, pair in zip(panels, pairs, strict=True):
            _panel(axes, points[points["pair"] == pair])
        panels[0].set_ylabel("top-1 accuracy (%)")
        style.legend(figure)
        return style.picture(
            figure,
            folder,
            points,
            kind="orders",
            title="The order of the methods at equal MACs and at equal time",
            caption_text=_caption(points),
        )


def _panel(axes: Axes, points: pd.DataFrame) -> None:
    means = _means(points)
    names = means.xs(1, level="side")["mean"].sort_values(ascending=False).index
    for place, name in enumerate(names):
        look = points.loc[points["name"] == name, "look"].iloc[0].style()
        mean, half = (means.loc[name][column].reindex(range(len(SIDES))) for column in ("mean", "half"))
        x = [side + 0.02 * (place - (len(names) - 1) / 2) for side in range(len(SIDES))]
        bars: dict[str, Any] = {"fmt": "none", "ecolor": look["color"], "elinewidth": 0.8, "capsize": 1.8, "alpha": 0.5}
        if half.notna().any():
            axes.errorbar(x, mean, yerr=half.fillna(0), **bars)
        axes.plot(x, mean, **look, label=style.label(name))
        missed = means.loc[name]["missed"].reindex(range(len(SIDES)))
        hollow = look | {
            "linestyle": "none",
            "fillstyle": "full",
            "markerfacecolor": "white",
            "markeredgecolor": look["color"],
        }
        axes.plot([x[side] for side in missed.index[missed]], mean[missed], **hollow)
    at = points.groupby("side")["at"].first()
    resources = (f"{at[0]} of the MACs cut", f"{at[1]} cut")
    axes.set_xticks(range(len(SIDES)), [resource.replace(" of the ", "\nof the\n") for resource in resources])
    axes.set_xlim(-0.3, 1.3)
    agreement = tau(met := _met(points))
    of_both = f"agreement of both orders {agreement:.2f} ({met['name'].nunique()} methods)"
    axes.set_title("" if math.isnan(agreement) else of_both, fontsize=8)


def _means(points: pd.DataFrame) -> pd.DataFrame:
    """Return mean accuracy and half width of its interval, by name and side.

    `missed` is True if a run misses the budget.
    """
    cells = points.groupby(["name", "side"])
    means = cells["pruned_top1_pct"].agg(["mean", "std", "size"])
    return means.assign(half=inference.t_half_width(means["std"], means["size"]), missed=cells["coarse"].agg("any"))


def _met(points: pd.DataFrame) -> pd.DataFrame:
    """Return the points of the methods that meet both budgets.

    On each side they are those on the blocks that all of these methods have.
    """
    met = points[~points["coarse"].groupby(points["name"]).transform("any")]
    return pd.concat([met.iloc[:0], *(on_common_blocks(part) for _, part in met.groupby("side", sort=False))])


def tau(points: pd.DataFrame) -> float:
    """Return Kendall's tau; nan for one method, or if all means are equal."""
    if points["name"].nunique() < 2 or points["side"].nunique() < 2:
        return math.nan
    means = _means(points)["mean"].unstack("side")
    return float(stats.kendalltau(means[0], means[1]).statistic)


def _caption(points: pd.DataFrame) -> str:
    cells = points.groupby(["name", "at"])
    timed = points.loc[points["side"] == 1, "time_cut_pct"].dropna()
    measured = f"; measured shares of time from {timed.min():.1f} to {timed.max():.1f} %" if len(timed) else ""
    sentences = [
        f"{words.who(points)}: mean over {words.runs(cells.size(), cells['base_key'].nunique())}; bars: t 95 % intervals of "
        "the mean, absent for one run",
        f"Left: budgets of MACs; right: budgets of time, predicted by layer times and corrected by measurement{measured}",
        "Hollow: a run of the cell misses its budget (coarse). Agreement is Kendall's tau of the two orders over the methods "
        "without hollow marks: 1 the same order, -1 the reverse",
        f"T{words.trained(points)[1:]}",
    ]
    return ". ".join(sentences) + "."
