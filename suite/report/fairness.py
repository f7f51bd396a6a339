"""How fair a comparison is, decided from its rows.

A comparison set is all finished runs of one data set, model, split and budget that were made under the same conditions. Runs
that exceed the budget by more than a point (`coarse`) are no part of it. Its level says what all methods in it share; each
level has all that the levels below it have. Methods that begin at the initial weights share no base network with any other:
they have a word of their own and decide no level.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from suite.report.frames import CONDITIONS

SET = ["data", "model", "split", "budget", "budget_scope", *CONDITIONS]
"""Columns in which all runs of a comparison set agree."""
LEVELS = (
    "base weights differ",
    "same base weights and budget",
    "same fine-tuning epochs",
    "same learning-rate schedule",
    "same epochs before pruning",
)
ALONE = "alone"
"""There is nothing in the set to compare with."""
OWN_START = "from initial weights"
"""The method uses no base network."""
COARSE = "coarse"
"""The line has runs that cut too much to be compared as equal."""


def of_sets(done: pd.DataFrame) -> pd.DataFrame:
    """`SET`, `fairness_level` (0 to 4, absent for one method) and `fairness` in words, a line for every comparison set."""
    runs = comparable(done)
    runs = runs[runs["start"] == "base"]
    runs = runs.assign(before_epochs=runs["base_epochs"].fillna(0) + runs["learning_epochs"].fillna(0))
    sets = runs.groupby(SET, sort=False)
    shared = pd.DataFrame(
        {
            "base": _same_base(runs),
            "epochs": sets["finetune_epochs"].nunique(dropna=False).eq(1),
            "schedule": sets["finetune_schedule"].nunique(dropna=False).eq(1),
            "before": sets["before_epochs"].nunique().eq(1),
        }
    )
    level = shared.astype(int).cumprod(axis=1).sum(axis=1)
    alone = sets["series"].nunique().eq(1)
    words = level.map(dict(enumerate(LEVELS))).where(~alone, ALONE)
    levels = level.where(~alone, np.nan)
    return pd.DataFrame({"fairness_level": levels, "fairness": words.astype("object")}).reset_index()


def comparable(done: pd.DataFrame) -> pd.DataFrame:
    """The runs that may be compared as equal."""
    return done[~done["coarse"].eq(True)]


def _same_base(runs: pd.DataFrame) -> pd.Series:
    """For every set: has every seed one base network, and does every method share a seed with another one?"""
    weights = runs["base_sha256"].where(runs["base_sha256"] != "unknown", "unknown " + runs["key"])
    seeds = runs.assign(weights=weights).groupby([*SET, "seed"], sort=False)
    checked = runs.assign(
        one=seeds["weights"].transform("nunique").eq(1), shared=seeds["series"].transform("nunique") > 1
    )
    methods = checked.groupby([*SET, "series"], sort=False).agg(one=("one", "all"), shared=("shared", "any"))
    return methods.all(axis=1).groupby(SET, sort=False).all()
