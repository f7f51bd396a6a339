"""Published numbers, from `suite/report/papers/`.

Each row was read in the source that it names.

Published numbers are shown beside ours and never mixed with them. A number that a source does not state is absent. `names.csv`
maps a source's method and variant to the suite's method and the settings that it takes.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from suite.report.frames import CONDITIONS

HOME = Path(__file__).resolve().parents[1] / "papers"
NAMES = "names.csv"
TEXTS = (
    "data", "model", "method", "variant", "flops_scope", "runs", "selection", "epochs", "derived", "seen", "source",
)  # fmt: skip
NUMBERS = ("groups", "base_top1_pct", "top1_pct", "flops_cut_pct", "params_cut_pct")
COLUMNS = (*TEXTS, *NUMBERS, "ours", "needs", "scope")
"""Of the frame: what the files have; the suite's name of the method and the settings that it takes, as "n=4, ranking=layer";
"network" or "prunable", what its FLOPs count."""
NO_VARIANT = "none"
"""In `needs`: the suite has the method, but not this variant."""
BEST_ON_TEST = "best epoch on test"
SELECTIONS = ("", BEST_ON_TEST, "last epoch", "not stated")
"""Epoch that a number is of; "best epoch on test" if the code of the number keeps that epoch."""
SEEN = ("primary", "rerun", "quoted")
SCOPES = {"": "network", "prunable convs": "prunable"}
REFERENCE = "reference rows"
"""Source of the marks that show the project's tracked rows."""
_NEEDED = ("data", "model", "method", "seen", "source")


def load(home: Path = HOME) -> pd.DataFrame:
    """Return all published rows, with `COLUMNS`.

    Raises ValueError naming file, line, bad value and what is allowed.
    """
    names = _names(home / NAMES)
    rows = [row for path in sorted(home.glob("*.csv")) if path.name != NAMES for row in _rows(path)]
    frame = pd.DataFrame(rows, columns=[*TEXTS, *NUMBERS])
    frame[list(NUMBERS)] = frame[list(NUMBERS)].astype(float)
    mapped = [
        names.get((method, variant), names.get((method, ""), (method, "")))
        for method, variant in zip(frame["method"], frame["variant"], strict=True)
    ]
    frame["ours"] = [ours for ours, _ in mapped]
    frame["needs"] = [needs for _, needs in mapped]
    frame["scope"] = frame["flops_scope"].map(SCOPES)
    return frame


def _names(path: Path) -> dict[tuple[str, str], tuple[str, str]]:
    """Return (published method, variant) -> (method, settings); the variant "" stands for all others."""
    if not path.is_file():
        return {}
    lines = _lines(path, ("published", "variant", "suite", "settings"))
    return {(row["published"], row["variant"]): (row["suite"], row["settings"]) for _, row in lines}


def _rows(path: Path) -> Iterator[dict[str, str | float]]:
    for where, raw in _lines(path, ()):
        row: dict[str, str | float] = {("data" if name == "dataset" else name): value for name, value in raw.items()}
        if unknown := row.keys() - {*TEXTS, *NUMBERS}:
            raise ValueError(f"{where}: unknown columns {sorted(unknown)}; there are {', '.join((*TEXTS, *NUMBERS))}")
        if missing := [name for name in _NEEDED if row.get(name, "") == ""]:
            raise ValueError(f"{where}: {', '.join(missing)} must be given")
        if row["seen"] not in SEEN:
            raise ValueError(f"{where}: seen = {row['seen']!r}; choose from: {', '.join(SEEN)}")
        if row.get("flops_scope", "") not in SCOPES:
            raise ValueError(f"{where}: flops_scope = {row['flops_scope']!r}; it is empty or 'prunable convs'")
        if row.get("selection", "") not in SELECTIONS:
            raise ValueError(f"{where}: selection = {row['selection']!r}; choose from: {', '.join(SELECTIONS[1:])}")
        numbers = {name: _number(str(row.get(name, "")), f"{where}: {name}") for name in NUMBERS}
        yield {**dict.fromkeys(TEXTS, ""), **row, **numbers}


def _lines(path: Path, needed: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield location and values of each line below the header."""
    try:
        reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"), newline=""), strict=True)
        lines = [(f"{path}, line {reader.line_num}", row) for row in reader]
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no CSV file in UTF-8: {error}") from error
    if missing := set(needed) - set(reader.fieldnames or ()):
        raise ValueError(f"{path}: the columns {', '.join(sorted(missing))} are missing")
    for where, row in lines:
        if None in row or None in row.values():
            raise ValueError(f"{where}: it has not as many values as there are columns")
        yield where, {name: value.strip() for name, value in row.items()}


def _number(text: str, where: str) -> float:
    """Parse a count of groups or a percentage; nan if it is not stated."""
    if not text:
        return math.nan
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 100:
        raise ValueError(
            f"{where} = {text!r} is no number from 0 to 100; leave it empty when the source does not state it"
        )
    return value


def from_reference(reference: pd.DataFrame) -> pd.DataFrame:
    """Return tracked lines (`cells.table`) in the form of published rows."""
    lines = reference.drop_duplicates(["cell", *CONDITIONS])
    return pd.DataFrame(
        {
            **{name: lines[name] for name in ("data", "model")},
            "method": lines["short"],
            "top1_pct": lines["top1_mean_pct"],
            "flops_cut_pct": lines["macs_cut_pct"],
            "params_cut_pct": lines["params_cut_pct"],
            **dict.fromkeys(("flops_scope", "selection"), ""),
            "source": REFERENCE,
        }
    )
