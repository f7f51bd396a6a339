"""The grid as a web page that opens from the disk: `index.html`, and `runs.html` with every run.

Two files a grid, however many runs it has: they are kept under version control. `runs.html` holds the rows as data and shows
the run that its address names (`runs.html#pruned-0123456789ab`). What comes from `results/work` (curves, structures, logs) is in
it when the page is made where that folder is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from suite.files import write_text
from suite.report import not_faster, pairs, reproduction, words
from suite.report.content import Content
from suite.report.frames import CONDITIONS, TIMED_CONDITIONS
from suite.report.style import Picture
from suite.report.tables import is_number

CLAIMS = Path("paper", "claims", "claims.md")
"""Where `--paper claims` writes, beside the grids' folders."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of the page's table: what it shows, and by what it is sorted."""

    heading: str
    show: Callable[[Mapping[Any, Any]], str]
    sort: str = ""
    """The column of the table that it is sorted by, as a number; "" for its text."""
    about: str = ""


def _number(name: str) -> Callable[[Mapping[Any, Any]], str]:
    return lambda line: words.number(line[name])


def _text(name: str) -> Callable[[Mapping[Any, Any]], str]:
    return lambda line: str(line[name])


def _mean(prefix: str, spread: str) -> Callable[[Mapping[Any, Any]], str]:
    return lambda line: words.mean_sd(line[prefix], line[spread])


def _fairness(line: Mapping[Any, Any]) -> str:
    """The level, or why there is none."""
    return str(line["fairness"]) if pd.isna(line["fairness_level"]) else f"{line['fairness_level']:.0f}"


def _device(line: Mapping[Any, Any]) -> str:
    """Where it was timed, or else trained."""
    return str(line["timed_device"] or line["device"])


MEDIAN = Column(heading="median %", show=_number("top1_median_pct"), sort="top1_median_pct", about="after pruning")
"""Only where a median was published."""
COLUMNS = (
    Column(heading="method", show=_text("name")),
    Column(heading="network", show=lambda line: f"{line['data']}, {line['model']}"),
    Column(heading="budget", show=lambda line: words.budget(line["budget"], line["budget_scope"]), sort="budget"),
    Column(heading="FLOPs cut %", show=_number("macs_cut_pct"), sort="macs_cut_pct", about="of the whole network"),
    Column(heading="top-1 %", show=_mean("top1_mean_pct", "top1_sd_pp"), sort="top1_mean_pct", about="after pruning"),
    MEDIAN,
    Column(
        heading="drop", show=_mean("drop_mean_pp", "drop_sd_pp"), sort="drop_mean_pp", about="base minus pruned, points"
    ),
    Column(heading="n", show=_text("n"), sort="n", about="runs"),
    Column(heading="note", show=_text("note")),
    Column(heading="speed-up ×", show=words.speedup, sort="speedup_x", about="measured: dense time / packed time"),
    Column(
        heading="MACs ×", show=_number("theoretical_x"), sort="theoretical_x", about="dense / packed; not a speed-up"
    ),
    Column(heading="params cut %", show=_number("params_cut_pct"), sort="params_cut_pct"),
    Column(
        heading="convs cut %",
        show=_number("prunable_macs_cut_pct"),
        sort="prunable_macs_cut_pct",
        about="FLOPs of the prunable convolutions: all but the stem and the shortcuts",
    ),
    Column(heading="base top-1 %", show=_mean("base_top1_mean_pct", "base_top1_sd_pp"), sort="base_top1_mean_pct"),
    Column(heading="granularity", show=_text("granularity")),
    Column(heading="groups", show=_text("groups"), sort="groups"),
    Column(heading="deployed", show=_text("deployed")),
    Column(heading="epochs", show=words.epochs, about="before pruning + learning + fine-tuning"),
    Column(heading="fairness", show=_fairness, about="what the methods at this budget share"),
    Column(heading="device", show=_device, about="where it was timed, or trained if it was not timed"),
)
FILTERS = ("network", "method", "budget", "granularity")
"""Columns with a menu that chooses one of their values."""


def write(
    content: Content, pictures: Sequence[Picture], runs: Mapping[str, Any], downloads: Iterable[str], folder: Path
) -> list[Path]:
    """Write `index.html` and `runs.html` into `folder`.

    `runs` is the data of `suite.report.runs`, `downloads` are names of files in `folder`.
    """
    grid, smoke = content.grid, content.smoke
    seeds = {run["key"]: run["seed"] for run in runs["runs"]}
    letters, meanings = words.told_apart(content.lines, [*CONDITIONS, *TIMED_CONDITIONS])
    lines = content.lines.assign(name=content.lines["settings"] + letters)
    columns = [column for column in COLUMNS if column is not MEDIAN or reproduction.medians(content.reproduced)]
    table = [_line(line, columns, seeds) for line in lines.to_dict("records")]
    claims = folder.parent / CLAIMS
    index = (
        _environment()
        .get_template("index.html")
        .render(
            grid=grid,
            smoke=smoke,
            tiles=_tiles(lines),
            counts=words.counts(lines),
            networks=_networks(lines),
            columns=columns,
            filters=_filters(table, columns),
            lines=table,
            meanings=meanings,
            compared=_of_networks(content.compared, _compared),
            reproduced=_of_networks(content.reproduced, lambda part: {"table": _frame(reproduction.shown(part))}),
            not_faster=_not_faster(content),
            claims=f"../{CLAIMS}" if claims.is_file() else "",
            sections=_sections(lines, pictures),
            problems=content.problems.to_dict("records"),
            downloads=sorted(set(downloads)),
            few=int(lines.loc[lines["n"] > 0, "n"].min()) if lines["n"].any() else 0,
            flops=words.FLOPS,
            speedup=words.SPEEDUP,
            reproduction=words.REPRODUCTION,
        )
    )
    page = _environment().get_template("runs.html").render(grid=grid, smoke=smoke, runs=runs)
    written = [folder / "index.html", folder / "runs.html"]
    for path, text in zip(written, (index, page), strict=True):
        write_text(path, text)
    return written


@functools.cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("suite.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _line(line: Mapping[Any, Any], columns: Sequence[Column], seeds: Mapping[str, int]) -> dict[str, Any]:
    """A line of the table: its cells as (text, number to sort by or ""), and its runs as (key, seed)."""
    cells = []
    for column in columns:
        value = line[column.sort] if column.sort else ""
        cells.append((column.show(line), "" if value == "" or pd.isna(value) else f"{value:.8g}"))
    return {"cells": cells, "runs": [(key, seeds[key]) for key in str(line["rows"]).split() if key in seeds]}


def _filters(table: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> list[tuple[int, list[str]]]:
    """The columns with a menu by their number, with their values in the order of the table."""
    numbers = {column.heading: number for number, column in enumerate(columns)}
    return [(numbers[name], list(dict.fromkeys(line["cells"][numbers[name]][0] for line in table))) for name in FILTERS]


def _of_networks(frame: pd.DataFrame, say: Callable[[pd.DataFrame], dict[str, Any]]) -> list[dict[str, Any]]:
    """What there is to say of every data set and model in the frame."""
    groups = frame.groupby(["data", "model"], sort=False)
    return [{"name": f"{data}, {model}", **say(part)} for (data, model), part in groups]


def _not_faster(content: Content) -> dict[str, Any]:
    about = f"{content.not_faster_counts}: {not_faster.ABOUT}."
    return {"title": not_faster.TITLE, "about": about, "table": _frame(not_faster.shown(content.not_faster))}


def _compared(compared: pd.DataFrame) -> dict[str, Any]:
    return {"warnings": pairs.warnings(compared), "table": _frame(pairs.shown(compared))}


def _frame(frame: pd.DataFrame) -> dict[str, Any]:
    """A frame of text: headings, each with whether its column holds numbers, and lines; columns without any text are left out."""
    names = [name for name in frame.columns if frame[name].ne("").any()]
    return {"columns": [(name, is_number(name)) for name in names], "lines": frame[names].to_numpy().tolist()}


def _tiles(lines: pd.DataFrame) -> list[tuple[str, str]]:
    """The grid in a few numbers, as (number, of what)."""
    done = int(lines["n"].sum())
    cells = lines.drop_duplicates("cell")
    return [
        (f"{done} of {int(cells['runs'].sum())}", "runs done"),
        (str(lines["method"].nunique()), "methods"),
        (str(len(lines.drop_duplicates(["data", "model"]))), "networks"),
        (str(lines["budget"].nunique()), "budgets"),
    ]


def _networks(lines: pd.DataFrame) -> list[dict[str, str]]:
    """What is said of every data set and model: accuracy before pruning, and where the numbers come from."""
    found = []
    for (data, model), part in lines.groupby(["data", "model"], sort=False):
        done = part[part["n"] > 0]
        most = done.iloc[int(done["base_n"].argmax())] if len(done) else None
        base = (
            words.mean_sd(most["base_top1_mean_pct"], most["base_top1_sd_pp"], most["base_n"])
            if most is not None
            else ""
        )
        trained = words.trained(done) if len(done) else "no run is done"
        found.append(
            {
                "name": f"{data}, {model}",
                "base": base,
                "trained": trained,
                "measured": words.measured(done) or "not measured",
            }
        )
    return found


def _sections(lines: pd.DataFrame, pictures: Sequence[Picture]) -> list[dict[str, Any]]:
    """The figures of every data set and model, with the size of each in pixels."""
    networks = list(dict.fromkeys(zip(lines["data"], lines["model"], strict=True)))
    sections = []
    for data, model in networks:
        own = [
            {"picture": picture, "size": _size(picture)}
            for picture in pictures
            if (picture.data, picture.model) == (data, model)
        ]
        if own:
            sections.append({"name": f"{data}, {model}", "figures": own})
    return sections


def _size(picture: Picture) -> tuple[int, int]:
    with Image.open(picture.paths[0]) as image:
        return image.size
