"""Counterparts of the DSP paper's tables and figures: `python -m suite.report --paper NAME`.

Each is a choice among what a grid's report has, written to `results/paper/NAME/` with an `about.md` on its content, its
grids and missing runs. The paper's own table numbers could not be checked: `table1` and `table2` follow
the usual order of tables, and are compared with the rows that its authors publish with their code.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from suite import grids
from suite.files import replacing, write_text
from suite.registry import pick
from suite.report import columns, frames, words
from suite.report.build import build
from suite.report.columns import further_columns
from suite.report.figures import structure
from suite.report.statistics import claims
from suite.report.tables import latex, notes

TABLES = ("table.csv", "table_*.tex", "reproduction*", "comparisons.csv")
ABLATION = "ablation_"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Table or figure of the paper, and the source of its counterpart."""

    shows: str
    grids: tuple[str, ...]
    files: tuple[str, ...] = ()
    """Patterns of the files of a grid's report that make it."""
    make: Callable[[Entry, Path, bool, Path], list[str]] | None = None
    """What writes it, where it is no choice of files: (this, results, smoke, folder) -> remarks."""
    of_all: bool = False
    """True if it is made from the rows of all grids, not those of `grids` alone."""


def entries() -> dict[str, Entry]:
    """Return name -> counterpart; each ablation grid is one."""
    both = ("paper_table1", "paper_table2")
    released = ("dsp_best_test", "dsp_best_validation")
    paper = {
        "table1": Entry(
            shows="CIFAR-10: accuracy, cuts and speed of all methods; DSP as released, best on test and on validation",
            grids=(*both[:1], *released),
            files=TABLES,
        ),
        "table2": Entry(shows="ImageNet: accuracy, cuts and speed of all methods", grids=both[1:], files=TABLES),
        "fig_pareto": Entry(shows="Accuracy over the cut, all methods", grids=both, files=("pareto_*",)),
        "fig_speed": Entry(
            shows="Measured speed-up, beside the cut in MACs",
            grids=both,
            files=("speed_*", "pareto_speedup_*", "pareto_latency_*", "latency.csv"),
        ),
        "fig_structure": Entry(
            shows="Learned structure: filter groups and the channels they keep", grids=both, make=_structures
        ),
        "claims": Entry(
            shows="Claims under test, evidence so far, verdict", grids=(*both, *released[:1]), make=_claims, of_all=True
        ),
    }
    ablations = {
        name: Entry(shows=_title(name), grids=(name,), files=(*TABLES, "ablation_*", "dose_*", "pareto_*"))
        for name in grids.names()
        if name.startswith(ABLATION)
    }
    return {**paper, **ablations}


def _title(grid_name: str) -> str:
    """Return the grid's title, or the reason why its file is unusable."""
    try:
        return grids.load(grid_name).title
    except ValueError as error:
        return str(error)


def write(name: str, results: Path, *, smoke: bool = False) -> tuple[list[Path], list[str]]:
    """Write the counterpart into `results`/paper/`name`; return files and remarks.

    Files of an earlier counterpart are removed.

    What fails leaves the earlier one as it was. Raises ValueError with the valid names when there is none of this name.
    """
    entry = pick("counterpart", name, entries())
    folder = results / "paper" / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=f".{name}.") as made:
        new = Path(made) / name
        new.mkdir()
        remarks = (entry.make or _chosen)(entry, results, smoke, new)
        missing = [line for grid in entry.grids if (line := missing_of(grid, results, smoke=smoke))]
        write_text(new / "about.md", _about(name, entry, missing, new))
        shutil.rmtree(folder, ignore_errors=True)
        new.replace(folder)
    return sorted(folder.iterdir()), [*missing, *remarks]


def missing_of(grid_name: str, results: Path, *, smoke: bool = False) -> str:
    """Return the number of runs and timings that are not done; "" if all are."""
    try:
        loaded = frames.load(grids.load(grid_name), results, smoke)
    except ValueError as error:
        return f"{grid_name}: {error}"
    parts = []
    for what, frame in (("runs", loaded.runs), ("timings", loaded.timings)):
        without = int((frame["status"] != "done").sum())
        if without:
            parts.append(
                f"{without} of {len(frame)} {what} not done"
                if without < len(frame)
                else f"no {what[:-1]} of {without} done"
            )
    return f"{grid_name}: {', '.join(parts)}" if parts else ""


