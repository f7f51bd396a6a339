"""Training steps per second of a grid, one run alone and several together."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import pandas as pd

from suite import records
from suite.report import columns
from suite.report.columns import further_columns

TITLE = "Training steps"
ABOUT = (
    "Wall-clock medians of alternating blocks in one process. Together is the throughput of all runs / of one run alone, of base "
    "is the time of a step / of a plain step on the dense network, MACs is the share of MACs that the network has left"
)


def table(rows: Iterable[records.Row]) -> pd.DataFrame:
    """Return one line for each finished measurement of training steps."""
    done = [row for row in rows if isinstance(row, records.StepsRow) and row.status == "done"]
    names = [field.name for field in dataclasses.fields(records.StepsRow)]
    frame = pd.DataFrame([[getattr(row, name) for name in names] for row in done], columns=names)
    return frame[columns.names(further_columns.STEPS)]
