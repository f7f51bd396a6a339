"""Colour and mark of each method, the same in all figures of all grids.

`looks.toml` has those of the suite's own methods. Any other method gets a pair that is left, by a hash of its name.
Variants of a method in a grid differ in the fill of the mark and in the dashes of the line.
"""

from __future__ import annotations

import hashlib
import itertools
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from suite import methods, registry
from suite.report.figures import style
from suite.report.frames import CONDITIONS, TIMED_CONDITIONS

FILE = Path(__file__).with_name("looks.toml")
FILLS = ("full", "left", "bottom", "right", "top")
"""Coloured part of a mark. The counts of fills and dashes are coprime, so combinations repeat late."""


class Look(NamedTuple):
    """A variant of a method in a figure.

    Variant 0 has a full mark and a solid line.
    """

    method: str
    variant: int

    def style(self) -> dict[str, Any]:
        """Return colour, mark and dashes, as arguments of `Axes.plot`."""
        colour, mark = _pair(self.method)
        fill = FILLS[self.variant % len(FILLS)]
        shape, size = style.MARKS[mark]
        return {
            "color": style.COLOURS[colour],
            "marker": shape,
            "markersize": size,
            "linestyle": style.DASHES[self.variant % len(style.DASHES)],
            "fillstyle": fill,
            "markerfacecoloralt": "white",
            "markeredgecolor": "white" if fill == "full" else style.COLOURS[colour],
            "markeredgewidth": 0.7,
        }


def _pair(method: str) -> tuple[str, str]:
    """Return the names of colour and mark of a method."""
    pairs = _pairs()
    return pairs[method] if method in pairs else _left()[_number(method)]


@registry.cached
def _pairs() -> dict[str, tuple[str, str]]:
    """Return method -> colour and mark.

    Two methods share a pair only if there are more methods than pairs.
    """
    pairs = _listed()
    left, taken = _left(), set[int]()
    for method in sorted(methods.discover().keys() - pairs.keys()):
        place = _number(method)
        places = [*range(place, len(left)), *range(place)]
        free = next((each for each in places if each not in taken), place)
        taken.add(free)
        pairs[method] = left[free]
    return pairs


def _listed() -> dict[str, tuple[str, str]]:
    """Read the file of looks."""
    lines: dict[str, str] = tomllib.loads(FILE.read_text(encoding="utf-8"))
    return {method: (line.split()[0], line.split()[1]) for method, line in lines.items()}


def _left() -> list[tuple[str, str]]:
    """Return the pairs that no method in the file has; neighbours differ in colour."""
    taken = set(_listed().values())
    every = ((colour, mark) for mark, colour in itertools.product(style.MARKS, style.COLOURS))
    return [pair for pair in every if pair not in taken]


def _number(method: str) -> int:
    return int(hashlib.sha256(method.encode()).hexdigest(), 16) % len(_left())


# ---- variants --------------------------------------------------------------------------------------------------------


def of_lines(lines: pd.DataFrame) -> pd.Series:
    """Return the look of each line of the table (`cells.table`).

    Variants are numbered in the grid's order, whatever was run of them. Lines of a series under further conditions come
    after all series of the method.
    """
    trained = _further(lines[lines["n"] > 0], ["series"], CONDITIONS)
    timed = _further(lines[lines["timed_device"] != ""], ["series", *CONDITIONS], TIMED_CONDITIONS)
    return _looks(lines, trained, timed)


def of_runs(runs: pd.DataFrame) -> pd.Series:
    """Return the look of each run (`Frames.runs`).

    It is that of the run's line, if nothing is timed under further conditions.
    """
    trained = _further(runs[runs["status"] == "done"], ["series"], CONDITIONS)
    return _looks(runs, trained, pd.Series(0, index=runs.index))


def _further(lines: pd.DataFrame, within: list[str], conditions: list[str]) -> pd.Series:
    """Return the index of each line's set of conditions within its group."""
    sets = lines.groupby([*within, *conditions], sort=False).ngroup()
    return sets.groupby([lines[name] for name in within]).transform(lambda part: pd.factorize(part)[0])


def _looks(lines: pd.DataFrame, trained: pd.Series, timed: pd.Series) -> pd.Series:
    about = lines[["data", "model", "method", "series"]].assign(trained=trained, timed=timed)
    about = about.fillna({"trained": 0, "timed": 0})
    variants = pd.Series(0, index=lines.index)
    for _, part in about.groupby(["data", "model", "method"], sort=False):
        first = (part["trained"] == 0) & (part["timed"] == 0)
        variants[part.index] = pd.factorize(part["series"])[0]
        more = part[~first].groupby(["series", "trained", "timed"], sort=False).ngroup()
        variants[more.index] = part["series"].nunique() + more
    looks = map(Look, lines["method"], variants)
    return pd.Series(list(looks), index=lines.index, dtype="object")
