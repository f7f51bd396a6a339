"""Leader of a comparison set: highest mean over the blocks that all methods have.

A block is a base network with a seed. Raw means of methods with different blocks differ by their base networks, too, and give no
order. Coarse runs and methods from abstracts are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from suite.report import words
from suite.report.statistics.fairness import SET, comparable

UNFINISHED = "have no base network in common: no order yet"
"""Predicate of the methods of a set without a leader."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Leader:
    """Leader of a comparison set, if its methods have a block in common."""

    at: pd.Series
    """Values of `SET`."""
    rivals: int
    """Count of the other methods."""
    runs: pd.DataFrame
    """Runs of the leader on the common blocks; empty without one."""
    unequal: bool
    """True if a method has blocks that another one lacks."""

    @property
    def settings(self) -> str:
        """Name of the method; "" without a common block."""
        return "" if self.runs.empty else str(self.runs["settings"].iloc[0])

    @property
    def base(self) -> pd.Series:
        """Accuracy of each base network among the common blocks."""
        return self.runs.drop_duplicates("base_weights")["base_top1_pct"]

    @property
    def where(self) -> str:
        """Blocks of the means: " on the 3 base networks that all methods have".

        The text is "" if all methods have the same blocks.
        """
        counted = words.counts_of(len(self.runs), len(self.base))
        return f" on the {counted} that all methods have" if self.unequal else ""


def leaders(runs: pd.DataFrame) -> list[Leader]:
    """Return one leader for each comparison set of `Frames.runs`, in the grid's order."""
    done = comparable(runs[runs["status"] == "done"])
    done = done[done["evidence"] != "abstract"]
    return [_leader(part) for _, part in done.groupby(SET, sort=False)]


def on_common_blocks(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs of a comparison set on the blocks that all its methods have.

    Methods from abstracts need not have them.
    """
    blocks = pd.Series(list(zip(runs["seed"], runs["base_weights"], strict=True)), index=runs.index, dtype="object")
    rivals = runs["evidence"].ne("abstract")
    common = blocks[rivals].groupby(runs["settings"]).agg(frozenset)
    return runs[blocks.isin(frozenset.intersection(*common))] if len(common) else runs


def _leader(runs: pd.DataFrame) -> Leader:
    shared = on_common_blocks(runs)
    means = shared.groupby("settings", sort=False)["pruned_top1_pct"].mean()
    return Leader(
        at=runs[SET].iloc[0],
        rivals=runs["settings"].nunique() - 1,
        runs=shared if shared.empty else shared[shared["settings"] == means.idxmax()],
        unequal=len(shared) < len(runs),
    )
