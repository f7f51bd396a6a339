"""Table columns, each described once; each output is a view of them.

Outputs are CSV, Markdown, LaTeX, page and terminal.

A table is a frame and a sequence of `Column`. A column without a heading is in the CSV file only. Those of a grid's table are in
`table_columns`, those of the tables below it in `further_columns`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import pandas as pd

from suite.report import words

Line = Mapping[Any, Any]
Show = Callable[[Line], str]
View = Literal["markdown", "latex", "page", "terminal"]
DOCUMENTS: tuple[View, ...] = ("markdown", "latex", "page")
SCREEN: tuple[View, ...] = ("markdown", "page")
PAPER: tuple[View, ...] = ("markdown", "latex")
EVERYWHERE: tuple[View, ...] = (*DOCUMENTS, "terminal")


@dataclass(frozen=True, kw_only=True)
class Column:
    """Column of a table.

    `name` is its name in the CSV file; `heading` and `show` are for the other views.
    """

    name: str
    heading: str = ""
    show: Show | None = None
    """Text of a line's cell. The default is the value itself, floats with two digits."""
    number: bool = False
    """The page sorts the column by the value of `name`. Tables align the column to the right."""
    left: bool = False
    """Align a number to the left, since words follow it."""
    varying: bool = False
    """Show the column only if its texts differ."""
    optional: bool = False
    """Show the column only if it has a text."""
    views: tuple[View, ...] = DOCUMENTS
    about: str = ""
    """Tooltip on the page."""

    def text(self, line: Line) -> str:
        """Return the cell of `line`; "" for an absent value."""
        if self.show:
            return self.show(line)
        value = line[self.name]
        return words.number(value) if isinstance(value, float) else "" if value is None else str(value)

    @property
    def right(self) -> bool:
        """Alignment of the cells."""
        return self.number and not self.left


class Text(NamedTuple):
    """Columns of one view and their cells; the frame's labels are headings."""

    columns: list[Column]
    frame: pd.DataFrame

    def drop(self, headings: Collection[str]) -> Text:
        """Return the text without these columns."""
        columns = [column for column in self.columns if column.heading not in headings]
        return Text(columns, self.frame[[column.heading for column in columns]])


def plain(*names: str) -> tuple[Column, ...]:
    """Return columns that are in the CSV file only."""
    return tuple(Column(name=name) for name in names)


def names(columns: Iterable[Column]) -> list[str]:
    """Return the names of the columns."""
    return [column.name for column in columns]


def csv(frame: pd.DataFrame, columns: Iterable[Column]) -> str:
    """Return the frame as CSV; absent values are empty."""
    return frame[names(columns)].to_csv(index=False, float_format="%.10g", lineterminator="\n")


def text(frame: pd.DataFrame, columns: Iterable[Column], view: View = "markdown") -> Text:
    """Return the cells of a view.

    `varying` and `optional` columns without content are left out.
    """
    lines = frame.to_dict("records")
    shown, cells = [], {}
    for column in columns:
        if not column.heading or view not in column.views:
            continue
        values = [column.text(line) for line in lines]
        distinct = {value for value in values if value}
        if len(distinct) >= (2 if column.varying else 1 if column.optional else 0):
            shown.append(column)
            cells[column.heading] = values
    return Text(shown, pd.DataFrame(cells, index=frame.index, columns=list(cells), dtype="object"))


def markdown(frame: pd.DataFrame, columns: Iterable[Column]) -> str:
    """Return a Markdown table. Texts are escaped; the brackets of intervals are not."""
    shown, cells = text(frame, columns)
    for column in shown:
        if not column.number:
            cells[column.heading] = cells[column.heading].map(words.markdown)
    return cells.to_markdown(
        index=False, disable_numparse=True, colalign=["right" if column.right else "left" for column in shown]
    )


# ---- texts of cells ----------------------------------------------------------------------------------------------------


def mean(name: str, spread: str, n: str = "") -> Show:
    """Return a text such as "94.31 ± 0.20 (5)"."""
    return lambda line: words.mean_sd(line[name], line[spread], line[n] if n else None)


def accuracy(show: Show) -> Show:
    """Return the text of `show`, marked if a run was made with other code."""
    return lambda line: show(line) + line["mark"]


def _budget(line: Line) -> str:
    return words.budget(line["budget"], line["budget_scope"])


def network(line: Line) -> str:
    """Return data set and model: "digits, resnet8"."""
    return f"{line['data']}, {line['model']}"


def interval(name: str, low: str, high: str, n: str = "") -> Show:
    """Return a text such as "1.31 [1.27, 1.36] (5)"."""
    return lambda line: words.interval(line[name], line[low], line[high], line[n] if n else None)


def counted(line: Line) -> str:
    """Return what n counts: base networks, or fine-tunings of them."""
    return words.counts_of(line["n"], line["base_n"])


BUDGET = Column(name="budget", heading="budget", show=_budget, number=True, views=EVERYWHERE)
