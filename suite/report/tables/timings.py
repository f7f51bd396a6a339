"""Speed-ups of a grid with several timings, by device and batch."""

from __future__ import annotations

import pandas as pd

from suite.report import words

TITLE = "Speed-up by device and batch"


def table(latency: pd.DataFrame) -> pd.DataFrame:
    """Return speed-ups: a line for each method and budget, a column for each timing.

    The table is empty if there are fewer than two timings. Timing conditions that differ give lines of their own.

    latency   lines of `cells.latency` of one network
    """
    timed = latency[latency["verdict"] != ""]
    if timed["timing_label"].nunique() < 2:
        return latency.iloc[:0]
    keys = ["line", "settings", "budget", "budget_scope"]
    texts = timed.assign(text=[words.speedup(line) + words.verdict(line) for line in timed.to_dict("records")])
    texts["again"] = texts.groupby(["line", "timing_label"]).cumcount()
    wide = texts.pivot_table(index=["again", *keys], columns="timing_label", values="text", aggfunc="first", sort=False)
    theoretical = timed.groupby("line")["theoretical_x"].first()  # a timing of fewer runs has another mean
    wide = wide.fillna("").reset_index().sort_values(["line", "again"], kind="stable")
    return wide.assign(theoretical_x=wide["line"].map(theoretical))
