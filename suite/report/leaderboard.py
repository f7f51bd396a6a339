"""Leaderboard: every cell with a finished run, over all grids.

A place is a range, from t intervals of the mean accuracy (95 %): 1 + the methods whose interval lies wholly above, to all minus
those wholly below. Places are given within a comparison set (`fairness.SET`) of one grid alone, for cells of two runs or more.
Controls and coarse cells have no place, and no cell has one if the methods have different blocks (base networks with seeds): the
means then differ by their blocks, too.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from suite import grids
from suite.files import write_text
from suite.report import columns, frames, grid_file, page, words
from suite.report.columns import Column, table_columns
from suite.report.statistics import cells
from suite.report.statistics.fairness import SET

log = logging.getLogger(__name__)
FOLDER = "leaderboard"
TITLE = "Leaderboard"
ABOUT = (
    "Every method, network and budget that has been run, over all grids. Accuracies are top-1 on the test set, with the t "
    "interval of the mean (95 %) and the number of runs. Places are ranges: a method is behind another only if its interval lies "
    "wholly below. They compare methods of one grid at one budget, on one network, under equal conditions; methods of different "
    "grids were trained differently. If the methods have different base networks, there is no place. "
    f"Marked{words.OTHER_CODE}: made with other code; the grid's page has the way to repeat it. "
    "The paired tests on each grid's page are sharper"
)


def table(results: Path) -> pd.DataFrame:
    """Return the done cells of all grids, by network and budget, best accuracy first.

    Grids without rows and accuracies on a validation part are left out; so is a grid that cannot be read, with a warning. Grids
    that were given by path are those with a table in `results`.
    """
    parts, named = [], grids.names()
    by_path = sorted({path.parent.name for path in results.glob("*/table.csv")} - set(named))
    for path in (results / name / grid_file.NAME for name in named):
        if path.is_file():
            log.warning("the file in %s is left out: another grid has its name; rename the file", path)
    for name in (*named, *by_path):
        try:
            file = name if name in named else grid_file.read(results / name)
            loaded = frames.load(grids.load(file), results, smoke=False)
        except (ValueError, OSError) as error:
            log.warning("the grid %s is left out: %s", name, error)
            continue
        if loaded.rows:
            lines = cells.table(loaded).assign(grid=name)
            lines["blocks"] = _blocks(lines, loaded.runs)
            parts.append(lines[(lines["n"] > 0) & (lines["split"] != "tuning")])
    if not parts:
        return pd.DataFrame()
    every = pd.concat(parts, ignore_index=True)
    every["top1_low_pct"] = every["top1_mean_pct"] - every["top1_t95_pp"]
    every["top1_high_pct"] = every["top1_mean_pct"] + every["top1_t95_pp"]
    every[["place", "place_last", "placed"]] = np.nan
    for _, own in every[_competes(every)].groupby([*SET, "grid"], sort=False):
        if own["blocks"].nunique() > 1:
            continue
        once = own.drop_duplicates("line")  # timings under several conditions are lines of one accuracy
        low, high = once["top1_low_pct"].to_numpy(), once["top1_high_pct"].to_numpy()
        own_low, own_high = own["top1_low_pct"].to_numpy(), own["top1_high_pct"].to_numpy()
        every.loc[own.index, "place"] = 1 + (low[None, :] > own_high[:, None]).sum(1)
        every.loc[own.index, "place_last"] = len(once) - (high[None, :] < own_low[:, None]).sum(1)
        every.loc[own.index, "placed"] = len(once)
    order = ["data", "model", "budget", "grid"]
    return every.sort_values([*order, "top1_mean_pct"], ascending=[True] * len(order) + [False], kind="stable")


def _blocks(lines: pd.DataFrame, runs: pd.DataFrame) -> pd.Series:
    """Return the seeds and base networks of the runs of each line."""
    block = dict(zip(runs["key"], zip(runs["seed"], runs["base_weights"], strict=True), strict=True))
    return lines["rows"].map(lambda keys: frozenset(block[key] for key in keys.split()))


def _competes(lines: pd.DataFrame) -> pd.Series:
    return lines["removes"].astype(bool) & lines["top1_t95_pp"].notna() & lines["coarse"].eq(0)


def place(line: Mapping[Any, Any]) -> str:
    """Format a place as "2 of 9", or "2-4 of 9"; "" without one."""
    if pd.isna(line["place"]):
        return ""
    first, last = int(line["place"]), int(line["place_last"])
    return (f"{first}" if first == last else f"{first}-{last}") + f" of {line['placed']:.0f}"


SHARED = ("control_drop_mean_pp", "speedup_x", "verdict", "fairness_level", "fairness", "plain_epochs")
"""Columns that are those of a grid's table."""
COLUMNS = (
    *columns.plain("data"),
    Column(name="model", heading="network", show=columns.network),
    columns.BUDGET,
    *columns.plain("budget_scope"),
    Column(
        name="place", heading="place", show=place, number=True, about="within the grid; a range if intervals overlap"
    ),
    *columns.plain("place_last", "placed", "method"),
    Column(name="settings", heading="method"),
    Column(name="granularity", heading="granularity"),
    Column(
        name="top1_mean_pct",
        heading="top-1 %",
        show=columns.accuracy(columns.interval("top1_mean_pct", "top1_low_pct", "top1_high_pct", "n")),
        number=True,
        about="mean [95 % interval] (runs), after pruning and fine-tuning",
    ),
    *columns.plain("top1_low_pct", "top1_high_pct", "n", "other_code"),
    Column(
        name="base_n",
        heading="n counts",
        show=columns.counted,
        about="what n counts",
    ),
    *(column for column in table_columns.TABLE if column.name in SHARED),
    Column(name="grid", heading="grid"),
    *columns.plain("commit", "device", "rows"),
)


def write(results: Path) -> list[Path]:
    """Write `leaderboard/index.html`, `.csv` and `.md` into the results; return their paths.

    Raises ValueError if no grid has a finished run on a test set.
    """
    lines = table(results)
    if lines.empty:
        raise ValueError(f"no grid has a finished run in {results / 'rows'}; launch one, such as quickstart")
    folder = results / FOLDER
    once = lines.drop_duplicates(["grid", "line"])
    counts = f"{len(once)} cells of {once['grid'].nunique()} grids, {once['n'].sum():.0f} runs."
    texts = {
        "index.html": page.leaderboard(lines, COLUMNS, TITLE, f"{ABOUT}. {counts}"),
        "leaderboard.csv": columns.csv(lines, COLUMNS),
        "leaderboard.md": "\n\n".join([f"# {TITLE}", f"{ABOUT}.", counts, columns.markdown(lines, COLUMNS)]) + "\n",
    }
    for name, text in texts.items():
        write_text(folder / name, text)
    return [folder / name for name in texts]
