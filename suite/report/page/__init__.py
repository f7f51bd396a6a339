"""Web page of a grid without a server: `index.html`, and `runs.html` with every run.

`runs.html` holds the rows as data and shows the run that its address names (`runs.html#pruned-0123456789ab`). It has curves,
structures and logs if `results/work` exists when the page is made.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from suite import grids
from suite.files import write_text
from suite.report import columns, words
from suite.report.columns import Column, further_columns, table_columns
from suite.report.content import Content
from suite.report.figures.style import DPI, Picture
from suite.report.frames import CONDITIONS, TIMED_CONDITIONS, by_network
from suite.report.page import answer
from suite.report.statistics import not_faster, pairs, reproduction, steps
from suite.report.statistics.fairness import LEVELS
from suite.report.tables import notes, timings

CLAIMS = Path("paper", "claims", "claims.md")
"""Output of `--paper claims`, beside the grids' folders."""


CSS_PX_AN_INCH = 96
FILTERS = ("network", "method", "budget", "granularity")
"""Headings of columns with a menu of their values."""


def write(
    content: Content, pictures: Sequence[Picture], runs: Mapping[str, Any], downloads: Iterable[str], folder: Path
) -> list[Path]:
    """Write `index.html` and `runs.html` into `folder`.

    `runs` is the data of `suite.report.page.runs`, `downloads` are names of files in `folder`.
    """
    about = {"grid": content.grid, "smoke": content.smoke}
    main = _main(pictures)
    claims = folder.parent / CLAIMS
    index = (
        _environment()
        .get_template("index.html")
        .render(
            **about,
            **_results(content, {run["key"]: run["seed"] for run in runs["runs"]}),
            **_comparisons(content),
            **_TEXTS,
            main=main and _shown(main),
            sections=_sections(content.lines, [picture for picture in pictures if picture is not main]),
            claims=f"../{CLAIMS}" if claims.is_file() else "",
            downloads=sorted(set(downloads)),
        )
    )
    page = _environment().get_template("runs.html").render(**about, runs=runs)
    paths = [folder / "index.html", folder / "runs.html"]
    for path, text in zip(paths, (index, page), strict=True):
        write_text(path, text)
    return paths


_TEXTS = {
    "about_timing": timings.TITLE,
    "about_notes": notes.TITLE,
    "drops": words.DROPS,
    "counted": words.COUNTS,
    "dose": words.DOSE,
    "levels": words.levels(LEVELS),
    "pairs": words.PAIRS,
    "pairs_method": words.PAIRS_METHOD,
    "flops": words.FLOPS,
    "never_averaged": words.NEVER_AVERAGED,
    "speedup": words.SPEEDUP,
    "reproduction": words.REPRODUCTION,
}
"""Explanations that all pages share."""


def _results(content: Content, seeds: Mapping[str, int]) -> dict[str, Any]:
    """Return answer, table and counts. `seeds` has the seed of each run's key."""
    letters, meanings = words.told_apart(content.lines, [*CONDITIONS, *TIMED_CONDITIONS])
    lines = content.lines.assign(settings=content.lines["settings"] + letters, absent=content.lines["n"] == 0)
    lines = lines.sort_values("absent", kind="stable")  # lines with a result come first
    shown = columns.text(lines, table_columns.page(median=bool(content.medians)), "page")
    return {
        "answer": answer.sentences(content.lines, content.compared, content.leaders),
        "undecidable": _undecidable(content.undecidable),
        "tiles": _tiles(lines),
        "few": int(lines.loc[lines["n"] > 0, "n"].min()) if lines["n"].any() else 0,
        "counts": words.counts(lines),
        "columns": shown.columns,
        "filters": _filters(shown),
        "lines": _lines(lines, shown, seeds),
        "meanings": meanings,
        "networks": _networks(lines),
        "notes": [(notes.marked(note), note) for note in notes.of_methods(lines["method"])],
        "other_code": content.other_code.split("`"),
        "problems": content.problems.to_dict("records"),
    }


def _undecidable(reasons: Mapping[tuple[str, str], str]) -> list[str]:
    """Return a text for each reason, with the networks that it holds for."""
    return [
        f"{words.joined(f'{data}/{model}' for (data, model), each in reasons.items() if each == reason)}. {reason}"
        for reason in dict.fromkeys(reasons.values())
    ]


def _comparisons(content: Content) -> dict[str, Any]:
    """Return the tables below the first one."""
    return {
        "about_reference": words.about_reference(content.reference),
        "reference": _each_network(
            content.reference,
            lambda part: _frame(part, table_columns.table(median=False)) | {"trained": words.trained(part)},
        ),
        "compared": _each_network(content.compared, _compared),
        "by_timing": _by_timing(content),
        "steps": {"title": steps.TITLE, "about": f"{steps.ABOUT}.", **_frame(content.steps, further_columns.STEPS)},
        "not_faster": _not_faster(content),
        "reproduced": _each_network(content.reproduced, _reproduced),
    }


def leaderboard(lines: pd.DataFrame, described: Iterable[Column], title: str, about: str) -> str:
    """Return the page of a leaderboard.

    `grid` of a line is the name of its grid, whose page lies beside this one.
    """
    shown = columns.text(lines, described, "page")
    table = [
        {**line, "grid": grids.folder_name(grid)}
        for line, grid in zip(_lines(lines, shown, {}), lines["grid"], strict=True)
    ]
    filters = _filters(shown)
    template = _environment().get_template("leaderboard.html")
    return template.render(title=title, about=about, columns=shown.columns, lines=table, filters=filters)


