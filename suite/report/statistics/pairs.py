"""Comparisons of methods in a comparison set (`fairness`): the declared family, and all other pairs.

Family    a grid's main method against each rival, declared before the grid runs (`Grid.family`), with Holm's correction within
          the family. Other variants of the main method are secondary. Controls, such as random filters, are no rivals
Error     of a declared pair: pooled over methods and blocks (a block is a base network with a seed), but a method whose own
          variance is larger keeps its own (`inference.TwoWay`). Pairs that no block connects are secondary
Other     every other pair is secondary: runs that share seed and base weights are compared block by block (paired t test), else
          by Welch's t test; Holm's correction over all secondary pairs of the set
Devices   blocks may come from several devices (`frames`): then methods without a common block are no pair
Interval  at the level of Holm's step, so that an interval leaves out 0 if, and only if, the corrected p-value is below 0.05
Order     the first method of a pair is the one that the test puts higher; `leader` names the leader of the set
Verdict   the better method if the corrected p-value is below 0.05; else "not distinguishable"; "too few runs" below three
n         runs of each method; `bases` counts the base networks among them
Fairness  level of the pair (`fairness.LEVELS`), with the training of both methods in plain-step equivalents
Abstract  methods that are known from an abstract alone are in `comparisons.csv`, and in no headline (`shown`, `warnings`)
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from suite import methods as registered
from suite.methods import Broken
from suite.report import columns, words
from suite.report.columns import further_columns
from suite.report.frames import CONDITIONS, FROM_ABSTRACT
from suite.report.statistics import inference
from suite.report.statistics.fairness import SET, Training, comparable, of_pair
from suite.report.statistics.leader import UNFINISHED, leaders

FEWEST, FOR_A_CLAIM = inference.FEWEST, 5
"""Runs of each method that a comparison and a claim take."""
SAME, TOO_FEW = "not distinguishable", "too few runs"
DECLARED, SECONDARY = "declared", "secondary"
_TESTED = ["difference_pp", "difference_low_pp", "difference_high_pp", "p", "p_holm", "seeds_needed"]
COLUMNS = columns.names(further_columns.PAIRS)


@dataclass(frozen=True)
class _Method:
    """The runs of a method in a comparison set, ascending by seed."""

    name: str
    kind: str
    """The method without its settings."""
    main: bool
    """True for the main method of the declared family, with the declared settings."""
    blocks: list[tuple[int, str]]
    """Seed and base weights of each run."""
    top1_N: np.ndarray
    training: Training

    @property
    def mean(self) -> float:
        """Mean accuracy."""
        return float(self.top1_N.mean())


@dataclass(frozen=True)
class _Pair:
    key: tuple[Any, ...]
    a: _Method
    b: _Method
    family: str
    error: str
    """Origin of the standard error."""
    first_N: np.ndarray
    second_M: np.ndarray
    bases: int
    paired: bool

    def swapped(self) -> _Pair:
        """Return the pair with its methods exchanged."""
        return dataclasses.replace(self, a=self.b, b=self.a, first_N=self.second_M, second_M=self.first_N)


def table(runs: pd.DataFrame) -> pd.DataFrame:
    """Return one line for each pair of methods in a comparison set, from `Frames.runs`.

    `a` is the method that the test puts higher: no difference is negative. `leader` and `where` are those of the set
    (`Leader`).
    """
    done = comparable(runs[runs["status"] == "done"]).sort_values("seed", kind="stable")
    sets = [(key, _methods(part)) for key, part in done.groupby(SET, sort=False)]
    families = {key: _Family.of_set(members) for key, members in sets}
    pairs = [pair for key, members in sets for pair in _pairs(key, members, families[key])]
    frame = pd.DataFrame([_about(pair) for pair in pairs], columns=COLUMNS)
    frame[_TESTED] = frame[_TESTED].astype(float)
    places: dict[tuple[Any, ...], list[int]] = {}
    for index, pair in enumerate(pairs):
        places.setdefault((pair.key, pair.family), []).append(index)
    for (key, family), indices in places.items():
        chosen = [pairs[index] for index in indices]
        tested = families[key].tested(chosen) if family == DECLARED else _secondary(chosen)
        frame.loc[indices, _TESTED] = tested
    frame["seeds_needed"] = frame["seeds_needed"].where(frame["n"] >= FEWEST)
    frame["verdict"] = [_verdict(line) for line in frame.to_dict("records")]
    leader_of_set = {tuple(leader.at): leader for leader in leaders(runs)}
    of_pairs = [leader_of_set.get(pair.key) for pair in pairs]
    texts = [(leader.settings, leader.where) if leader else ("", "") for leader in of_pairs]
    frame[["leader", "where"]] = pd.DataFrame(texts, columns=["leader", "where"], index=frame.index, dtype="object")
    return frame


def _methods(runs: pd.DataFrame) -> list[_Method]:
    """Return the methods of a comparison set, the highest mean first."""
    methods = [
        _Method(
            str(name),
            str(part["method"].iloc[0]),
            bool(part["declared"].iloc[0]),
            list(zip(part["seed"].tolist(), part["base_sha256"].tolist(), strict=True)),
            part["pruned_top1_pct"].to_numpy(dtype=float),
            Training.of_runs(part),
        )
        for name, part in runs.groupby("settings", sort=False)
    ]
    return sorted(methods, key=lambda method: -method.mean)


def _is_rival(method: str) -> bool:
    """Return False for controls and the methods that `methods.is_rival` leaves out."""
    kind = registered.discover().get(method)
    return kind is None or isinstance(kind, Broken) or registered.is_rival(kind, control=False)


@dataclass(frozen=True)
class _Family:
    """Main method and rivals of a comparison set, with the fit that their comparisons share."""

    main: frozenset[str]
    kinds: frozenset[str]
    """Of the main methods."""
    number: dict[str, int]
    """Of each method in the fit."""
    fitted: inference.TwoWay | None
    """None for a set without main method."""

    @staticmethod
    def of_set(methods: Sequence[_Method]) -> _Family:
        """Fit the main methods and their rivals among the methods of a set."""
        kinds = frozenset(method.kind for method in methods if method.main)
        members = [each for each in methods if each.main or (each.kind not in kinds and _is_rival(each.kind))]
        number = {method.name: index for index, method in enumerate(members)}
        runs = [
            (float(value), number[method.name], block if block[1] != "unknown" else (method.name, *block))
            for method in members
            for value, block in zip(method.top1_N, method.blocks, strict=True)
        ]
        fitted = inference.TwoWay.fit(*zip(*runs, strict=True)) if kinds else None
        return _Family(frozenset(method.name for method in members if method.main), kinds, number, fitted)

    def error(self, a: _Method, b: _Method) -> str:
        """Return the origin of a pair's error; "" if the pair is secondary.

        A pair that no block connects is secondary.
        """
        if self.fitted is None or a.main == b.main or {a.name, b.name} - self.number.keys():
            return ""
        first, second = self.number[a.name], self.number[b.name]
        if not self.fitted.estimable([first], [second])[0]:
            return ""
        own = [method.name for method, index in ((a, first), (b, second)) if self.fitted.own_M[index]]
        return f"own variance of {' and '.join(own)}" if own else "pooled"

    def difference(self, a: _Method, b: _Method) -> float:
        """Return the fitted difference of a declared pair."""
        assert self.fitted is not None
        return float(self.fitted.effect_M[self.number[a.name]] - self.fitted.effect_M[self.number[b.name]])

    def tested(self, pairs: Sequence[_Pair]) -> np.ndarray:
        """Return `_TESTED` of declared pairs [P, 6]."""
        assert self.fitted is not None
        first, second = ([self.number[getattr(pair, side).name] for pair in pairs] for side in ("a", "b"))
        tested = self.fitted.differences(first, second)
        beyond_P = np.array([max(1, min(len(pair.first_N), len(pair.second_M)) - 1) for pair in pairs])
        return _corrected(tested, freedom=tested.df_P / beyond_P)


def _pairs(key: tuple[Any, ...], methods: Sequence[_Method], family: _Family) -> Iterator[_Pair]:
    for a, b in itertools.combinations(methods, 2):
        own, other = (dict(zip(each.blocks, each.top1_N, strict=True)) for each in (a, b))
        shared = [block for block in own if block in other and block[1] != "unknown"]
        first_N, second_M = a.top1_N, b.top1_N
        if shared:
            first_N, second_M = (np.array([each[block] for block in shared]) for each in (own, other))
        bases = len({weights for _, weights in shared or [*a.blocks, *b.blocks]})
        error = family.error(a, b)
        if not (shared or error) and words.of_several_devices(key[SET.index("device")]):
            continue
        test = DECLARED if error else SECONDARY
        pair = _Pair(
            key, a, b, test, error or ("paired" if shared else "Welch"), first_N, second_M, bases, bool(shared)
        )
        difference = family.difference(a, b) if error else float(first_N.mean() - second_M.mean())
        # CPUs differ in the last digits of a fitted difference of 0, and would order such a pair differently.
        yield pair.swapped() if difference < -inference.NO_SPREAD else pair


def _secondary(pairs: Sequence[_Pair]) -> np.ndarray:
    """Return `_TESTED` of secondary pairs of one set [P, 6], each with its own error."""
    parts: dict[str, np.ndarray] = {
        name: np.full(len(pairs), math.nan) for name in ("mean", "error", "df", "p", "effect")
    }
    alike: dict[tuple[bool, int, int], list[int]] = {}
    for index, pair in enumerate(pairs):
        alike.setdefault((pair.paired, len(pair.first_N), len(pair.second_M)), []).append(index)
    for (paired, *_), places in alike.items():
        stacked = (np.stack([getattr(pairs[i], side) for i in places]) for side in ("first_N", "second_M"))
        tested = inference.differences(*stacked, paired=paired)
        for name in parts:
            parts[name][places] = getattr(tested, f"{name}_P")
    whole = inference.Differences(**{f"{name}_P": values for name, values in parts.items()})
    paired_P = np.array([pair.paired for pair in pairs])
    result, unpaired = _corrected(whole, paired=True), _corrected(whole)
    result[~paired_P] = unpaired[~paired_P]
    return result


def _corrected(tested: inference.Differences, *, paired: bool = False, freedom: np.ndarray | None = None) -> np.ndarray:
    """Return `_TESTED` [P, 6] at the levels of Holm's steps."""
    level_P = inference.holm_levels(tested.p_P)
    low_P, high_P = tested.interval(level_P)
    seeds_P = inference.seeds_needed(tested.effect_P, level_P, paired=paired, freedom=freedom)
    return np.stack([tested.mean_P, low_P, high_P, tested.p_P, inference.holm(tested.p_P), seeds_P], axis=1)


