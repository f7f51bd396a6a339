"""Intervals of the methods' accuracy drops, and their order over budgets.

Only runs of one comparison set (`suite.report.statistics.fairness`) stand against each other: same budget, split and
conditions, and none that cuts too much.

Rank     1 is the most accurate; equals share their mean rank. Methods are ranked at those budgets for which all of them have
         a run, by their means over the blocks that all of them have, and only where all budgets have the same conditions. Near
         chance level there is no order: methods that keep less than `LEFT` of what the base network has above chance share
         their rank, and a budget at which all do has none. The base network in its turn is near chance if it has less than
         `LEFT` of what a network without errors has above chance; then no budget has ranks.
tau      Kendall's rank correlation of two orders: 1 for the same order, 0 for unrelated ones, -1 for the reverse.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.markers import CARETRIGHT
from scipy import stats

from suite import data
from suite.report import words
from suite.report.figures import style
from suite.report.figures.extent import farthest
from suite.report.frames import CONDITIONS
from suite.report.statistics import fairness, inference, leader, pairs
from suite.report.statistics.fairness import SET

LEFT = 0.1
"""Share of an accuracy above chance level, below which a network counts as near chance level.

The accuracy is that of the base network for a method, and 100 % for the base network."""
PANELS = 5
"""Budgets that have a panel; of more, those spread evenly over their range."""


def described(runs: pd.DataFrame, *, coarse_too: bool = False) -> pd.DataFrame:
    """Return the finished runs that may be compared.

    With `coarse_too` also those that miss their budget.

    Adds `name`, `at` (the comparison set), `drop_pp`, and `lost_pp`, the drop from which on a method is near chance level.
    """
    coarse = 0 if coarse_too else len(runs) - len(runs := fairness.comparable(runs))
    if runs.empty:
        return runs.assign(at="")
    letters, meanings = words.told_apart(runs, ["split", *CONDITIONS])
    at = pd.Series(list(map(words.budget, runs["budget"], runs["budget_scope"])), index=runs.index) + letters
    about = runs.assign(
        name=runs["short"],
        remarks=". ".join(
            [f"{coarse} coarse runs are left out"] * (coarse > 0) + ["; ".join(meanings)] * bool(meanings)
        ),
        at=at,
        drop_pp=runs["base_top1_pct"] - runs["pruned_top1_pct"],
        lost_pp=_lost_pp(runs["data"], runs["base_top1_pct"].groupby(at).transform("mean")),
    )
    return about.sort_values("budget", kind="stable")


def compared(about: pd.DataFrame) -> pd.DataFrame:
    """Return the runs (`described`) of the comparison sets with two or more methods.

    The remarks count the others.
    """
    if about.empty:
        return about
    alone = about.groupby("at")["name"].transform("nunique") == 1
    shown, count = about[~alone], int((alone & about["removes"].astype(bool)).sum())
    if not count:
        return shown
    remark = f"{count} runs are left out: no second method has their budget and conditions"
    return shown.assign(remarks=[f"{text}. {remark}".removeprefix(". ") for text in shown["remarks"]])


def _lost_pp(data: pd.Series, base_pct: pd.Series) -> pd.Series:
    """Return the drop from which on a run counts as near chance level.

    The drop is infinite if the number of classes is not known, and minus infinity if the base network is near chance level.
    """
    chance_pct = data.map({name: _chance_pct(name) for name in data.unique()})
    above_pp = base_pct - chance_pct
    return ((1 - LEFT) * above_pp).where(above_pp >= LEFT * (100 - chance_pct), -math.inf)


def _chance_pct(name: str) -> float:
    try:
        return 100 / data.size(name).classes
    except (ValueError, OSError):  # a data set that states no size, and is missing
        return -math.inf


def _on_common_blocks(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs on the blocks that all methods of their comparison set have."""
    return pd.concat([runs.iloc[:0], *(leader.on_common_blocks(part) for _, part in runs.groupby("at", sort=False))])


def _order_pp(runs: pd.DataFrame) -> pd.Series:
    """Return the mean drop of each method by comparison set.

    All methods near chance level have the same value.
    """
    means = runs.groupby(["at", "name"])[["drop_pp", "lost_pp"]].mean()
    return means.min(axis=1)


# ---- intervals -------------------------------------------------------------------------------------------------------


