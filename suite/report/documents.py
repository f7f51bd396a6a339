"""All tables of a grid as the text of files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from suite.files import write_text
from suite.grids import Grid
from suite.report import cells, latex, pairs, published, reproduction, tables
from suite.report.frames import Frames


def of_grid(
    grid: Grid,
    found: Frames,
    lines: pd.DataFrame,
    latency: pd.DataFrame,
    *,
    smoke: bool,
    pictures: Sequence[tuple[str, str, str]],
) -> dict[str, str]:
    """File name -> text. `lines` and `latency` are the tables of `cells`; `pictures` are (data, model, file name).

    Smoke runs are compared with no published number. Raises ValueError when the published numbers are damaged.
    """
    once = lines.drop_duplicates("line")
    compared = pairs.table(found.runs)
    others = published.load()
    reproduced = reproduction.table(found.runs, once, others[:0] if smoke else others)
    return {
        "table.csv": tables.csv(lines, tables.TABLE_COLUMNS),
        "latency.csv": tables.csv(latency, tables.LATENCY_COLUMNS),
        "comparisons.csv": tables.csv(compared, pairs.COLUMNS),
        **({"reproduction.csv": tables.csv(reproduced, reproduction.COLUMNS)} if len(reproduced) else {}),
        "table.md": tables.document(
            grid, lines, cells.problems(found), compared, reproduced, smoke=smoke, pictures=pictures
        ),
        **latex.files(grid, lines, reproduced, smoke=smoke),
    }


def write(texts: dict[str, str], folder: Path) -> None:
    """Write the files; tables of an earlier report that are not among them are deleted."""
    for pattern in ("table_*.tex", "reproduction_*.tex", "reproduction.csv"):
        for old in folder.glob(pattern):
            if old.name not in texts:
                old.unlink()
    for name, text in texts.items():
        write_text(folder / name, text)