def _about(pair: _Pair) -> dict[str, Any]:
    level, fairness = of_pair(pair.a.training, pair.b.training)
    return {
        **dict(zip(SET, pair.key, strict=True)),
        "a": pair.a.name,
        "b": pair.b.name,
        "family": pair.family,
        "error": pair.error,
        "n_a": len(pair.a.blocks),
        "n_b": len(pair.b.blocks),
        "n": min(len(pair.first_N), len(pair.second_M)),
        "bases": pair.bases,
        "paired": pair.paired,
        "a_mean_pct": pair.a.mean,
        "b_mean_pct": pair.b.mean,
        "fairness_level": level,
        "fairness": fairness,
        "probability_of_improvement": inference.probability_of_improvement(
            pair.first_N, pair.second_M, paired=pair.paired
        ),
    }


def _verdict(line: dict[Any, Any]) -> str:
    if line["n"] < FEWEST:
        return TOO_FEW
    if math.isnan(line["p_holm"]) or line["p_holm"] >= inference.ALPHA:
        return SAME
    return f"{line['a'] if line['difference_pp'] > 0 else line['b']} is better"


def apart(compared: pd.DataFrame) -> pd.Series:
    """Return True for the pairs that enough runs tell apart."""
    return ~compared["verdict"].isin([SAME, TOO_FEW])


