"""Networks with fewer MACs that are not faster on the device of their timing.

The table lists each latency row whose theoretical speed-up is above 1 and that allows no claim "faster" (`measure.claim`). By its
FLOPs ratio alone, each of these networks would count as accelerated.
"""

from __future__ import annotations

import pandas as pd

from suite.report import columns
from suite.report.columns import further_columns
from suite.report.frames import Frames

TITLE = "Fewer MACs, not faster"
ABOUT = (
    'every measurement whose theoretical speed-up is above 1 and that allows no claim "faster"; if a measurement is not trusted, '
    "no speed-up is printed"
)


def table(frames: Frames) -> pd.DataFrame:
    """Return one line for each such latency row, in the grid's order.

    realised_share   measured / theoretical speed-up; absent, like the speed-up, if the null test failed
    time_goes        causes of the time beyond the share of MACs, measured per layer (`suite.measure.losses`)
    """
    about = ["key", "data", "model", "settings", "budget", "budget_scope", "seed"]
    runs = frames.runs[about].rename(columns={"key": "pruned_key"})
    timed = frames.timings[frames.timings["status"] == "done"].merge(runs, on="pruned_key", how="inner")
    slow = timed[(timed["theoretical_x"] > 1) & (timed["claim"] != "faster")].reset_index(drop=True)
    slow["verdict"] = slow["claim"]
    measured = ["speedup_x", "speedup_low_x", "speedup_high_x"]
    slow[measured] = slow[measured].where(slow["claim"] != "not trusted")
    slow["realised_share"] = slow["speedup_x"] / slow["theoretical_x"]
    return slow[columns.names(further_columns.NOT_FASTER)]


def counts(slow: pd.DataFrame, frames: Frames) -> str:
    """Count the lines by verdict: "12 of 60 measurements: ..."."""
    timed = frames.timings
    theoretical = int(((timed["status"] == "done") & (timed["theoretical_x"] > 1)).sum())
    kinds = slow["verdict"].value_counts()
    parts = [f"{kinds[name]} {name}" for name in ("slower", "no difference", "not trusted") if name in kinds]
    return f"{len(slow)} of {theoretical} measurements of networks with fewer MACs" + (
        f": {', '.join(parts)}" if parts else ""
    )
