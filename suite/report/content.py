"""What a grid's documents and its page are made of, worked out once."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from suite.grids import Grid
from suite.report import cells, not_faster, pairs, published, reproduction
from suite.report.frames import Frames


@dataclass(frozen=True, kw_only=True)
class Content:
    """The tables of a grid as frames."""

    grid: Grid
    smoke: bool
    lines: pd.DataFrame
    """`cells.table`"""
    latency: pd.DataFrame
    """`cells.latency`"""
    problems: pd.DataFrame
    """`cells.problems`"""
    not_faster: pd.DataFrame
    """`not_faster.table`"""
    not_faster_counts: str
    compared: pd.DataFrame
    """`pairs.table`"""
    reproduced: pd.DataFrame
    """`reproduction.table`; smoke runs stand beside no published number."""


def of_grid(grid: Grid, found: Frames, *, smoke: bool) -> Content:
    """All that the rows say. Raises ValueError when the published numbers are damaged."""
    lines = cells.table(found)
    others = published.load()
    slow = not_faster.table(found)
    return Content(
        grid=grid,
        smoke=smoke,
        lines=lines,
        latency=cells.latency(found),
        problems=cells.problems(found),
        not_faster=slow,
        not_faster_counts=not_faster.counts(slow, found),
        compared=pairs.table(found.runs, grid.family),
        reproduced=reproduction.table(found.runs, lines.drop_duplicates("line"), others[:0] if smoke else others),
    )