# ---- in words --------------------------------------------------------------------------------------------------------


def with_the_leader(compared: pd.DataFrame) -> pd.DataFrame:
    """Return the leaders' pairs with the conditions' `letter`.

    Sets without a leader have all pairs. Methods from abstracts are left out.
    """
    compared = of_papers(compared)
    compared = compared.assign(letter=words.told_apart(compared, CONDITIONS)[0])
    leader = compared["leader"]
    return compared[(compared["a"] == leader) | (compared["b"] == leader) | (leader == "")]


def meanings(compared: pd.DataFrame) -> list[str]:
    """Return the meanings of the conditions' letters; nothing if all pairs have the same conditions."""
    return words.told_apart(of_papers(compared), CONDITIONS)[1]


def of_papers(compared: pd.DataFrame) -> pd.DataFrame:
    """Return the pairs without a method from an abstract."""
    abstract = compared["a"].str.endswith(FROM_ABSTRACT) | compared["b"].str.endswith(FROM_ABSTRACT)
    return compared[~abstract]


def shown(compared: pd.DataFrame) -> pd.DataFrame:
    """Return the leaders' pairs with enough runs."""
    pairs = with_the_leader(compared)
    return pairs[(pairs["n"] >= FEWEST) & (pairs["leader"] != "")]


