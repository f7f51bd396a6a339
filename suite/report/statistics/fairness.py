"""Fairness levels: the conditions that the methods of a comparison share, derived from their rows.

A comparison set is all finished runs of one data set, model, split and budget that were made under the same conditions. Runs
that exceed the budget by too much (`coarse`) are no part of it. A pair of methods in it has a level, and so has the whole set:
what all of its methods share. Each level includes the levels below it.

Training counts in plain-step equivalents: epochs of base network, learning and fine-tuning, where an epoch of learning counts
as many plain ones as its steps cost. Methods that begin at the initial weights share no base network with other methods:
`OWN_START` names them, and they decide no level of a set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from suite.report.frames import CONDITIONS

SET = ["data", "model", "split", "budget", "budget_scope", *CONDITIONS]
"""Columns in which all runs of a comparison set agree."""
LEVELS = (
    "base weights differ",
    "same base weights and budget",
    "same training in plain-step equivalents",
    "same fine-tuning recipe (all but its length)",
    "same epochs before pruning",
)
ALONE = "alone"
"""There is nothing in the set to compare with."""
OWN_START = "from initial weights"
"""The method uses no base network."""
COARSE = "coarse"
"""The line has runs that cut too much to be compared as equal."""
EQUAL, ROUNDING = 0.01, 0.75
"""Share of the training, and plain epochs, up to which training counts as equal. Fine-tuning takes whole epochs."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """Training of one method's runs in a comparison set.

    blocks   seed and base weights of each run
    plain    epochs in plain-step equivalents
    recipes  fine-tuning schedules without their epochs
    before   epochs before pruning
    """

    blocks: frozenset[tuple[int, str]]
    plain: frozenset[float]
    recipes: frozenset[str]
    before: frozenset[float]
    own_start: bool

    @staticmethod
    def of_runs(runs: pd.DataFrame) -> Training:
        """Return the training of the done runs of one method."""
        weights = runs["base_sha256"].where(runs["base_sha256"] != "unknown", "unknown " + runs["key"])
        before = runs["base_epochs"].fillna(0) + runs["learning_epochs"].fillna(0)
        return Training(
            blocks=frozenset(zip(runs["seed"].tolist(), weights.tolist(), strict=True)),
            plain=frozenset(runs["plain_epochs"].tolist()),
            recipes=frozenset(runs["finetune_recipe"].tolist()),
            before=frozenset(before.tolist()),
            own_start=bool((runs["start"] == "init").any()),
        )

    @property
    def mean_plain(self) -> float:
        """Mean of `plain`."""
        return sum(self.plain) / len(self.plain)


def tolerance(plain: float) -> float:
    """Return the difference up to which training of `plain` epochs counts as equal."""
    return max(EQUAL * plain, ROUNDING)


def level(members: Sequence[Training]) -> int:
    """Return the level that these methods share, 0 to 4."""
    plain = [epochs for member in members for epochs in member.plain]
    shared = (
        _same_base(members),
        max(plain) - min(plain) <= tolerance(max(plain)),
        len(frozenset().union(*(member.recipes for member in members))) == 1,
        len(frozenset().union(*(member.before for member in members))) == 1,
    )
    return next((number for number, holds in enumerate(shared) if not holds), len(shared))


def _same_base(members: Sequence[Training]) -> bool:
    """Return True if each seed has one base network and methods share seeds."""
    of_seed: dict[int, set[str]] = {}
    users: dict[int, int] = {}
    for member in members:
        for seed, weights in member.blocks:
            of_seed.setdefault(seed, set()).add(weights)
        for seed in {seed for seed, _ in member.blocks}:
            users[seed] = users.get(seed, 0) + 1
    return all(len(weights) == 1 for weights in of_seed.values()) and all(
        any(users[seed] > 1 for seed, _ in member.blocks) for member in members
    )


def of_pair(a: Training, b: Training) -> tuple[float, str]:
    """Return level (nan for own starts) and plain-step equivalents of a pair."""
    epochs = f"{a.mean_plain:.0f} against {b.mean_plain:.0f} plain epochs"
    if a.own_start or b.own_start:
        return np.nan, f"{OWN_START}, {epochs}"
    return float(level((a, b))), epochs


def of_sets(done: pd.DataFrame) -> pd.DataFrame:
    """Return `SET`, `fairness_level` and `fairness`, one line for each comparison set.

    The level is 0 to 4, absent for one method; `fairness` names it.
    """
    runs = comparable(done)
    lines = []
    for key, part in runs[runs["start"] == "base"].groupby(SET, sort=False):
        members = [Training.of_runs(own) for _, own in part.groupby("series", sort=False)]
        number = level(members) if len(members) > 1 else None
        lines.append((*key, np.nan if number is None else float(number), ALONE if number is None else LEVELS[number]))
    frame = pd.DataFrame(lines, columns=[*SET, "fairness_level", "fairness"])
    return frame.astype({**{name: runs[name].dtype for name in SET}, "fairness_level": float})


def comparable(done: pd.DataFrame) -> pd.DataFrame:
    """Return the runs that may be compared as equal."""
    return done[~done["coarse"].eq(True)]
