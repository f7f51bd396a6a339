"""Answer of a grid in two sentences: accuracy, and measured speed."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from suite.report import words
from suite.report.statistics import pairs
from suite.report.statistics.fairness import SET
from suite.report.statistics.leader import UNFINISHED, Leader


def sentences(lines: pd.DataFrame, compared: pd.DataFrame, of_sets: Sequence[Leader]) -> list[str]:
    """Return a sentence on accuracy and one on measured speed.

    lines      lines of the table
    compared   all pairs of methods (`pairs.table`)
    of_sets    leaders of the comparison sets (`leader.leaders`)
    """
    done = lines[(lines["n"] > 0) & (lines["budget"] > 0)]
    if done.empty:
        return ["No pruned network of this grid is done yet."]
    return [_accuracy(of_sets, compared), _speed(done)]


def _accuracy(of_sets: Sequence[Leader], compared: pd.DataFrame) -> str:
    """Return the leader of the set of most methods, with the tests won."""
    pruned = [leader for leader in of_sets if leader.at["budget"] > 0]
    if not pruned:
        return "No pruned network can be compared: all are coarse or from abstracts."
    leader = max(pruned, key=lambda each: each.rivals)
    share = words.budget(leader.at["budget"], leader.at["budget_scope"])
    name, network = leader.settings, f"{leader.at['data']}/{leader.at['model']}"
    if not name:
        return f"At a budget of {share}, the methods of {network} {UNFINISHED}."
    mean, base = (
        words.mean_sd(values.mean(), values.std()) for values in (leader.runs["pruned_top1_pct"], leader.base)
    )
    own = pairs.of_papers(compared[(compared[SET] == leader.at).all(axis=1)])
    won = int(((own["a"] == name) & pairs.apart(own)).sum())
    ahead = own.loc[(own["b"] == name) & pairs.apart(own), "a"]
    at, result = f"At a budget of {share}, {network}", f"{leader.where}: {mean} of {base} %"
    if len(ahead):
        better = f"{words.joined(ahead)} {'is' if len(ahead) == 1 else 'are'} better"
        return f"{at}: {name} has the highest mean{result}; by the tests over all blocks {better}."
    if leader.rivals and not won:
        return f"{at}: no method is told apart from {name}, which has the highest mean{result}."
    return f"{at} keeps most accuracy with {name}{result}{_apart(won, leader.rivals)}."


def _apart(won: int, rivals: int) -> str:
    """Return from how many of its rivals the leader is told apart."""
    if not rivals:
        return ""
    if won < rivals:
        return f", told apart from {won} of {rivals} other methods; the order of the rest is open"
    return ", told apart from the other method" if rivals == 1 else f", told apart from all {rivals} other methods"


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
