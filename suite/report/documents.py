"""All tables of a grid as the text of files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from suite.files import write_text
from suite.report import latex, not_faster, pairs, reproduction, tables
from suite.report.content import Content


def of_grid(content: Content, pictures: Sequence[tuple[str, str, str]]) -> dict[str, str]:
    """File name -> text. `pictures` are (data, model, file name)."""
    reproduced, slow = content.reproduced, content.not_faster
    return {
        "table.csv": tables.csv(content.lines, tables.TABLE_COLUMNS),
        "latency.csv": tables.csv(content.latency, tables.LATENCY_COLUMNS),
        **({"not_faster.csv": tables.csv(slow, not_faster.COLUMNS)} if len(slow) else {}),
        "comparisons.csv": tables.csv(content.compared, pairs.COLUMNS),
        **({"reproduction.csv": tables.csv(reproduced, reproduction.COLUMNS)} if len(reproduced) else {}),
        "table.md": tables.document(content, pictures),
        **latex.files(content),
    }


def write(texts: dict[str, str], folder: Path) -> None:
    """Write the files; tables of an earlier report that are not among them are deleted."""
    for pattern in ("table_*.tex", "reproduction_*.tex", "reproduction.csv", "not_faster.csv"):
        for old in folder.glob(pattern):
            if old.name not in texts:
                old.unlink()
    for name, text in texts.items():
        write_text(folder / name, text)