@functools.cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("suite.report.page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _lines(lines: pd.DataFrame, shown: columns.Text, seeds: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return the lines of the table.

    Cells are (text, its detail, number to sort by or ""), runs are (key, seed).
    """
    described, texts = shown
    result = []
    for line, cells in zip(lines.to_dict("records"), texts.to_numpy().tolist(), strict=True):
        values = (_sorted_by(column, line) for column in described)
        parts = (_parts(text) if column.number else (text, "") for column, text in zip(described, cells, strict=True))
        runs = [(key, seeds[key]) for key in str(line["rows"]).split() if key in seeds]
        result.append({"cells": [(*part, value) for part, value in zip(parts, values, strict=True)], "runs": runs})
    return result


def _parts(text: str) -> tuple[str, str]:
    """Split "1.31 [1.27, 1.36] (5)" into the number and the rest.

    A phone shows the rest below the number.
    """
    at = min((place for bracket in "[(" if (place := text.find(f" {bracket}")) > 0), default=len(text))
    return text[:at], text[at + 1 :]


def _sorted_by(column: Column, line: Mapping[Any, Any]) -> str:
    value = line[column.name] if column.number else ""
    return "" if value == "" or pd.isna(value) else f"{value:.8g}"


def _filters(shown: columns.Text) -> list[tuple[int, list[str]]]:
    """Return index and values of each column with a menu."""
    indices = {column.heading: index for index, column in enumerate(shown.columns)}
    return [(indices[name], list(dict.fromkeys(shown.frame[name]))) for name in FILTERS]


def _each_network(frame: pd.DataFrame, view: Callable[[pd.DataFrame], dict[str, Any]]) -> list[dict[str, Any]]:
    """Return name and `view` of the lines of each network."""
    return [{"name": f"{data}, {model}", **view(part)} for data, model, part in by_network(frame)]


def _by_timing(content: Content) -> list[dict[str, Any]]:
    """Return the speed-ups of each network with several timings."""
    networks = []
    for data, model, part in by_network(content.latency):
        table = timings.table(part)
        if len(table):
            networks.append({"name": f"{data}, {model}", **_frame(table, table_columns.by_timing(table))})
    return networks


def _not_faster(content: Content) -> dict[str, Any]:
    about = f"{content.not_faster_counts}: {not_faster.ABOUT}."
    return {"title": not_faster.TITLE, "about": about, **_frame(content.not_faster, further_columns.NOT_FASTER)}


def _compared(compared: pd.DataFrame) -> dict[str, Any]:
    return {
        "warnings": pairs.warnings(compared),
        "meanings": pairs.meanings(compared),
        **_frame(pairs.shown(compared), further_columns.PAIRS),
    }


def _reproduced(reproduced: pd.DataFrame) -> dict[str, Any]:
    shown, meanings = reproduction.shown(reproduced)
    return {"meanings": meanings, **_frame(shown, further_columns.REPRODUCTION)}


def _frame(frame: pd.DataFrame, described: Iterable[Column]) -> dict[str, Any]:
    """Return `table`: columns as (heading, aligned to the right) and lines.

    Empty columns are left out.
    """
    shown = columns.text(frame, described, "page")
    kept = [column for column in shown.columns if shown.frame[column.heading].ne("").any()]
    lines = shown.frame[[column.heading for column in kept]].to_numpy().tolist()
    return {"table": {"columns": [(column.heading, column.right) for column in kept], "lines": lines}}


def _tiles(lines: pd.DataFrame) -> list[tuple[str, str]]:
    """Return counts of the grid as (number, noun)."""
    done = int(lines.drop_duplicates("line")["n"].sum())
    cells = lines.drop_duplicates("cell")
    return [
        (f"{done} of {int(cells['runs'].sum())}", "runs done"),
        (str(lines["method"].nunique()), "methods"),
        (str(len(lines.drop_duplicates(["data", "model"]))), "networks"),
        (str(lines["budget"].nunique()), "budgets"),
    ]


def _networks(lines: pd.DataFrame) -> list[dict[str, str]]:
    """Return accuracy before pruning and origin of the numbers of each network."""
    networks = []
    for data, model, part in by_network(lines):
        done = part[part["n"] > 0]
        most = done.nlargest(1, "base_n").iloc[0] if len(done) else None
        base = "" if most is None else words.mean_sd(*most[["base_top1_mean_pct", "base_top1_sd_pp", "base_n"]])
        trained = words.trained(done) if len(done) else "no run is done"
        measured = words.measured(done) or "not measured"
        networks.append({"name": f"{data}, {model}", "base": base, "trained": trained, "measured": measured})
    return networks


def _sections(lines: pd.DataFrame, pictures: Sequence[Picture]) -> list[dict[str, Any]]:
    """Return the figures of each network."""
    sections = []
    for data, model, _ in by_network(lines):
        own = [picture for picture in pictures if (picture.data, picture.model) == (data, model)]
        if own:
            sections.append({"name": f"{data}, {model}", "figures": list(map(_shown, own))})
    return sections


def _main(pictures: Sequence[Picture]) -> Picture | None:
    """Return the figure of the first screen: accuracy over MACs, else of intervals, else any."""
    kinds = ("pareto_macs", "intervals", "")
    return next((picture for kind in kinds for picture in pictures if picture.name.startswith(kind)), None)


def _shown(picture: Picture) -> dict[str, Any]:
    """Return a picture with its size in pixels and its natural width in CSS pixels."""
    size = _size(picture)
    return {"picture": picture, "size": size, "natural_px": round(size[0] * CSS_PX_AN_INCH / DPI)}


def _size(picture: Picture) -> tuple[int, int]:
    with Image.open(picture.paths[0]) as image:
        return image.size
