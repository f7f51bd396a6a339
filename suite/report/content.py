"""Tables of a grid as frames, computed once; documents and page are made of them."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from suite.grids import Grid
from suite.report import words
from suite.report.frames import Frames, by_network
from suite.report.statistics import cells, leader, not_faster, pairs, published, reproduction, steps


@dataclass(frozen=True, kw_only=True)
class Content:
    """Tables of a grid as frames."""

    name: str
    """Name of the grid, as in `--grid`."""
    grid: Grid
    smoke: bool
    other_code: str
    """Runs made with other code, and the way to repeat them; "" if there are none."""
    lines: pd.DataFrame
    """`cells.table`."""
    latency: pd.DataFrame
    """`cells.latency`."""
    problems: pd.DataFrame
    """`cells.problems`."""
    not_faster: pd.DataFrame
    """`not_faster.table`."""
    not_faster_counts: str
    steps: pd.DataFrame
    """`steps.table`."""
    compared: pd.DataFrame
    """`pairs.table`."""
    leaders: list[leader.Leader]
    """`leader.leaders`."""
    reproduced: pd.DataFrame
    """`reproduction.table`; empty for smoke runs."""
    undecidable: dict[tuple[str, str], str]
    """(data, model) -> reason why the declared comparisons cannot be decided."""
    reference: pd.DataFrame
    """`cells.table` of the reference rows, done cells only; empty unless they were requested."""

    @property
    def medians(self) -> set[tuple[str, str]]:
        """Networks, as (data, model), with a published median."""
        median = self.reproduced[self.reproduced["statistic"] == "median"]
        return set(zip(median["data"], median["model"], strict=True))


def collect(name: str, grid: Grid, frames: Frames, *, smoke: bool, reference: Frames | None = None) -> Content:
    """Compute the tables of the grid `name`. Raises ValueError if the published numbers are damaged."""
    lines = cells.table(frames)
    lines["mark"] = words.other_code_marks(lines)
    numbers = published.load()
    slow = not_faster.table(frames)
    beside = cells.table(reference) if reference else lines[:0]
    return Content(
        name=name,
        grid=grid,
        smoke=smoke,
        other_code=words.other_code(lines, name),
        lines=lines,
        latency=cells.latency(frames),
        problems=cells.problems(frames),
        not_faster=slow,
        not_faster_counts=not_faster.counts(slow, frames),
        steps=steps.table(frames.rows.values()),
        compared=pairs.table(frames.runs),
        leaders=leader.leaders(frames.runs),
        undecidable={
            (data, model): reason
            for data, model, part in by_network(frames.runs)
            if not smoke and (reason := pairs.undecidable(part))
        },
        reproduced=reproduction.table(frames.runs, lines.drop_duplicates("line"), numbers[:0] if smoke else numbers),
        reference=beside[beside["n"] > 0],
    )
