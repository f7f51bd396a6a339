"""Answer of a grid in two sentences: accuracy, and measured speed."""

from __future__ import annotations

import pandas as pd

from suite.report import pairs, words
from suite.report.fairness import SET


def sentences(lines: pd.DataFrame, compared: pd.DataFrame) -> list[str]:
    """Return a sentence on accuracy and one on measured speed.

    lines      lines of the table
    compared   all pairs of methods (`pairs.table`)
    """
    done = lines[(lines["n"] > 0) & (lines["budget"] > 0)]
    if done.empty:
        return ["No pruned network of this grid is done yet."]
    return [_accuracy(done, compared), _speed(done)]


def _accuracy(done: pd.DataFrame, compared: pd.DataFrame) -> str:
    """Return the method with the highest mean in the comparison set of most methods."""
    parts = [part for _, part in done.groupby(SET, sort=False)]
    part = max(parts, key=lambda each: each["settings"].nunique())
    best = part.nlargest(1, "top1_mean_pct").iloc[0]
    data, model, budget = best["data"], best["model"], best["budget"]
    mean, base = (
        words.mean_sd(best[f"{name}_mean_pct"], best[f"{name}_sd_pp"], None) for name in ("top1", "base_top1")
    )
    share = words.budget(budget, best["budget_scope"])
    network = f"At a budget of {share}, {data}/{model}"
    text = f"{network} keeps most accuracy with {best['settings']}: {mean} of {base} %"
    rivals = part["settings"].nunique() - 1
    if not rivals:
        return f"{text}."
    own = compared[(compared["a"] == best["settings"]) | (compared["b"] == best["settings"])]
    apart = int(pairs.apart(own[(own[SET] == best[SET]).all(axis=1)]).sum())
    if apart >= rivals:
        rest = "the other method" if rivals == 1 else f"all {rivals} other methods"
        return f"{text}, told apart from {rest}."
    if not apart:
        return f"{network}: no method is told apart from {best['settings']}, which has the highest mean: {mean} of {base} %."
    return f"{text}, told apart from {apart} of {rivals} other methods; the order of the rest is open."


def _speed(done: pd.DataFrame) -> str:
    timed = done[done["speedup_x"].notna()]
    if timed.empty:
        doubtful = int(done["speedup_untrusted"].fillna(0).sum())
        return "No measurement of speed can be trusted." if doubtful else "Speed has not been measured."
    faster = timed[timed["verdict"] == "faster"]
    if faster.empty:
        return f"None of the {len(timed)} measured packed networks is faster than its dense network."
    best = faster.nlargest(1, "speedup_x").iloc[0]
    share = words.budget(best["budget"], best["budget_scope"])
    return (
        f"{len(faster)} of {len(timed)} measured packed networks are faster than their dense network, at most "
        f"{words.number(best['speedup_x'])} times ({best['settings']}, {share}, on {best['timed_device']}; by MACs "
        f"{words.number(best['theoretical_x'])} times)."
    )
