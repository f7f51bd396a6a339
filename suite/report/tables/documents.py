"""All tables of a grid as the text of files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from suite.files import write_text
from suite.report import columns
from suite.report.columns import further_columns, table_columns
from suite.report.content import Content
from suite.report.tables import latex, markdown

OPTIONAL = (
    "table_*.tex",
    "timings_*.tex",
    "reproduction_*.tex",
    "reproduction.csv",
    "not_faster.csv",
    "reference.csv",
    "steps.csv",
)


def texts(content: Content, pictures: Sequence[tuple[str, str, str]]) -> dict[str, str]:
    """Return file name -> text. `pictures` are (data, model, file name)."""
    optional = {
        "not_faster.csv": (content.not_faster, further_columns.NOT_FASTER),
        "steps.csv": (content.steps, further_columns.STEPS),
        "reproduction.csv": (content.reproduced, further_columns.REPRODUCTION),
        "reference.csv": (content.reference, table_columns.TABLE),
    }
    return {
        "table.csv": columns.csv(content.lines, table_columns.TABLE),
        "latency.csv": columns.csv(content.latency, table_columns.LATENCY),
        "comparisons.csv": columns.csv(content.compared, further_columns.PAIRS),
        **{name: columns.csv(frame, described) for name, (frame, described) in optional.items() if len(frame)},
        "table.md": markdown.document(content, pictures),
        **latex.files(content),
    }


def write(files: dict[str, str], folder: Path) -> None:
    """Write the files; delete tables of an earlier report that are not among them."""
    for pattern in OPTIONAL:
        for old in folder.glob(pattern):
            if old.name not in files:
                old.unlink()
    for name, text in files.items():
        write_text(folder / name, text)
