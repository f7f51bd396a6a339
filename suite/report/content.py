"""What a grid's documents and its page are made of, worked out once."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from suite.grids import Grid
from suite.report import cells, pairs, published, reproduction
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
    compared: pd.DataFrame
    """`pairs.table`"""
    reproduced: pd.DataFrame
    """`reproduction.table`; smoke runs stand beside no published number."""


def of_grid(grid: Grid, found: Frames, *, smoke: bool) -> Content:
    """All that the rows say. Raises ValueError when the published numbers are damaged."""
    lines = cells.table(found)
    others = published.load()
    return Content(
        grid=grid,
        smoke=smoke,
        lines=lines,
        latency=cells.latency(found),
        problems=cells.problems(found),
        compared=pairs.table(found.runs),
        reproduced=reproduction.table(found.runs, lines.drop_duplicates("line"), others[:0] if smoke else others),
    )
