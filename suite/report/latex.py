r"""Tables for papers: one file for every data set and model, to be put in with `\input`; array, booktabs,
graphicx and rotating are needed."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from suite.report import reproduction, tables, words
from suite.report.content import Content
from suite.report.fairness import LEVELS

LEFT_OUT = ("theoretical x", "deployed", "device")
"""Columns that a page has no room for; the notes below the table have the device."""
WIDE = r">{\raggedright\arraybackslash}p{0.38\textwidth}"
KEPT = ("method", "budget", "pruned top-1 %", "note")
"""Columns that stay when all lines have the same value."""
SIDEWAYS = 10
"""A table with more columns than this is turned: on an upright page it would be too small to read."""
ONCE = ("method", "granularity", "groups")
"""Columns that are printed on the first line of a method only."""


def files(content: Content) -> dict[str, str]:
    """File name -> LaTeX: `table_DATA_MODEL.tex`, and `reproduction_DATA_MODEL.tex` where there are published numbers."""
    reproduced = content.reproduced
    found, medians = {}, reproduction.medians(reproduced)
    smoke = "Smoke runs, whose numbers mean nothing: " if content.smoke else ""
    for (data, model), part in content.lines.groupby(["data", "model"], sort=False):
        name = words.file_name(str(data), str(model))
        title = f"{smoke}{content.grid.title.rstrip('.')}: {data}, {model}"
        shown = tables.shown(part, median=(data, model) in medians).drop(columns=list(LEFT_OUT))
        shown["speed-up x"] = shown["speed-up x"].str.replace(", no difference", "*")
        shown, alike = _without_alike(shown)
        notes = f"{_notes(part)} {alike}".strip()
        found[f"table_{name}.tex"] = table(shown, title, f"tab:{name}", notes, once=[n for n in ONCE if n in shown])
        if len(beside := reproduced[(reproduced["data"] == data) & (reproduced["model"] == model)]):
            text = reproduction.shown(beside)
            notes = f"Published numbers: {words.REPRODUCTION}."
            found[f"reproduction_{name}.tex"] = table(
                text, f"{title}, published numbers beside ours", f"tab:reproduction_{name}", notes
            )
    return found


def _without_alike(shown: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Without the columns that say the same in all lines, and what they say. A line without a result may say nothing."""
    done = shown["pruned top-1 %"] != ""
    alike = {
        name: values.iloc[0]
        for name, column in shown.items()
        if name not in KEPT and done.sum() > 1 and column[done].ne("").all()
        if (values := column[column != ""]).nunique() == 1
    }
    said = "; ".join(f"{name} {value}" for name, value in alike.items())
    return shown.drop(columns=list(alike)), f"In all lines: {said}." if alike else ""


def _notes(lines: pd.DataFrame) -> str:
    done = lines[lines["n"] > 0]
    if done.empty:
        return "No run is done."
    parts = [
        "Top-1 of the last epoch: mean ± sample standard deviation (number of runs); the drop is base minus pruned.",
        f"{words.FLOPS}.",
        f"T{words.trained(done)[1:]}.",
    ]
    if measured := words.measured(done):
        parts.append(f"Speed-up [range of the 95 % intervals] (number of runs), * no difference, {measured}.")
    parts.append(f"Fairness: {words.levels(LEVELS)}. Epochs: base + learning + fine-tuning.")
    return " ".join(parts)


def table(
    frame: pd.DataFrame, caption: str, label: str, notes: str, *, once: Sequence[str] = (), wide: Sequence[str] = ()
) -> str:
    """A frame of text as a floating table, made smaller where it is wider than the page's text; empty columns are left out.

    What stands in the columns `once` is not repeated from line to line; the text of the columns `wide` is broken into lines.
    """
    names = [name for name in frame.columns if (frame[name] != "").any()]
    alignment = "".join(WIDE if name in wide else "r" if tables.is_number(name) else "l" for name in names)
    first = frame[list(once)].ne(frame[list(once)].shift()).any(axis=1)
    body: list[str] = []
    for line, is_first in zip(frame[names].to_dict("records"), first, strict=True):
        cells = ("" if name in once and not is_first else words.latex(str(line[name])) for name in names)
        body += [*([r"\addlinespace"] if body and (is_first or wide) else []), " & ".join(cells) + r" \\"]
    kind, place = ("sidewaystable", "") if len(names) > SIDEWAYS else ("table", "[tbp]")
    return "\n".join(
        (
            r"% needs \usepackage{array,booktabs,graphicx,rotating}",
            rf"\begin{{{kind}}}{place}",
            r"\centering\footnotesize\setlength{\tabcolsep}{3.5pt}",
            rf"\caption{{{words.latex(caption)}}}",
            rf"\label{{{label}}}",
            r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{{alignment}}}",
            r"\toprule",
            " & ".join(_heading(name) for name in names) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}%",
            "}",
            rf"\par\smallskip\parbox{{\textwidth}}{{\scriptsize {words.latex(notes)}}}",
            rf"\end{{{kind}}}",
            "",
        )
    )


def _heading(name: str) -> str:
    """On two lines where it has several words."""
    first, _, rest = name.partition(" ")
    if not rest:
        return words.latex(name)
    side = "r" if tables.is_number(name) else "l"
    return rf"\begin{{tabular}}[b]{{@{{}}{side}@{{}}}}{words.latex(first)}\\{words.latex(rest)}\end{{tabular}}"
