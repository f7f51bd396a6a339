"""Everything that is made of a grid's rows, written into one folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from suite import grids
from suite.files import remove_parts, short_path
from suite.report import columns, content, figures, frames, grid_file, page, words
from suite.report.columns import table_columns
from suite.report.figures import learning, structure
from suite.report.page import runs
from suite.report.tables import documents
from suite.stages import Timed

REFERENCE = Path(__file__).resolve().parents[2] / "results" / "reference"
"""Results that the project tracks."""
OF_WORK = ("learning", "finetuning", "structure")
"""Kinds of figures that are drawn from `results/work`."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """Written files and counts.

    `missing`, `failed` (diverged ones too) and `done` count pruned runs. `paths` is empty if a table of earlier rows was kept.
    """

    paths: tuple[Path, ...]
    rows: int
    """Row files that were read, latency rows too."""
    done: int
    missing: int
    failed: int
    remarks: tuple[str, ...] = ()
    """Remarks for the user: no rows, rows left out."""
    lines: pd.DataFrame = field(repr=False, compare=False)
    """The table."""


def build(grid_name: str, results: Path, smoke: bool = False, beside: str = "") -> Report:
    """Write tables, figures and page of a grid from the rows in `results`/rows.

    `results` is the folder that the runs were given: that of smoke runs is its own (`suite.cli.results_of`). Nothing is
    written without a row of the grid if the folder has results of earlier rows. Raises ValueError when the grid
    is unknown, the folder is not there, or smoke rows lie among real ones.
    """
    grid = grids.load(grid_name)
    if not results.is_dir():
        raise ValueError(f"there is no folder {results}; launch the grid first, or name its results with --results")
    loaded = frames.load(grid, results, smoke)
    reference = None
    if beside and not smoke and results.resolve() != REFERENCE.resolve():
        reference = frames.load(grid, REFERENCE, smoke=False)
    tables = content.collect(grid_name, grid, loaded, smoke=smoke, reference=reference)
    folder = results / grids.folder_name(grid_name)
    if not loaded.rows and _has_results(folder / "table.csv"):
        remark = f"no row of {grid_name} is in {results / 'rows'}; the table in {folder} was made from earlier rows and is kept"
        return Report(
            paths=(), rows=0, done=0, missing=len(loaded.runs), failed=0, remarks=(remark,), lines=tables.lines
        )
    remove_parts(folder)
    grid_file.write(grid_name, folder)
    runs_of_grid = grids.runs_of(grid, smoke=smoke)
    settings = {run.key: run.settings for run in runs_of_grid}
    pictures = figures.draw_all(
        loaded, tables.lines, tables.latency, tables.compared, settings, folder, tables.reference
    )
    pictures += learning.draw_all(runs_of_grid, loaded.runs, results, folder)
    pictures += structure.draw_all(loaded.runs, results, folder)
    named = [(picture.data, picture.model, f"{picture.name}.png") for picture in pictures]
    if not (results / "work").is_dir():
        named += [picture for picture in _earlier(tables.lines, folder) if picture not in named]
    texts = documents.texts(tables, named)
    documents.write(texts, folder)
    drawn = [path for picture in pictures for path in picture.paths]
    timed = [stage for stage in grids.stages_of(grid, runs_of_grid, smoke=smoke) if isinstance(stage, Timed)]
    about = runs.collect(runs_of_grid, timed, loaded.rows, results)
    pages = page.write(tables, pictures, about, [*texts, *(path.name for path in drawn)], folder)
    statuses = loaded.runs["status"].value_counts()
    return Report(
        paths=(*pages, *(folder / name for name in texts), *drawn),
        rows=len(loaded.rows),
        done=int(statuses.get("done", 0)),
        missing=int(statuses.get("missing", 0)),
        failed=int(statuses.get("failed", 0) + statuses.get("diverged", 0)),
        remarks=(
            *_remarks(grid_name, loaded, results, smoke),
            *([f"{tables.other_code}."] if tables.other_code else []),
            *([f"{REFERENCE} has no row of {grid_name}"] if reference is not None and tables.reference.empty else []),
        ),
        lines=tables.lines,
    )


def _has_results(table: Path) -> bool:
    """Return True if a table of an earlier report has a finished run."""
    return table.is_file() and bool(pd.read_csv(table, usecols=["n"])["n"].gt(0).any())


def _earlier(lines: pd.DataFrame, folder: Path) -> Iterator[tuple[str, str, str]]:
    """Yield data, model and file of the figures that an earlier report drew from `results/work`."""
    networks = {f"{words.file_name(data, model)}_": (data, model) for data, model, _ in frames.by_network(lines)}
    for kind in OF_WORK:
        for path in sorted(folder.glob(f"{kind}_*.png")):
            name = f"{path.stem.removeprefix(f'{kind}_')}_"
            if fitting := [start for start in networks if name.startswith(start)]:
                yield *networks[max(fitting, key=len)], path.name


def _remarks(grid_name: str, loaded: frames.Frames, results: Path, smoke: bool) -> list[str]:
    remarks = []
    if not loaded.rows:
        command = f"python -m suite.launch --grid {grid_name}" + (" --smoke" if smoke else "")
        remarks.append(f"no row of {grid_name} is in {results / 'rows'}; `{command}` makes them")
        if not smoke and frames.any_rows(results / "smoke"):
            remarks.append("there are smoke rows; --smoke reports them")
    if loaded.unreadable:
        names = ", ".join(path.name for path in loaded.unreadable[:3]) + (", ..." if loaded.unreadable[3:] else "")
        remarks.append(f"{len(loaded.unreadable)} row files cannot be read and count as not run: {names}")
    without = frames.timed_without_run(loaded)
    if without:
        remarks.append(f"{without} latency rows are left out: the runs that they measured have no finished row")
    return remarks


def show(report: Report, console: Console) -> None:
    """Print the table in short, counts and remarks, and the page to open."""
    done = report.lines[report.lines["n"] > 0]
    for (data, model), part in done.groupby(["data", "model"], sort=False):
        base = words.mean_sd(part["base_top1_mean_pct"].mean(), float("nan"))
        console.print(_short_table(part, f"{data}, {model}: {base} % before pruning"))
    plain: dict[str, Any] = {"highlight": False, "markup": False, "soft_wrap": True}
    if report.paths:
        console.print(words.counts(report.lines), **plain)
    for remark in report.remarks:
        console.print(remark, **plain, style="yellow")
    if not report.paths:
        return
    page, *files = report.paths
    console.print(f"open {short_path(page)} ({len(files)} tables and figures are beside it)", **plain)


def _short_table(lines: pd.DataFrame, title: str) -> Table:
    """Return a table that fits into 80 characters."""
    letters, meanings = words.told_apart(lines, [*frames.CONDITIONS, *frames.TIMED_CONDITIONS])
    numbers, notes = words.numbered(lines["note"])
    named = lines.assign(settings=lines["short"] + letters, note=numbers)
    described, texts = columns.text(named, table_columns.TABLE, "terminal")
    headings = [column.heading for column in described]
    table = Table(*headings, title=Text(title), title_justify="left", box=box.SIMPLE, pad_edge=False)
    table.columns[0].overflow, table.columns[0].min_width = "fold", 16
    for column, about in zip(table.columns, described, strict=True):
        if about.right:
            column.justify, column.no_wrap = "right", True
    for values in texts.to_numpy().tolist():
        table.add_row(*map(Text, values))
    counted = dict.fromkeys(words.counts_of(n, bases) for n, bases in zip(lines["n"], lines["base_n"], strict=True))
    table.caption, table.caption_justify = Text("\n".join([f"n: {', '.join(counted)}", *meanings, *notes])), "left"
    return table
