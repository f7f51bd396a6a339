r"""Tables for papers: one file for each data set and model, read by `\input`.

The packages array, booktabs, graphicx and rotating are needed.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from suite.report import columns, words
from suite.report.columns import Column, Text, further_columns, table_columns
from suite.report.content import Content
from suite.report.frames import by_network, of_network
from suite.report.statistics import reproduction
from suite.report.statistics.fairness import LEVELS
from suite.report.tables import notes, timings

WIDE = r">{\raggedright\arraybackslash}p{0.38\textwidth}"
KEPT = ("method", "budget", "pruned top-1 %", "note")
"""Columns that stay if all lines have the same value."""
SIDEWAYS = 10
"""A table with more columns is turned by 90 degrees to stay readable."""
ONCE = ("method", "granularity", "groups")
"""Columns that are printed only on the first line of a method."""


def files(content: Content) -> dict[str, str]:
    """Return file name -> LaTeX: `table_DATA_MODEL.tex`, and others if there is content.

    `timings_DATA_MODEL.tex` needs several timings, `reproduction_DATA_MODEL.tex` published numbers.
    """
    texts = {}
    smoke = "Smoke runs, whose numbers are no results: " if content.smoke else ""
    for data, model, part in by_network(content.lines):
        name = words.file_name(data, model)
        title = f"{smoke}{content.grid.title.rstrip('.')}: {data}, {model}"
        shown = columns.text(part, table_columns.table(median=(data, model) in content.medians), "latex")
        shown.frame["speed-up x"] = shown.frame["speed-up x"].str.replace(", no difference", "*")
        shown, alike = _without_alike(shown)
        other_code = words.sentences(words.other_code(part, content.name))
        under = f"{_notes(part)} {alike} {other_code} {content.undecidable.get((data, model), '')}".strip()
        about = notes.latex(notes.of_methods(part["method"]))
        texts[f"table_{name}.tex"] = (
            table(shown, title, f"tab:{name}", under, once=[n for n in ONCE if n in shown.frame]) + about
        )
        by_timing = timings.table(of_network(content.latency, data, model))
        if len(by_timing):
            speed = columns.text(by_timing, table_columns.by_timing(by_timing), "latex")
            caption, label = f"{title}, {timings.TITLE[0].lower()}{timings.TITLE[1:]}", f"tab:timings_{name}"
            texts[f"timings_{name}.tex"] = table(speed, caption, label, f"{words.SPEEDUP}.", once=["method"]) + about
        if len(beside := of_network(content.reproduced, data, model)):
            lettered, meanings = reproduction.shown(beside)
            shown = columns.text(lettered, further_columns.REPRODUCTION, "latex")
            caption, label = f"{title}, published numbers beside ours", f"tab:reproduction_{name}"
            texts[f"reproduction_{name}.tex"] = (
                table(shown, caption, label, words.sentences(f"Published numbers: {words.REPRODUCTION}", *meanings))
                + about
            )
    return texts


def _without_alike(shown: Text) -> tuple[Text, str]:
    """Drop the columns with one value; return a sentence with these values too.

    Lines without a result may be empty in such a column.
    """
    frame = shown.frame
    done = frame["pruned top-1 %"] != ""
    alike = {
        str(name): values.iloc[0]
        for name, column in frame.items()
        if name not in KEPT and done.sum() > 1 and column[done].ne("").all()
        if (values := column[column != ""]).nunique() == 1
    }
    pairs = "; ".join(f"{name} {value}" for name, value in alike.items())
    return shown.drop(alike), f"In all lines: {pairs}." if alike else ""


def _notes(lines: pd.DataFrame) -> str:
    done = lines[lines["n"] > 0]
    if done.empty:
        return "No run is done."
    measured = words.measured(done)
    return words.sentences(
        "Top-1 of the last epoch: mean ± sample standard deviation (number of runs)",
        words.DROPS,
        words.COUNTS,
        words.FLOPS,
        words.trained(done),
        f"Speed-up [range of the 95 % intervals] (number of runs), * no difference, {measured}" if measured else "",
        f"Fairness: {words.levels(LEVELS)}. Epochs: base + learning + fine-tuning; plain epochs: all, in "
        "plain-step equivalents",
        words.DOSE if done["dose"].notna().any() else "",
    )


def table(
    shown: Text, caption: str, label: str, notes: str, *, once: Sequence[str] = (), wide: Sequence[str] = ()
) -> str:
    """Return a floating table, shrunk to the page's width; empty columns are left out.

    Values of the columns `once` are not repeated from line to line. Texts of the columns `wide` are broken into lines.
    """
    frame = shown.frame
    kept = [column for column in shown.columns if (frame[column.heading] != "").any()]
    names = [column.heading for column in kept]
    alignment = "".join(WIDE if column.heading in wide else "r" if column.right else "l" for column in kept)
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
            " & ".join(map(_heading, kept)) + r" \\",
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


def _heading(column: Column) -> str:
    """Return the heading, on two lines if it has several words."""
    first, _, rest = column.heading.partition(" ")
    if not rest:
        return words.latex(column.heading)
    side = "r" if column.right else "l"
    return rf"\begin{{tabular}}[b]{{@{{}}{side}@{{}}}}{words.latex(first)}\\{words.latex(rest)}\end{{tabular}}"
