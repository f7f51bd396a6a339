"""Published numbers beside ours: published | ours | difference | verdict.

Which line    the method, settings, data set, model and number of groups of the published row, all training images, and the cut
              that lies next to the published one, at most a point away, counted in the scope that the source counts in
What          the drop where the source states its base accuracy, else the accuracy itself, with a verdict only if the source
              states the epochs of its whole training, base network included, and ours has the same. Our median stands beside
              a published median, else our mean
Training      a number of a network that was trained from scratch stands beside none: ours start from trained weights
Selection     a number of the epoch that was best on the test set stands beside such a one; if there is none, beside ours with a
              marked verdict, since the choice favours the published number. No other number stands beside ours of that epoch
Verdict       two one-sided tests on the 95 % interval of ours minus published: "reproduced" if the whole interval lies within
              half a point of 0, "below" or "above" if all of it lies further away on that side, else "open"; "not run"
              without a line, with the reason; "not judged" if neither base accuracy nor epochs are known to agree, since base
              networks differ by more than the margin. A published median of n runs has the error of such a median, with our
              standard deviation; a number whose source states no runs counts as exact
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pandas as pd

from suite.report import columns, words
from suite.report.columns import further_columns
from suite.report.frames import CONDITIONS, EPOCHS, SCHEDULES
from suite.report.statistics import inference, published

NEAR_PP = 1.0
"""Points of cut between a published row and what is compared with it, at most."""
MARGIN_PP = 0.5
"""Points within which two accuracies count as equal, stated before any run."""
NOT_JUDGED = "not judged"
NO_BASE = "the source states no base accuracy, and base networks differ by more than the margin"
CUT = {"network": "macs_cut_pct", "prunable": "prunable_macs_cut_pct"}
FROM_SCRATCH = "from scratch"
"""In the variant of a published row."""
BEST_ON_TEST = "best_test"
MARKED = " (published is best on test)"
"""Behind the verdict on an epoch that the test set has not chosen, beside one that it has."""
_KEPT = {"last": "the last epoch", "best_validation": "the best epoch on validation", BEST_ON_TEST: "the best on test"}
_ABOUT = ["data", "model", "method", "variant", "groups", "flops_cut_pct", "scope", "selection", "seen", "source"]
COLUMNS = columns.names(further_columns.REPRODUCTION)


def table(runs: pd.DataFrame, lines: pd.DataFrame, published: pd.DataFrame) -> pd.DataFrame:
    """Return one line for each published row and each line of ours beside it.

    Published rows are those of the grid's methods, networks and groups.

    `runs` and `lines` are `Frames.runs` and what `cells.accuracy_lines` makes of them. `difference_pp` is positive where
    ours is better.
    """
    networks = set(zip(lines["data"], lines["model"], lines["method"], lines["groups"], strict=True))
    every = {key[:3] for key in networks}
    about = [
        row
        for row in published.dropna(subset=["top1_pct"]).to_dict("records")
        if (key := (row["data"], row["model"], row["ours"])) in every
        and (pd.isna(row["groups"]) or (*key, row["groups"]) in networks)
    ]
    done = runs[runs["status"] == "done"].set_index("key")
    rows = [line for row in about for line in _beside(row, lines, done)]
    return pd.DataFrame(rows, columns=COLUMNS)


def _beside(row: dict[Any, Any], lines: pd.DataFrame, done: pd.DataFrame) -> Iterator[dict[str, Any]]:
    drop = pd.notna(row["base_top1_pct"])
    start = {
        **{name: row[name] for name in _ABOUT},
        "n": 0,
        "base_n": 0,
        "quantity": "drop pp" if drop else "top-1 %",
        "statistic": "median" if row["runs"].startswith("median") else "mean",
        "published_runs": _median_of(row["runs"]),
        "published_epochs": row["epochs"],
        "published": row["base_top1_pct"] - row["top1_pct"] if drop else row["top1_pct"],
        "verdict": "not run",
    }
    own = lines[lines[["data", "model", "method"]].eq([row["data"], row["model"], row["ours"]]).all(axis=1)]
    if pd.notna(row["groups"]):
        own = own[own["groups"] == row["groups"]]
    near, reason = _nearest(row, own)
    if near.empty:
        yield {**start, "reason": reason}
    best = row["selection"] == published.BEST_ON_TEST
    for line in near.to_dict("records"):
        compared = {**start, **_compared(start, line, done.loc[line["rows"].split()])}
        if (line["selection"] == BEST_ON_TEST) != best:
            reasons = [text for text in (compared["reason"], _other_selection(line, best=best)) if text]
            compared |= {"verdict": compared["verdict"] + MARKED, "reason": "; ".join(reasons)}
        yield compared


def _median_of(runs: str) -> int | None:
    """Return n for "median of n", else None."""
    stated = re.fullmatch(r"median of (\d+)", runs)
    return int(stated[1]) if stated else None


def _nearest(row: dict[Any, Any], own: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Return the nearest line of each series and conditions, or none and the reason."""
    none = own.iloc[:0]
    if FROM_SCRATCH in row["variant"]:
        return none, "the source trains from scratch, ours start from trained weights"
    if pd.isna(row["flops_cut_pct"]):
        return none, "the source does not state its cut"
    if row["needs"] == published.NO_VARIANT:
        return none, "another variant: the suite has the method, but not this form"
    if row["needs"] and len(own):
        needs = set(row["needs"].split(", "))
        own = own[[needs <= set(fields.split(", ")) for fields in own["fields"]]]
        if own.empty:
            return none, f"another variant: the published one takes {row['needs']}"
    own = own[own["n"] > 0]
    if own.empty:
        return none, "no run is done"
    own = own[own["split"] == "all"]
    if own.empty:
        return none, "ours are measured on the validation part"
    own = own.assign(away=(own[CUT[row["scope"]]] - row["flops_cut_pct"]).abs())
    near = own[own["away"] <= NEAR_PP]
    if near.empty:
        nearest_cut = own.sort_values("away")[CUT[row["scope"]]].iloc[0]
        return none, f"no cut within {NEAR_PP:g} point; the nearest is {nearest_cut:.2f} %"
    nearest = near.loc[near.groupby(["series", *CONDITIONS], sort=False)["away"].idxmin()]
    best = row["selection"] == published.BEST_ON_TEST
    alike = nearest[(nearest["selection"] == BEST_ON_TEST) == best]
    if len(alike) or not best:
        return alike, "" if len(alike) else _other_selection(nearest.iloc[0].to_dict(), best=best)
    return nearest, ""


