"""The lie detector: networks with fewer MACs that are not faster where they were measured.

Every latency row whose theoretical speed-up is above 1 and that allows no claim "faster" (`measure.claim`) is listed, run by
run. A FLOPs ratio printed alone would have called each of them an acceleration.
"""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from suite.report import words
from suite.report.frames import TIMING, Frames

TITLE = "Fewer MACs, not faster"
ABOUT = (
    'every measurement whose theoretical speed-up is above 1 and that allows no claim "faster"; a measurement that is not '
    "trusted has no speed-up to print"
)
COLUMNS = [
    *("data", "model", "settings", "budget", "budget_scope", "seed", "asked_device", *TIMING, "timed_device", "leg"),
    *(
        "theoretical_x",
        "speedup_x",
        "speedup_low_x",
        "speedup_high_x",
        "realised_share",
        "verdict",
        "deployed",
        "flags",
    ),
    *("key", "pruned_key"),
]


def table(frames: Frames) -> pd.DataFrame:
    """One line a latency row, in the grid's order.

    realised_share   measured / theoretical speed-up; absent, like the speed-up, where the null test failed
    """
    about = ["key", "data", "model", "settings", "budget", "budget_scope", "seed"]
    runs = frames.runs[about].rename(columns={"key": "pruned_key"})
    timed = frames.timings[frames.timings["status"] == "done"].merge(runs, on="pruned_key", how="inner")
    found = timed[(timed["theoretical_x"] > 1) & (timed["claim"] != "faster")].reset_index(drop=True)
    trusted = found["claim"] != "not trusted"
    found["verdict"] = found["claim"]
    measured = ["speedup_x", "speedup_low_x", "speedup_high_x"]
    found[measured] = found[measured].where(trusted)
    found["realised_share"] = found["speedup_x"] / found["theoretical_x"]
    return found[COLUMNS]


def counts(found: pd.DataFrame, frames: Frames) -> str:
    """ "12 of 60 measurements: ..." """
    timed = frames.timings
    theoretical = int(((timed["status"] == "done") & (timed["theoretical_x"] > 1)).sum())
    kinds = found["verdict"].value_counts()
    parts = [f"{kinds[name]} {name}" for name in ("slower", "no difference", "not trusted") if name in kinds]
    return f"{len(found)} of {theoretical} measurements of networks with fewer MACs" + (
        f": {', '.join(parts)}" if parts else ""
    )


def shown(found: pd.DataFrame) -> pd.DataFrame:
    """The table as text."""
    interval = [
        "" if pd.isna(middle) else f"{middle:.2f} [{low:.2f}, {high:.2f}]"
        for middle, low, high in zip(found["speedup_x"], found["speedup_low_x"], found["speedup_high_x"], strict=True)
    ]
    columns: dict[str, Iterable[str]] = {
        "network": found["data"] + ", " + found["model"],
        "method": found["settings"],
        "budget": map(words.budget, found["budget"], found["budget_scope"]),
        "seed": found["seed"].astype(str),
        "measured": found["asked_device"] + ", batch " + found["batch"].astype(str) + ", " + found["precision"],
        "theoretical x": found["theoretical_x"].map(words.number),
        "speed-up x": interval,
        "realised share": found["realised_share"].map(words.number),
        "verdict": found["verdict"],
        "deployed": found["deployed"],
        "doubtful": found["flags"],
    }
    return pd.DataFrame({name: list(values) for name, values in columns.items()})