def warnings(compared: pd.DataFrame) -> list[str]:
    """Return warnings on conclusions that n does not support."""
    return [*_few(compared), *_one_base(compared), *_leaders(compared)]


def _few(compared: pd.DataFrame) -> Iterator[str]:
    few = compared.loc[compared["n"] < FOR_A_CLAIM, "n"]
    if (few < FEWEST).any():
        yield (
            f"Sizing: {(few < FEWEST).sum()} of {len(compared)} pairs of methods have fewer than {FEWEST} runs to compare "
            f"({few.min()} at least; coarse ones do not count). The order of such methods in the table is not a result."
        )
    elif len(few):
        yield f"Sizing: some pairs of methods have {few.min()} runs; a comparison needs {FEWEST}, a claim {FOR_A_CLAIM}."


def _one_base(compared: pd.DataFrame) -> Iterator[str]:
    shared = compared[(compared["n"] > 1) & (compared["bases"] < compared["n"])]
    if len(shared):
        bases = int(shared["bases"].min())
        yield (
            f"Sizing: in {len(shared)} of {len(compared)} pairs of methods n counts fine-tunings of {bases} base "
            f"network{'s' * (bases > 1)}, not base networks: the intervals hold for these networks only."
        )


def undecidable(runs: pd.DataFrame) -> str:
    """Return why the declared comparisons of a network cannot be decided; "" if they can.

    `runs` are `Frames.runs` of one network, done or not.
    """
    if not runs["declared"].any():
        return ""
    planned, bases = runs["base_key"].nunique(), _reachable(runs)
    if bases >= FOR_A_CLAIM:
        return ""
    these = "this network" if bases == 1 else "these networks"
    counted = f"n counts fine-tunings of {these}: a" if runs["seed"].nunique() > planned else "A"
    holds = f" {counted} verdict below holds for {these} only." if bases else ""
    short = f", of which one comparison can have {bases} (rows of the rest lie apart)" if bases < planned else ""
    return (
        f"The headline cannot be decided: the grid plans {planned} base network{'s' * (planned > 1)}{short}, and a claim takes "
        f"{FOR_A_CLAIM}.{holds}"
    )


def _reachable(runs: pd.DataFrame) -> int:
    """Return the most base networks that one declared comparison can still have.

    A base network with a row under conditions that differ, such as another device, cannot enter the comparison any more.
    """
    kinds = set(runs.loc[runs["declared"], "method"])
    rivals = ~runs["method"].isin(kinds) & runs["method"].map(_is_rival)
    most = 0
    for _, part in runs[runs["declared"] | rivals].groupby(["split", "budget", "budget_scope"]):
        if part["declared"].any():
            done = part[part["status"] == "done"]
            lost = [done.drop(own.index)["base_key"].nunique() for _, own in done.groupby(CONDITIONS)]
            most = max(most, part["base_key"].nunique() - min(lost, default=0))
    return most


def _leaders(compared: pd.DataFrame) -> Iterator[str]:
    """Yield sets without a leader, and sets whose leader is not distinguishable from other methods.

    Only pairs with enough runs count.
    """
    pairs = with_the_leader(compared)
    behind_pp = pairs["difference_pp"].where(pairs["a"] == pairs["leader"], -pairs["difference_pp"])
    pairs = pairs.assign(behind_pp=behind_pp)
    for _, part in pairs.groupby(SET, sort=False):
        first, unclear = part.iloc[0], part[part["verdict"] == SAME].sort_values("behind_pp", kind="stable")
        at = f"Sizing: at {words.budget(first['budget'], first['budget_scope'])}{first['letter']}"
        if not first["leader"]:
            yield f"{at} the methods {UNFINISHED}."
        elif len(unclear):
            rivals = ", ".join(_rival(line) for line in unclear.to_dict("records"))
            highest = f"{first['leader']} has the highest mean{first['where']}"
            yield f"{at} {highest}, and these runs do not tell it apart from {rivals}."


def _rival(line: dict[Any, Any]) -> str:
    ahead = line["b"] == line["leader"]
    text = (
        f"{line['a'] if ahead else line['b']} ({abs(line['difference_pp']):.2f} points {'ahead' if ahead else 'apart'}"
    )
    return f"{text})" if pd.isna(line["seeds_needed"]) else f"{text}: {line['seeds_needed']:.0f} seeds each would)"
