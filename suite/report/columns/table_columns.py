"""Columns of a grid's table and of its latency measurements.

The table has a line for each cell and set of conditions.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from suite.report import words
from suite.report.columns import (
    BUDGET,
    EVERYWHERE,
    PAPER,
    SCREEN,
    Column,
    Line,
    accuracy,
    counted,
    interval,
    mean,
    network,
    plain,
)
from suite.report.frames import CONDITIONS, EPOCHS, SCHEDULES, TIMED_CONDITIONS, TIMING


def _fairness(line: Line) -> str:
    level = line["fairness_level"]
    return str(line["fairness"]) if pd.isna(level) else f"{level:.0f}"


def _commit(name: str, heading: str, dirty: str) -> tuple[Column, ...]:
    """Return the column of a commit, marked if `dirty`, and that of `dirty` itself."""
    shown = Column(
        name=name,
        heading=heading,
        show=lambda line: words.commit(line[name], line[dirty]),
        varying=True,
        views=PAPER,
    )
    return shown, Column(name=dirty)


SPEEDUP = (
    *plain("speedup_n", "speedup_untrusted"),
    Column(
        name="speedup_x",
        heading="speed-up x",
        show=words.speedup,
        number=True,
        left=True,
        about="measured: dense time / packed time",
    ),
    Column(name="speedup_low_x", heading="speed-up", show=words.short_speedup, number=True, views=("terminal",)),
    *plain("speedup_high_x", "verdict"),
    Column(
        name="theoretical_x",
        heading="theoretical x",
        number=True,
        views=SCREEN,
        about="dense / packed MACs; no speed-up",
    ),
    Column(name="deployed", heading="deployed", views=SCREEN),
    *plain("cpu_speedup_x"),
    Column(
        name="energy_x",
        heading="energy x",
        show=interval("energy_x", "energy_low_x", "energy_high_x"),
        number=True,
        left=True,
        optional=True,
        about="measured: dense joules / packed joules, from the device's counter",
    ),
    *plain("energy_low_x", "energy_high_x", "dense_mj", "packed_mj", "energy_missing"),
    Column(name="flags", heading="doubtful", optional=True),
)
MEDIAN = Column(name="top1_median_pct", heading="median %", number=True, about="after pruning")
"""Shown only if a median was published."""
TABLE = (
    Column(name="data"),
    Column(name="model", heading="network", show=network, views=("page",)),
    Column(name="split", heading="split", varying=True, views=PAPER),
    *plain("weights", "method"),
    Column(name="settings", heading="method", views=EVERYWHERE),
    Column(name="granularity", heading="granularity"),
    Column(name="groups", heading="groups", number=True),
    BUDGET,
    *plain("budget_scope", "runs"),
    Column(name="n", heading="n", number=True, views=("page",), about="runs"),
    Column(name="base_n", heading="n counts", show=counted, about="base networks, or fine-tunings of fewer ones"),
    *plain("missing", "failed", "diverged"),
    Column(
        name="base_top1_mean_pct",
        heading="base top-1 %",
        show=mean("base_top1_mean_pct", "base_top1_sd_pp"),
        number=True,
        about="before pruning",
    ),
    *plain("base_top1_sd_pp"),
    Column(
        name="top1_mean_pct",
        heading="pruned top-1 %",
        show=accuracy(mean("top1_mean_pct", "top1_sd_pp", "n")),
        number=True,
        views=EVERYWHERE,
        about="after pruning and fine-tuning (runs)",
    ),
    *plain("top1_sd_pp", "top1_t95_pp"),
    MEDIAN,
    *plain("selection"),
    Column(
        name="drop_mean_pp",
        heading="drop pp",
        show=mean("drop_mean_pp", "drop_sd_pp"),
        number=True,
        views=EVERYWHERE,
        about="base minus pruned, points",
    ),
    *plain("drop_sd_pp"),
    Column(
        name="control_drop_mean_pp",
        heading="drop to control pp",
        show=mean("control_drop_mean_pp", "control_drop_sd_pp"),
        number=True,
        about="dense network after the same epochs, minus pruned, points",
    ),
    *plain("control_drop_sd_pp", "control_n", "control_plain_epochs"),
    Column(name="macs_cut_pct", heading="FLOPs cut %", number=True, about="of the whole network"),
    Column(
        name="prunable_macs_cut_pct",
        heading="convs cut %",
        number=True,
        about="FLOPs of the prunable convolutions: all but the stem and the shortcuts",
    ),
    Column(name="params_cut_pct", heading="params cut %", number=True),
    Column(name="time_cut_pct", heading="time cut %", number=True, optional=True, about="measured while planning"),
    Column(name="predicted_time_cut_pct", heading="predicted %", number=True, optional=True, about="time cut"),
    *plain("macs", "params", "coarse", "other_code"),
    *SPEEDUP,
    *plain(*TIMING),
    Column(
        name="timed_device",
        heading="device",
        show=lambda line: str(line["timed_device"] or line["device"]),
        views=SCREEN,
        about="of the timing; of the training if the network was not timed",
    ),
    Column(name="threads", heading="threads", varying=True, views=PAPER),
    *plain("leg"),
    *_commit("timed_commit", "timed commit", "timed_dirty"),
    Column(name="reference", heading="dense runtimes", varying=True, views=PAPER),
    Column(name="fairness_level", heading="fairness", show=_fairness, about="shared by the methods at this budget"),
    *plain("fairness"),
    Column(name=EPOCHS[0], heading="epochs", show=words.epochs, about="base network + learning + fine-tuning"),
    *plain(*EPOCHS[1:]),
    Column(
        name="plain_epochs",
        heading="plain epochs",
        show=lambda line: words.number(line["plain_epochs"], 0),
        number=True,
        about="all training in plain-step equivalents: a learning epoch counts as many as its steps cost",
    ),
    Column(
        name="dose",
        heading="dose",
        show=lambda line: words.significant(line["dose"]),
        number=True,
        optional=True,
        about="summed penalty steps over channel norms; below about 1 no channel becomes small",
    ),
    Column(
        name="group_entropy_nats",
        heading="group entropy",
        show=words.entropy,
        number=True,
        left=True,
        optional=True,
        about="of the learned groups, nats; ln G: nothing was learned",
    ),
    Column(
        name="sparse_share",
        heading="sparse kernels %",
        show=lambda line: words.number(100 * line["sparse_share"], 1),
        number=True,
        optional=True,
        about="of the prunable kernels, after learning: norm below 1 % of the layer's mean norm before",
    ),
    *_commit("commit", "commit", "dirty"),
    Column(name="device", heading="trained on", varying=True, views=PAPER),
    Column(name="tf32", heading="TF32", varying=True, views=PAPER),
    Column(name="data_sha256", heading="data", show=lambda line: line["data_sha256"][:8], varying=True, views=PAPER),
    *plain(*SCHEDULES),
    Column(name="note", heading="note", views=EVERYWHERE),
    *plain("rows"),
)
LATENCY = (
    *plain("data", "model", "settings", "budget", "budget_scope", "asked_device", *TIMING, *TIMED_CONDITIONS),
    *SPEEDUP,
    *plain("dense_ms", "packed_ms", "timed_missing", "timed_failed", *CONDITIONS),
)


def by_timing(frame: pd.DataFrame) -> list[Column]:
    """Return the columns of `timings.table`: method, budget, theoretical, then a column for each timing."""
    fixed = [Column(name="settings", heading="method"), BUDGET]
    theoretical = Column(name="theoretical_x", heading="theoretical x", number=True)
    about = {"again", "line", "settings", "budget", "budget_scope", "theoretical_x"}
    timings = [Column(name=str(name), heading=str(name), number=True, left=True) for name in frame if name not in about]
    return [*fixed, theoretical, *timings]


def table(*, median: bool) -> Sequence[Column]:
    """Return the columns of the table, with the median if it has to be shown."""
    return [column for column in TABLE if column is not MEDIAN or median]


def page(*, median: bool) -> list[Column]:
    """Return the columns of the page's table, the most important ones first."""
    accuracy = (
        "method",
        "budget",
        "pruned top-1 %",
        "speed-up x",
        "median %",
        "network",
        "drop pp",
        "drop to control pp",
    )
    first = (*accuracy, "FLOPs cut %", "theoretical x", "n", "n counts", "note", "dose", "group entropy")
    places = {heading: place for place, heading in enumerate(first)}
    return sorted(table(median=median), key=lambda column: places.get(column.heading, len(first)))