def show_list(results: Path, console: Console, *, smoke: bool = False) -> None:
    """Print each counterpart with its content, grids and their state."""
    table = Table("name", "shows", "grid: state", box=box.SIMPLE, pad_edge=False)
    missing_by_grid: dict[str, str] = {}
    for name, entry in entries().items():
        for grid in entry.grids:
            missing_by_grid.setdefault(grid, missing_of(grid, results, smoke=smoke) or f"{grid}: all done")
        table.add_row(
            *(Text(text) for text in (name, entry.shows, "\n".join(missing_by_grid[grid] for grid in entry.grids)))
        )
    console.print(table)


def _about(name: str, entry: Entry, missing: Sequence[str], folder: Path) -> str:
    files = sorted(path.name for path in folder.iterdir())
    origin = "all grids" if entry.of_all else words.joined(f"`{grid}`" for grid in entry.grids)
    lines = [
        f"# {name}",
        f"{entry.shows}. Made from the rows of {origin} by `python -m suite.report --paper {name}`.",
        (words.markdown("; ".join(missing)) if missing else "All runs are done") + ".",
        *(f"![{words.markdown(file)}]({file})" for file in files if file.endswith(".png")),
        "\n".join(f"- [{words.markdown(file)}]({file})" for file in files if not file.endswith(".png")),
    ]
    return "\n\n".join(line for line in lines if line) + "\n"


# ---- what makes them -------------------------------------------------------------------------------------------------


def _chosen(entry: Entry, results: Path, smoke: bool, folder: Path) -> list[str]:
    """Copy the files of fresh reports of the grids that have rows.

    If there are several grids, file names begin with the grid's name.
    """
    remarks: list[str] = []
    for grid in entry.grids:
        if not frames.load(grids.load(grid), results, smoke).rows:
            continue
        report = build(grid, results, smoke)
        prefix = f"{grids.folder_name(grid)}_" if len(entry.grids) > 1 else ""
        for path in report.paths:
            if any(path.match(pattern) for pattern in entry.files):
                with replacing(folder / f"{prefix}{path.name}") as part:
                    shutil.copyfile(path, part)
        remarks += report.remarks
    return remarks


def _structures(entry: Entry, results: Path, smoke: bool, folder: Path) -> list[str]:
    """Draw the first seed of each finished run with filter groups.

    Packed networks that do not exist are left out.
    """
    remarks = []
    for name in entry.grids:
        runs = frames.load(grids.load(name), results, smoke).runs
        grouped = runs[(runs["status"] == "done") & (runs["granularity"] == "intra_channel")]
        for key in grouped.sort_values("seed", kind="stable").drop_duplicates("cell")["key"]:
            try:
                drawn = structure.report(str(key), results)
            except ValueError as error:
                remarks.append(str(error))
                continue
            for path in drawn:
                shutil.copyfile(path, folder / path.name)
    return remarks


def _claims(_: Entry, results: Path, smoke: bool, folder: Path) -> list[str]:
    table = claims.table(results, smoke=smoke)
    title, text = "Claims under test", columns.text(table, further_columns.CLAIMS, "latex")
    named = notes.of_methods(claims.claimed_methods())
    markdown = [
        f"# {title}",
        columns.markdown(table, further_columns.CLAIMS),
        words.markdown(claims.NOTES),
        *notes.markdown(named),
    ]
    write_text(folder / "claims.csv", columns.csv(table, further_columns.CLAIMS))
    write_text(folder / "claims.md", "\n\n".join(markdown) + "\n")
    drawn = latex.table(text, title, "tab:claims", claims.NOTES, wide=("claim", "evidence")) + notes.latex(named)
    write_text(folder / "claims.tex", drawn)
    return []
