"""Tables as files: CSV for programs, `table.md` for people. Those for papers are in `latex`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd

from suite.report import not_faster, pairs, reproduction, words
from suite.report.content import Content
from suite.report.fairness import LEVELS
from suite.report.frames import CONDITIONS, EPOCHS, SCHEDULES, TIMED_CONDITIONS, TIMING

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
    "cpu_speedup_x",
    "flags",
]
TABLE_COLUMNS = [
    *("data", "model", "split", "weights", "method", "settings", "granularity", "groups", "budget", "budget_scope"),
    *("runs", "n", "missing", "failed", "diverged"),
    *("base_n", "base_top1_mean_pct", "base_top1_sd_pp", "top1_mean_pct", "top1_sd_pp", "top1_t95_pp"),
    *("top1_median_pct", "selection", "drop_mean_pp", "drop_sd_pp"),
    *("macs_cut_pct", "prunable_macs_cut_pct", "params_cut_pct", "macs", "params", "coarse"),
    *_SPEEDUP,
    *TIMING,
    *TIMED_CONDITIONS,
    *("fairness_level", "fairness"),
    *EPOCHS,
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
    "tf32": "TF32",
    "data_sha256": "data",
    "timed_device": "timed on",
    "threads": "threads",
}
"""Columns that the Markdown table has only where their values differ, and their headings there."""


def csv(lines: pd.DataFrame, columns: Sequence[str]) -> str:
    """These columns as CSV; what is absent is empty."""
    return lines[list(columns)].to_csv(index=False, float_format="%.10g", lineterminator="\n")


def document(content: Content, pictures: Sequence[tuple[str, str, str]]) -> str:
    """`table.md`: a section for every data set and model. `pictures` are (data, model, file name)."""
    grid, lines, problems = content.grid, content.lines, content.problems
    compared, reproduced = content.compared, content.reproduced
    head = [f"# {words.markdown(grid.title)}", words.markdown(grid.about), words.counts(lines)]
    if content.smoke:
        head.insert(1, "**Smoke runs: they show that everything works; their numbers mean nothing.**")
    sections, medians = [], reproduction.medians(reproduced)
    for (data, model), part in lines.groupby(["data", "model"], sort=False):
        images = [name for d, m, name in pictures if (d, m) == (data, model)]
        section = _section(str(data), str(model), part, images, median=(data, model) in medians)
        here = [frame[(frame["data"] == data) & (frame["model"] == model)] for frame in (compared, reproduced)]
        sections += [section, *_comparisons(here[0]), *_reproductions(here[1])]
    if len(content.not_faster):
        about = f"{content.not_faster_counts}: {not_faster.ABOUT}."
        sections += [f"## {not_faster.TITLE}", about, markdown(not_faster.shown(content.not_faster))]
    failures = ["## Runs without a result", "\n".join(_problem_lines(problems))] if len(problems) else []
    return "\n\n".join([*head, *sections, *failures, "## How to read it", _legend(lines)]) + "\n"


def _section(data: str, model: str, lines: pd.DataFrame, pictures: Sequence[str], median: bool) -> str:
    done = lines[lines["n"] > 0]
    about = [f"Accuracy: {words.markdown(words.trained(done))}."] if len(done) else ["No run is done."]
    if measured := words.measured(done):
        about.append(f"Speed-up: measured {words.markdown(measured)}.")
    images = [f"![{words.markdown(name)}]({name})" for name in pictures]
    table = markdown(shown(lines, median=median))
    return "\n\n".join([f"## {words.markdown(data)}, {words.markdown(model)}", " ".join(about), table, *images])


def markdown(frame: pd.DataFrame) -> str:
    """A frame of text as a Markdown table. Intervals keep their brackets; everything that a user named is escaped."""
    plain = ("%", "pp", "x")
    escaped = frame.apply(
        lambda column: column if str(column.name).split()[-1] in plain else column.map(words.markdown)
    )
    return escaped.to_markdown(
        index=False, disable_numparse=True, colalign=["right" if is_number(name) else "left" for name in frame.columns]
    )


def is_number(heading: str) -> bool:
    """Does the column with this heading hold numbers?"""
    known = ("groups", "budget", "theoretical x", "seeds needed", "P(improvement)", "p (Holm)")
    return heading in known or heading.split()[-1] in ("%", "pp", "share")


def shown(lines: pd.DataFrame, *, median: bool = False) -> pd.DataFrame:
    """The table of a section as text, with a column for every condition that differs in it, and on request the median."""
    columns: dict[str, Iterable[str]] = {
        "method": lines["settings"],
        "granularity": lines["granularity"],
        "groups": lines["groups"].astype(str),
        "budget": map(words.budget, lines["budget"], lines["budget_scope"]),
        "FLOPs cut %": lines["macs_cut_pct"].map(words.number),
        "convs cut %": lines["prunable_macs_cut_pct"].map(words.number),
        "params cut %": lines["params_cut_pct"].map(words.number),
        "base top-1 %": map(words.mean_sd, lines["base_top1_mean_pct"], lines["base_top1_sd_pp"]),
        "pruned top-1 %": map(words.mean_sd, lines["top1_mean_pct"], lines["top1_sd_pp"], lines["n"]),
        **({"median %": lines["top1_median_pct"].map(words.number)} if median else {}),
        "drop pp": map(words.mean_sd, lines["drop_mean_pp"], lines["drop_sd_pp"]),
        "speed-up x": lines.apply(words.speedup, axis=1),
        "theoretical x": lines["theoretical_x"].map(words.number),
        "deployed": lines["deployed"],
        **({"doubtful": lines["flags"]} if lines["flags"].ne("").any() else {}),
        "device": lines["timed_device"].where(lines["timed_device"] != "", lines["device"]),
        "fairness": lines["fairness_level"]
        .map(lambda level: words.number(level, 0))
        .where(lines["fairness_level"].notna(), lines["fairness"]),
        "epochs": lines.apply(words.epochs, axis=1),
    }
    varying = {heading: lines[name] for name, heading in _VARYING.items()}
    varying["commit"], varying["timed commit"] = words.commits(lines), words.commits(lines, "timed_")
    varying["data"] = varying["data"].str[:8]
    for heading, values in varying.items():
        if len(words.different(values)) > 1:
            columns[heading] = values
    return pd.DataFrame({name: list(values) for name, values in {**columns, "note": lines["note"]}.items()})


def _comparisons(compared: pd.DataFrame) -> list[str]:
    """The warnings that belong under the table, and what the runs tell apart."""
    if compared.empty:
        return []
    warnings = "\n".join(f"- **{words.markdown(text)}**" for text in pairs.warnings(compared))
    what = "### Methods told apart", "The method with the highest mean of each budget against each other one."
    told = pairs.shown(compared)
    return [*([warnings] if warnings else []), *([*what, markdown(told)] if len(told) else [])]


def _reproductions(reproduced: pd.DataFrame) -> list[str]:
    """Published numbers beside ours."""
    return ["### Published numbers beside ours", markdown(reproduction.shown(reproduced))] if len(reproduced) else []


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
    levels = words.levels(LEVELS)
    notes = [
        "Accuracies are top-1 of the last epoch: mean ± sample standard deviation (number of runs); no spread is given for "
        "one run. Base is before pruning; the drop is base minus pruned, paired by run, positive is worse.",
        f"{words.FLOPS}.",
        f"{words.SPEEDUP}.",
        "Theoretical is dense MACs / packed MACs, which is not a speed-up. Deployed is what the suite would run: a packed "
        "execution (`groups` or `union`), or `dense` where packing is slower. Device is where the speed-up was measured, or "
        "where the network was trained when it was not timed.",
        f"Fairness is decided from the rows of a data set, model and budget: {levels}. Each level has all that those below it "
        "have. `alone`: no other method is there; `coarse`: not to be compared.",
        "Epochs are those spent on base network + learning + fine-tuning; `public` base networks came trained.",
        "`coarse`: the reached cut exceeds the budget by more than one point, so do not compare it as equal. `dirty`: made "
        "from a checkout with uncommitted changes. An empty cell has its reason in the note.",
        "Rows of different commits, devices, numerical settings or data are on lines of their own, never averaged.",
        "Methods told apart: runs that share seed and base weights are compared pair by pair (paired t test, else Welch's); "
        "p-values are corrected by Holm over all pairs of methods at a budget, not only those shown; intervals are not. "
        "P(improvement) is how often a run of the first beats a run of the second. Seeds needed are those with which a t test "
        "would find the difference four times out of five, if it and its spread are as seen here. Coarse runs take no part.",
        f"Published numbers: {words.REPRODUCTION}.",
    ]
    if (few := lines.loc[lines["n"] > 0, "n"]).lt(3).any():
        notes.append(f"Some cells have {few.min()} run(s) only; a comparison needs 3, a claim 5.")
    return "\n".join(f"- {note}" for note in notes)
