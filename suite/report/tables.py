"""Tables as files: `table.csv` and `latency.csv` for programs, `table.md` for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd

from suite.grids import Grid
from suite.report import words
from suite.report.frames import CONDITIONS, SCHEDULES, TIMED_CONDITIONS, TIMING

LABELS_SHOWN = 5
_SPEEDUP = [
    "speedup_n",
    "speedup_untrusted",
    "speedup_x",
    "speedup_low_x",
    "speedup_high_x",
    "verdict",
    "theoretical_x",
    "deployed",
]
TABLE_COLUMNS = [
    *("data", "model", "split", "weights", "method", "settings", "granularity", "groups", "budget", "budget_scope"),
    *("runs", "n", "missing", "failed", "diverged"),
    *("base_n", "base_top1_mean_pct", "base_top1_sd_pp", "top1_mean_pct", "top1_sd_pp", "top1_t95_pp"),
    *("drop_mean_pp", "drop_sd_pp"),
    *("macs_cut_pct", "prunable_macs_cut_pct", "params_cut_pct", "macs", "params", "coarse"),
    *_SPEEDUP,
    *TIMING,
    *TIMED_CONDITIONS,
    *CONDITIONS,
    *SCHEDULES,
    *("note", "rows"),
]
LATENCY_COLUMNS = [
    *("data", "model", "settings", "budget", "budget_scope", "asked_device", *TIMING, *TIMED_CONDITIONS),
    *_SPEEDUP,
    *("dense_ms", "packed_ms", "timed_missing", "timed_failed", *CONDITIONS),
]
_VARYING = {
    "split": "split",
    "device": "trained on",
    "data_sha256": "data",
    "timed_device": "timed on",
    "threads": "threads",
}
"""Columns that the Markdown table has only where their values differ, and their headings there."""


def csv(lines: pd.DataFrame, columns: Sequence[str]) -> str:
    """These columns as CSV; what is absent is empty."""
    return lines[list(columns)].to_csv(index=False, float_format="%.10g", lineterminator="\n")


def document(
    grid: Grid, lines: pd.DataFrame, problems: pd.DataFrame, *, smoke: bool, pictures: Sequence[tuple[str, str, str]]
) -> str:
    """`table.md`: a section for every data set and model. `pictures` are (data, model, file name)."""
    head = [f"# {words.markdown(grid.title)}", words.markdown(grid.about), words.counts(lines)]
    if smoke:
        head.insert(1, "**Smoke runs: they show that everything works; their numbers mean nothing.**")
    sections = [
        _section(str(data), str(model), part, [name for d, m, name in pictures if (d, m) == (data, model)])
        for (data, model), part in lines.groupby(["data", "model"], sort=False)
    ]
    failures = ["## Runs without a result", "\n".join(_problem_lines(problems))] if len(problems) else []
    return "\n\n".join([*head, *sections, *failures, "## How to read it", _legend(lines)]) + "\n"


def _section(data: str, model: str, lines: pd.DataFrame, pictures: Sequence[str]) -> str:
    done = lines[lines["n"] > 0]
    about = [f"Accuracy: {words.markdown(words.trained(done))}."] if len(done) else ["No run is done."]
    if measured := words.measured(done):
        about.append(f"Speed-up: measured {words.markdown(measured)}.")
    frame = _shown(lines)
    right = {"groups", "budget", "theoretical x"} | {name for name in frame.columns if name.split()[-1] in ("%", "pp")}
    table = frame.to_markdown(
        index=False, disable_numparse=True, colalign=["right" if name in right else "left" for name in frame.columns]
    )
    images = [f"![{words.markdown(name)}]({name})" for name in pictures]
    return "\n\n".join([f"## {words.markdown(data)}, {words.markdown(model)}", " ".join(about), table, *images])


def _shown(lines: pd.DataFrame) -> pd.DataFrame:
    """The table of a section as text, with a column for every condition that differs in it."""
    columns: dict[str, Iterable[str]] = {
        "method": map(words.markdown, lines["settings"]),
        "granularity": map(words.markdown, lines["granularity"]),
        "groups": lines["groups"].astype(str),
        "budget": map(words.budget, lines["budget"], lines["budget_scope"]),
        "FLOPs cut %": lines["macs_cut_pct"].map(words.number),
        "convs cut %": lines["prunable_macs_cut_pct"].map(words.number),
        "params cut %": lines["params_cut_pct"].map(words.number),
        "base top-1 %": map(words.mean_sd, lines["base_top1_mean_pct"], lines["base_top1_sd_pp"]),
        "pruned top-1 %": map(words.mean_sd, lines["top1_mean_pct"], lines["top1_sd_pp"], lines["n"]),
        "drop pp": map(words.mean_sd, lines["drop_mean_pp"], lines["drop_sd_pp"]),
        "speed-up x": lines.apply(words.speedup, axis=1),
        "theoretical x": lines["theoretical_x"].map(words.number),
        "deployed": lines["deployed"],
    }
    varying = {heading: lines[name] for name, heading in _VARYING.items()}
    varying["commit"], varying["timed commit"] = words.commits(lines), words.commits(lines, "timed_")
    varying["data"] = varying["data"].str[:8]
    for heading, values in varying.items():
        if len(words.different(values)) > 1:
            columns[heading] = map(words.markdown, values)
    return pd.DataFrame({name: list(values) for name, values in {**columns, "note": lines["note"]}.items()})


def _problem_lines(problems: pd.DataFrame) -> list[str]:
    """One line a reason, with the runs that it stopped."""
    lines = []
    for problem in problems.to_dict("records"):
        labels, runs = problem["labels"], problem["runs"]
        about = f"{problem['status']} ({runs}): {problem['reason']} — {'; '.join(labels[:LABELS_SHOWN])}"
        rest = f"; and {runs - LABELS_SHOWN} more" if runs > LABELS_SHOWN else ""
        lines.append(f"- {words.markdown(about + rest)}")
    return lines


def _legend(lines: pd.DataFrame) -> str:
    notes = [
        "Accuracies are top-1 of the last epoch: mean ± sample standard deviation (number of runs); no spread is given for "
        "one run. Base is before pruning; the drop is base minus pruned, paired by run, positive is worse.",
        f"{words.FLOPS}.",
        f"{words.SPEEDUP}.",
        "Theoretical is dense MACs / packed MACs, which is not a speed-up. Deployed is what the suite would run: a packed "
        "execution (`groups` or `union`), or `dense` where packing is slower.",
        "`coarse`: the reached cut exceeds the budget by more than one point, so do not compare it as equal. `dirty`: made "
        "from a checkout with uncommitted changes. An empty cell has its reason in the note.",
        "Rows of different commits, devices, numerical settings or data are on lines of their own, never averaged.",
    ]
    if (few := lines.loc[lines["n"] > 0, "n"]).lt(3).any():
        notes.append(f"Some cells have {few.min()} run(s) only; a comparison needs 3, a claim 5.")
    return "\n".join(f"- {note}" for note in notes)
