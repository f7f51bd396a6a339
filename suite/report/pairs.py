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
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from suite.report import inference, words
from suite.report.fairness import SET, comparable
from suite.report.frames import CONDITIONS

FEWEST, FOR_A_CLAIM = 3, 5
"""Runs of each method that a comparison and a claim take."""
SAME, TOO_FEW = "not distinguishable", "too few runs"
_TESTED = ["difference_pp", "difference_low_pp", "difference_high_pp", "p"]
COLUMNS = [
    *SET,
    *("a", "b", "n_a", "n_b", "n", "paired", "a_mean_pct", "b_mean_pct"),
    *_TESTED,
    *("p_holm", "probability_of_improvement", "seeds_needed", "verdict"),
]


@dataclass(frozen=True)
class _Method:
    """The runs of a method in a comparison set, ascending by seed."""

    name: str
    seeds: list[int]
    weights: list[str]
    top1_N: np.ndarray

    @property
    def mean(self) -> float:
        """Of the accuracies."""
        return float(self.top1_N.mean())


@dataclass(frozen=True)
class _Pair:
    key: tuple[Any, ...]
    a: _Method
    b: _Method
    first_N: np.ndarray
    second_M: np.ndarray
    paired: bool


def table(runs: pd.DataFrame) -> pd.DataFrame:
    """One line for every pair of methods in a comparison set; `a` has the higher mean. `runs` are `Frames.runs`."""
    done = comparable(runs[runs["status"] == "done"]).sort_values("seed", kind="stable")
    pairs = [pair for key, part in done.groupby(SET, sort=False) for pair in _of_set(key, part)]
    frame = pd.DataFrame([_about(pair) for pair in pairs], columns=COLUMNS)
    alike: dict[tuple[bool, int, int], list[int]] = {}
    for index, pair in enumerate(pairs):
        alike.setdefault((pair.paired, len(pair.first_N), len(pair.second_M)), []).append(index)
    for (paired, *_), places in alike.items():
        stacked = (np.stack([getattr(pairs[i], side) for i in places]) for side in ("first_N", "second_M"))
        found = inference.differences(*stacked, paired=paired)
        frame.loc[places, _TESTED] = np.stack([found.mean_P, found.low_P, found.high_P, found.p_P], axis=1)
        seeds = [inference.seeds_needed(effect, paired=paired) for effect in found.effect_P]
        frame.loc[places, "seeds_needed"] = seeds
    frame[[*_TESTED, "seeds_needed"]] = frame[[*_TESTED, "seeds_needed"]].astype(float)
    frame["seeds_needed"] = frame["seeds_needed"].where(frame["n"] >= FEWEST)
    frame["p_holm"] = frame.groupby(SET, sort=False)["p"].transform(lambda p: inference.holm(p.to_numpy()))
    frame["verdict"] = [_verdict(line) for line in frame.to_dict("records")]
    return frame


def _of_set(key: tuple[Any, ...], runs: pd.DataFrame) -> Iterator[_Pair]:
    methods = [
        _Method(
            str(name),
            part["seed"].tolist(),
            part["base_sha256"].tolist(),
            part["pruned_top1_pct"].to_numpy(dtype=float),
        )
        for name, part in runs.groupby("settings", sort=False)
    ]
    for a, b in itertools.combinations(sorted(methods, key=lambda method: -method.mean), 2):
        own = dict(zip(zip(a.seeds, a.weights, strict=True), a.top1_N, strict=True))
        other = dict(zip(zip(b.seeds, b.weights, strict=True), b.top1_N, strict=True))
        shared = [run for run in own if run in other and run[1] != "unknown"]
        if shared:
            yield _Pair(
                key, a, b, np.array([own[run] for run in shared]), np.array([other[run] for run in shared]), True
            )
        else:
            yield _Pair(key, a, b, a.top1_N, b.top1_N, False)


def _about(pair: _Pair) -> dict[str, Any]:
    return {
        **dict(zip(SET, pair.key, strict=True)),
        "a": pair.a.name,
        "b": pair.b.name,
        "n_a": len(pair.a.seeds),
        "n_b": len(pair.b.seeds),
        "n": min(len(pair.first_N), len(pair.second_M)),
        "paired": pair.paired,
        "a_mean_pct": pair.a.mean,
        "b_mean_pct": pair.b.mean,
        "probability_of_improvement": inference.probability_of_improvement(pair.a.top1_N, pair.b.top1_N),
    }


def _verdict(line: dict[Any, Any]) -> str:
    if line["n"] < FEWEST:
        return TOO_FEW
    if math.isnan(line["p_holm"]) or line["p_holm"] >= inference.ALPHA:
        return SAME
    return f"{line['a'] if line['difference_pp'] > 0 else line['b']} is better"


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