def draw_intervals(runs: pd.DataFrame, folder: Path) -> style.Picture:
    """Draw the drops of all methods.

    There is a panel for each budget and a row for each method, the best on top.
    """
    every = list(dict.fromkeys(runs["at"]))
    budgets = _chosen(every, PANELS)
    runs = runs[runs["at"].isin(budgets)]
    ordered = _on_common_blocks(runs)
    mean_rank = _order_pp(ordered).groupby("at").rank().groupby("name").mean()
    names = list(dict.fromkeys([*mean_rank.sort_values(kind="stable").index, *runs["name"]]))
    with style.new_figure(entries=0) as figure:
        rows = len(names) * (1.4 if any("\n" in style.label(name) for name in names) else 1)
        figure.set_size_inches(2.0 + max(1.35 * len(budgets), 3.5), 1.15 + 0.21 * rows)
        panels = figure.subplots(1, len(budgets), squeeze=False, sharey=True)[0]
        for axes, budget in zip(panels, budgets, strict=True):
            _intervals(axes, own := runs[runs["at"] == budget], names)
            named = len(budgets) < 4 or axes is panels[0]
            cut = "cut" if own["budget_scope"].eq("latency").all() else "MACs cut"
            axes.set_title(f"{cut}: {budget}" if named else budget, fontsize=8.5, loc="left")
        panels[0].set_yticks(range(len(names)), [style.label(name) for name in names], fontsize=8, parse_math=False)
        panels[0].set_ylim(len(names) - 0.5, -0.5)
        left, between = divmod(len(panels) - 1, 2)
        panels[left].set_xlabel("accuracy drop (points; left is better)", x=1.05 if between else 0.5)
        return style.picture(
            figure,
            folder,
            runs,
            kind="intervals",
            title="Accuracy drop of the methods, budget by budget",
            caption_text=_caption_intervals(runs, ordered, [budget for budget in every if budget not in budgets]),
            arrange=lambda: style.fit(figure, panels[0], 0.21 * rows),
        )


def _intervals(axes: Axes, runs: pd.DataFrame, names: list[str]) -> None:
    """Draw runs as ticks and their mean as a mark.

    Three or more runs have a t 95 % interval as a bar.
    """
    best = runs.groupby("name")["drop_pp"].mean()
    limit = best.min() + farthest(best - best.min())
    for y, name in enumerate(names):
        own = runs[runs["name"] == name]
        if own.empty:
            continue
        if best[name] > limit:
            _far(axes, y, best[name], own["look"].iloc[0].style()["color"])
            continue
        look, drop = own["look"].iloc[0].style(), own["drop_pp"]
        axes.scatter(drop, [y] * len(drop), marker="|", s=28, color=look["color"], alpha=0.7, linewidths=0.9)
        if len(drop) >= 3:
            axes.plot(inference.t_interval(drop.tolist()), [y, y], color=look["color"], linewidth=2.2, alpha=0.45)
        axes.plot([drop.mean()], [y], **{**look, "linestyle": "none"})
    axes.axvline(0, color=style.REFERENCE, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
    if len(best) > 1:
        axes.axvline(best.min(), color=style.FRONT, linewidth=1.2, zorder=0.5)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=7.5)
    axes.spines["left"].set_visible(False)


def _far(axes: Axes, y: int, drop: float, colour: str) -> None:
    """Mark a method beyond the axis by an arrow and its drop."""
    where: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "color": colour}
    axes.plot([0.985], [y], marker=CARETRIGHT, markersize=5, **where)
    axes.text(0.94, y, f"{drop:.1f}", ha="right", va="center", fontsize=7, **where)


def _caption_intervals(runs: pd.DataFrame, ordered: pd.DataFrame, left_out: Sequence[str]) -> str:
    """Return the caption.

    `ordered` are the runs that order the methods, `left_out` the budgets without a panel.
    """
    n = runs.groupby(["name", "at"]).size()
    counted = words.runs(n, runs.groupby(["name", "at"])["base_key"].nunique())
    bars = "bars: t 95 % intervals of the mean" if n.min() >= 3 else "no interval is drawn for fewer than three runs"
    several = runs["name"].nunique() > 1
    order = "Methods in the order of their mean rank"
    if len(ordered) < len(runs):
        order += " on the base networks that all methods have"
    if ordered.empty:
        order = "Methods have no base network in common, and no order"
    if runs["lost_pp"].eq(-math.inf).all():
        order = (
            f"Methods have no order and no ranks: the base network, with {runs['base_top1_pct'].mean():.1f} %, is near chance "
            f"level ({_chance_pct(runs['data'].iloc[0]):.3g} %): less than {100 * LEFT:.0f} % of the way from there to 100 %"
        )
    sentences = [
        f"{words.who(runs)}: mean over {counted} (mark) of base minus pruned accuracy; ticks: the runs; {bars}",
        "Dotted line: no drop" + f"; grey line: the best mean; arrow: too far for the axis. {order}" * several,
        f"T{words.trained(runs)[1:]}",
        *([f"In the table, but without a panel: {', '.join(left_out)}"] if left_out else []),
        *([runs["remarks"].iloc[0]] if runs["remarks"].iloc[0] else []),
    ]
    return ". ".join(sentences) + "."