def _other_selection(line: dict[Any, Any], *, best: bool) -> str:
    ours = f"{line['top1_mean_pct']:.2f} % (n = {line['n']})"
    published_one = "is of the best epoch on test" if best else "is not"
    return f"the published row {published_one}; ours, {ours}, is of {_KEPT.get(line['selection'], line['selection'])}"


def _compared(start: dict[str, Any], line: dict[Any, Any], runs: pd.DataFrame) -> dict[str, Any]:
    drop, median = start["quantity"] == "drop pp", start["statistic"] == "median"
    values = (runs["base_top1_pct"] - runs["pruned_top1_pct"] if drop else runs["pruned_top1_pct"]).tolist()
    ours = float(pd.Series(values).median() if median else pd.Series(values).mean())
    interval = inference.bootstrap_median_interval(values) if median else inference.t_interval(values)
    epochs = " + ".join(f"{0 if pd.isna(line[name]) else line[name]:g}" for name in EPOCHS)
    judged = drop or start["published_epochs"] == epochs
    low, high = inference.difference_interval(
        values, start["published"], median=median, of_runs=start["published_runs"]
    )
    return {
        **{
            name: line[name] for name in ("settings", "budget", "n", "base_n", "rows", *EPOCHS, *SCHEDULES, *CONDITIONS)
        },
        "our_selection": line["selection"],
        "our_cut_pct": line[CUT[start["scope"]]],
        "ours": ours,
        "ours_low": interval[0],
        "ours_high": interval[1],
        "difference_pp": (start["published"] - ours) if drop else (ours - start["published"]),
        "difference_low_pp": -high if drop else low,
        "difference_high_pp": -low if drop else high,
        "verdict": verdict((-high, -low) if drop else (low, high)) if judged else NOT_JUDGED,
        "reason": NO_BASE if not judged else "one or two runs have no interval" if pd.isna(interval[0]) else "",
    }


def verdict(difference: inference.Interval) -> str:
    """Return the verdict on an interval of ours minus published, positive if ours is better."""
    judged = inference.equivalence(difference, MARGIN_PP)
    return "reproduced" if judged == "equivalent" else judged


def shown(table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Return the table with the `letter` of each line's conditions, and the letters' meanings."""
    letters, meanings = words.told_apart(table[table["n"] > 0], CONDITIONS)
    return table.assign(letter=letters.reindex(table.index, fill_value="")), meanings
