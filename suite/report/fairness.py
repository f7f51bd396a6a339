"""Fairness level of a comparison, derived from its rows.

A comparison set is all finished runs of one data set, model, split and budget that were made under the same conditions. Runs
that exceed the budget by more than a point (`coarse`) are no part of it. Its level counts what all methods in it have in
common; each level includes the levels below it. Methods that begin at the initial weights share no base network with other
methods: `fairness` names them, and they decide no level.
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
    """Return `SET`, `fairness_level` and `fairness`, one line for each comparison set.

    The level is 0 to 4, absent for one method; `fairness` names it.
    """
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
    """Return the runs that may be compared as equal."""
    return done[~done["coarse"].eq(True)]


def _same_base(runs: pd.DataFrame) -> pd.Series:
    """Return True for each set with one base network a seed and shared seeds.

    Each method has to share a seed with another method.
    """
    weights = runs["base_sha256"].where(runs["base_sha256"] != "unknown", "unknown " + runs["key"])
    seeds = runs.assign(weights=weights).groupby([*SET, "seed"], sort=False)
    checked = runs.assign(
        one=seeds["weights"].transform("nunique").eq(1), shared=seeds["series"].transform("nunique") > 1
    )
    methods = checked.groupby([*SET, "series"], sort=False).agg(one=("one", "all"), shared=("shared", "any"))
    return methods.all(axis=1).groupby(SET, sort=False).all()