# ---- ranks -----------------------------------------------------------------------------------------------------------


def ranked(runs: pd.DataFrame, compared: pd.DataFrame) -> pd.DataFrame:
    """Add `rank` of the mean to the runs of methods with all budgets.

    `tied` is True near chance level.

    compared   all pairs of methods (`pairs.table`)

    The frame is empty if there is nothing to rank. There is something where two methods share two budgets under the same
    conditions and are told apart at one of them, and one of them is not near chance level.
    """
    if runs.empty or len(runs.drop_duplicates(["split", *CONDITIONS])) > 1:
        return runs.iloc[:0]
    runs = _with_all_budgets(runs[~runs["at"].isin(near_chance(runs))])
    runs = _with_all_budgets(_on_common_blocks(runs))
    runs = runs.merge(_order_pp(runs).rename("order_pp").reset_index(), on=["at", "name"])
    runs = runs.assign(tied=runs["order_pp"] >= runs["lost_pp"])
    runs = runs[~runs.groupby("at")["tied"].transform("all")]
    if runs["at"].nunique() < 2 or not any(_apart(part, compared) for _, part in runs.groupby("at")):
        return runs.iloc[:0]
    means = runs.groupby(["at", "name"])["order_pp"].first()
    return runs.merge(means.groupby("at").rank().rename("rank").reset_index(), on=["at", "name"])


def _with_all_budgets(runs: pd.DataFrame) -> pd.DataFrame:
    return runs[runs.groupby("name")["at"].transform("nunique") == runs["at"].nunique()]


def _apart(runs: pd.DataFrame, compared: pd.DataFrame) -> set[frozenset[str]]:
    """Return the pairs of names that are told apart in a comparison set.

    runs   of the set
    """
    if compared.empty:
        return set()
    names = dict(zip(runs["settings"], runs["name"], strict=True))
    own = compared.merge(runs[SET].drop_duplicates(), on=SET)
    own = own[own["a"].isin(names) & own["b"].isin(names) & pairs.apart(own)]
    return {frozenset((names[a], names[b])) for a, b in zip(own["a"], own["b"], strict=True)}


def groups(names: Sequence[str], apart: Collection[frozenset[str]]) -> list[tuple[int, int]]:
    """Return first and last index of the groups in which no pair is told apart.

    A group has neighbours only, and lies in no larger one.

    names   methods in their order
    """
    result: list[tuple[int, int]] = []
    for first in range(len(names)):
        last = first
        while last + 1 < len(names) and not any(
            frozenset((name, names[last + 1])) in apart for name in names[first : last + 1]
        ):
            last += 1
        if last > max([first, *(end for _, end in result)]):
            result.append((first, last))
    return result


def near_chance(runs: pd.DataFrame) -> list[str]:
    """Return the comparison sets in which all methods are near chance level."""
    means = runs.groupby(["at", "name"], sort=False)[["drop_pp", "lost_pp"]].mean()
    near = (means["drop_pp"] >= means["lost_pp"]).groupby("at", sort=False).all()
    return near.index[near].tolist()


def draw_ranks(runs: pd.DataFrame, compared: pd.DataFrame, folder: Path, every: pd.DataFrame) -> style.Picture:
    """Draw the rank of the methods' means over the budgets.

    Bars join methods that are not told apart.

    `every` are the runs with those that have no rank.
    """
    budgets = _chosen(list(dict.fromkeys(runs["at"])), 2 * PANELS)
    names = runs[runs["at"] == budgets[-1]].groupby("name")["rank"].first().sort_values(kind="stable").index
    with style.new_figure(entries=0) as figure:
        figure.set_size_inches(2.6 + min(0.6 + 1.1 * len(budgets), 5.2), 3.0)
        axes = figure.add_subplot()
        axes.set_xlim(-0.45, len(budgets) - 0.7)
        axes.set_ylim(len(names) + 0.6, 0.4)
        beside = np.linspace(-0.12, 0.12, len(names))
        for x, budget in enumerate(budgets):
            own = runs[runs["at"] == budget]
            _tied(axes, own, x)
            _joined(axes, own, _apart(own, compared), x)
        ends = [
            _ranks(axes, runs[runs["name"] == name], budgets, len(names), shift)
            for name, shift in zip(names, beside, strict=True)
        ]
        axes.set_xticks(range(len(budgets)), budgets)
        axes.set_yticks(range(1, len(names) + 1))
        resource = "MACs or time" if runs["budget_scope"].eq("latency").any() else "MACs"
        axes.set(xlabel=f"share of {resource} to cut", ylabel="rank by accuracy (1 is best)")
        axes.grid(visible=False)
        axes.spines[["left", "bottom"]].set_visible(False)
        axes.tick_params(length=0)
        return style.picture(
            figure,
            folder,
            runs,
            kind="ranks",
            title="Does the order of the methods hold?",
            caption_text=_caption_ranks(runs, every),
            arrange=lambda: style.name_ends(figure, axes, ends, max(1.9, 0.24 * len(names))),
        )


