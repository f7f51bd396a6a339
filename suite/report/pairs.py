"""Which methods the runs tell apart: every pair of methods in a comparison set (`fairness`), and what n carries.

Pairs     runs of two methods that share seed and base weights are compared seed by seed (paired t test); methods without such
          runs by Welch's t test
Verdict   the better method where the p-value, corrected by Holm over all pairs of the set, is below 0.05; else "not
          distinguishable"; "too few runs" below three
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import pandas as pd

from suite.report import inference, words
from suite.report.fairness import SET, comparable
from suite.report.frames import CONDITIONS

FEWEST, FOR_A_CLAIM = 3, 5
"""Runs of each method that a comparison and a claim take."""
SAME, TOO_FEW = "not distinguishable", "too few runs"
COLUMNS = [
    *SET,
    *("a", "b", "n_a", "n_b", "n", "paired", "a_mean_pct", "b_mean_pct"),
    *("difference_pp", "difference_low_pp", "difference_high_pp", "p", "p_holm"),
    *("probability_of_improvement", "seeds_needed", "verdict"),
]


def table(runs: pd.DataFrame) -> pd.DataFrame:
    """One line for every pair of methods in a comparison set; `a` has the higher mean. `runs` are `Frames.runs`."""
    done = comparable(runs[runs["status"] == "done"])
    lines = [
        {**dict(zip(SET, key, strict=True)), **line}
        for key, part in done.groupby(SET, sort=False)
        for line in _of_set(part)
    ]
    return pd.DataFrame(lines, columns=COLUMNS)


def _of_set(runs: pd.DataFrame) -> list[dict[str, Any]]:
    methods = {str(name): part.set_index("seed") for name, part in runs.groupby("settings", sort=False)}
    order = sorted(methods, key=lambda name: -methods[name]["pruned_top1_pct"].mean())
    lines = [_pair(a, methods[a], b, methods[b]) for a, b in itertools.combinations(order, 2)]
    corrected = inference.holm([line["p"] for line in lines])
    return [{**line, "p_holm": p, "verdict": _verdict(line, p)} for line, p in zip(lines, corrected, strict=True)]


def _pair(a: str, of_a: pd.DataFrame, b: str, of_b: pd.DataFrame) -> dict[str, Any]:
    both = of_a.merge(of_b, left_index=True, right_index=True, suffixes=("_a", "_b"))
    both = both[(both["base_sha256_a"] == both["base_sha256_b"]) & (both["base_sha256_a"] != "unknown")]
    paired = len(both) > 0
    first = (both["pruned_top1_pct_a"] if paired else of_a["pruned_top1_pct"]).tolist()
    second = (both["pruned_top1_pct_b"] if paired else of_b["pruned_top1_pct"]).tolist()
    found = inference.difference(first, second, paired=paired)
    return {
        "a": a,
        "b": b,
        "n_a": len(of_a),
        "n_b": len(of_b),
        "n": found.n,
        "paired": paired,
        "a_mean_pct": of_a["pruned_top1_pct"].mean(),
        "b_mean_pct": of_b["pruned_top1_pct"].mean(),
        "difference_pp": found.mean,
        "difference_low_pp": found.interval[0],
        "difference_high_pp": found.interval[1],
        "p": found.p,
        "probability_of_improvement": inference.probability_of_improvement(
            of_a["pruned_top1_pct"].tolist(), of_b["pruned_top1_pct"].tolist()
        ),
        "seeds_needed": inference.seeds_needed(found.effect, paired=paired) if found.n >= FEWEST else math.nan,
    }


def _verdict(line: dict[str, Any], p: float) -> str:
    if line["n"] < FEWEST:
        return TOO_FEW
    if math.isnan(p) or p >= inference.ALPHA:
        return SAME
    return str(line["a"] if line["difference_pp"] > 0 else line["b"]) + " is better"


# ---- in words --------------------------------------------------------------------------------------------------------


def with_the_best(compared: pd.DataFrame) -> pd.DataFrame:
    """The pairs whose first method has the highest mean of its set."""
    first = compared.groupby(SET, sort=False)["a"].transform("first")
    return compared[compared["a"] == first]


def shown(compared: pd.DataFrame) -> pd.DataFrame:
    """The best method of every set beside each other one, as text, where there are enough runs to compare."""
    pairs = with_the_best(compared)
    letters, _ = words.told_apart(pairs, CONDITIONS)
    pairs, letters = pairs[pairs["n"] >= FEWEST], letters[pairs["n"] >= FEWEST]
    return pd.DataFrame(
        {
            "budget": list(map(words.budget, pairs["budget"], pairs["budget_scope"])),
            "highest mean": pairs["a"] + letters,
            "against": pairs["b"],
            "n": pairs["n"].astype(str) + pairs["paired"].map({True: " paired", False: ""}),
            "difference pp": [_with_interval(line) for line in pairs.to_dict("records")],
            "p (Holm)": pairs["p_holm"].map(lambda p: "" if pd.isna(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"),
            "P(improvement)": pairs["probability_of_improvement"].map(words.number),
            "seeds needed": pairs["seeds_needed"].map(lambda seeds: words.number(seeds, 0)),
            "verdict": pairs["verdict"],
        }
    )


def _with_interval(line: dict[Any, Any]) -> str:
    interval = f" [{line['difference_low_pp']:.2f}, {line['difference_high_pp']:.2f}]"
    return words.number(line["difference_pp"]) + ("" if pd.isna(line["difference_low_pp"]) else interval)


def warnings(compared: pd.DataFrame) -> list[str]:
    """What a reader might take from a table and its n does not carry, a line each."""
    return [*_few(compared), *_leaders(compared)]


def _few(compared: pd.DataFrame) -> Iterator[str]:
    few = compared.loc[compared["n"] < FOR_A_CLAIM, "n"]
    if (few < FEWEST).any():
        yield (
            f"Sizing: {(few < FEWEST).sum()} of {len(compared)} pairs of methods have fewer than {FEWEST} runs to compare "
            f"({few.min()} at least; coarse ones do not count). The order of such methods in the table is not a result."
        )
    elif len(few):
        yield f"Sizing: some pairs of methods have {few.min()} runs to compare; that tells, but a claim takes {FOR_A_CLAIM}."


def _leaders(compared: pd.DataFrame) -> Iterator[str]:
    """Sets whose highest mean is not told apart from others, with enough runs to compare."""
    pairs = with_the_best(compared)
    letters, _ = words.told_apart(pairs, CONDITIONS)
    unclear = pairs.assign(letter=letters)[pairs["verdict"] == SAME]
    for _, part in unclear.groupby(SET, sort=False):
        first = part.iloc[0]
        rivals = [f"{line['b']} ({_apart(line)})" for line in part.sort_values("difference_pp").to_dict("records")]
        yield (
            f"Sizing: at {words.budget(first['budget'], first['budget_scope'])}{first['letter']} {first['a']} has the highest "
            f"mean, and these runs do not tell it apart from {', '.join(rivals)}."
        )


def _apart(line: dict[Any, Any]) -> str:
    apart = f"{line['difference_pp']:.2f} points apart"
    return apart if pd.isna(line["seeds_needed"]) else f"{apart}: {line['seeds_needed']:.0f} seeds each would"