def _ranks(axes: Axes, runs: pd.DataFrame, budgets: list[str], count: int, shift: float) -> style.End:
    """Draw one method, moved by `shift` so that equal ranks do not overlap."""
    look = runs["look"].iloc[0].style()
    mean = runs.groupby("at")["rank"].first().reindex(budgets)
    places = np.arange(len(budgets)) + shift
    thick = 2.0 if count <= style.MANY else 1.3
    axes.plot(places, mean, **look, linewidth=thick)
    return style.End(str(runs["name"].iloc[0]), places[-1], float(mean.iloc[-1]), look)


def _joined(axes: Axes, runs: pd.DataFrame, apart: Collection[frozenset[str]], x: int) -> None:
    """Draw a bar beside each group of methods that are not told apart."""
    ranks = runs.groupby("name")["rank"].first().sort_values(kind="stable")
    for place, (first, last) in enumerate(groups(ranks.index.tolist(), apart)):
        at = x - 0.2 - 0.05 * (place % 4)  # overlapping groups stand beside each other
        ends = [ranks.iloc[first] - 0.15, ranks.iloc[last] + 0.15]
        axes.plot([at, at], ends, color=style.REFERENCE, linewidth=2.5, solid_capstyle="butt")


def _tied(axes: Axes, runs: pd.DataFrame, x: int) -> None:
    """Draw a grey field behind the methods of a budget near chance level."""
    tied = runs.loc[runs["tied"], "name"].nunique()
    if tied:
        low, high = runs["name"].nunique() + 0.5 - tied, runs["name"].nunique() + 0.5
        axes.fill_between([x - 0.25, x + 0.25], low, high, color="0.93", linewidth=0, zorder=0)
        axes.text(x, high - 0.1, "near chance", ha="center", va="bottom", fontsize=6.5, color="0.35")


def _caption_ranks(runs: pd.DataFrame, every: pd.DataFrame) -> str:
    near = near_chance(every)
    unordered = [at for at in every["at"].unique() if at not in {*near, *runs["at"]}]
    by_budget = runs.pivot_table(index="name", columns="at", values="rank", aggfunc="first")
    taus = _taus(by_budget.to_numpy().T)
    cells = runs.groupby(["name", "at"])
    sentences = [
        f"{words.who(runs)}: rank of the mean over {words.runs(cells.size(), cells['base_key'].nunique())}",
        "Grey bars join methods that are not told apart (comparisons.csv): within a bar the order is no result",
        *([f"Agreement of two budgets, Kendall's tau, on average: {np.mean(taus):.2f}"] if taus else []),
        *_about_chance(runs, near),
        *([f"No ranks at {', '.join(unordered)}: no order on base networks that all have"] if unordered else []),
        f"T{words.trained(runs)[1:]}",
    ]
    return ". ".join(sentences) + "."


def _about_chance(runs: pd.DataFrame, left_out: Sequence[str]) -> list[str]:
    """Return what is not ordered near chance level, and the budgets without a rank."""
    if not runs["tied"].any() and not left_out:
        return []
    chance_pct = _chance_pct(runs["data"].iloc[0])
    without = f"; no method has more at {', '.join(left_out)}, which are left out" if left_out else ""
    return [
        f"Ranks mean nothing near chance level ({chance_pct:.3g} %): methods that keep less than {100 * LEFT:.0f} % of what "
        f"the base network has above it share a place in the grey field{without}"
    ]


def _taus(orders: Iterable[np.ndarray]) -> list[float]:
    """Return Kendall's tau of each pair of orders; undefined ones are left out."""
    pairs = itertools.combinations(orders, 2)
    values = (float(stats.kendalltau(a, b).statistic) for a, b in pairs)
    return [tau for tau in values if not np.isnan(tau)]


def _chosen(budgets: list[str], most: int) -> list[str]:
    """Return all budgets, or `most` spread evenly with the first and the last."""
    places = np.linspace(0, len(budgets) - 1, min(most, len(budgets))).round().astype(int)
    return [budgets[place] for place in places]
