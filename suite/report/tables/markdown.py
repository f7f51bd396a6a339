"""`table.md`: tables of a grid, a section for each network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from suite.report import columns, words
from suite.report.columns import further_columns, table_columns
from suite.report.content import Content
from suite.report.frames import by_network, of_network
from suite.report.statistics import not_faster, pairs, reproduction, steps
from suite.report.statistics.fairness import LEVELS
from suite.report.tables import notes, timings

LABELS_SHOWN = 5


def document(content: Content, pictures: Sequence[tuple[str, str, str]]) -> str:
    """Return `table.md`. `pictures` are (data, model, file name)."""
    grid, lines, problems = content.grid, content.lines, content.problems
    head = [f"# {words.markdown(grid.title)}", words.markdown(grid.about), words.counts(lines)]
    if content.other_code:
        head.append(f"**{content.other_code}.**")
    if content.smoke:
        head.insert(1, "**Smoke runs: they test the installation; their numbers are no results.**")
    sections = []
    for data, model, part in by_network(lines):
        images = [file for d, m, file in pictures if (d, m) == (data, model)]
        sections += [
            _section(data, model, part, images, median=(data, model) in content.medians),
            *_undecidable(content.undecidable, data, model),
            *_by_timing(of_network(content.latency, data, model)),
            *_reference(of_network(content.reference, data, model)),
            *_comparisons(of_network(content.compared, data, model)),
            *_reproductions(of_network(content.reproduced, data, model)),
        ]
    if len(content.not_faster):
        table = columns.markdown(content.not_faster, further_columns.NOT_FASTER)
        sections += [f"## {not_faster.TITLE}", f"{content.not_faster_counts}: {not_faster.ABOUT}.", table]
    if len(content.steps):
        sections += [f"## {steps.TITLE}", f"{steps.ABOUT}.", columns.markdown(content.steps, further_columns.STEPS)]
    failures = ["## Runs without a result", "\n".join(_problem_lines(problems))] if len(problems) else []
    about = notes.markdown(notes.of_methods(lines["method"]))
    return "\n\n".join([*head, *sections, *failures, *about, "## How to read it", _legend(lines)]) + "\n"


def _undecidable(reasons: Mapping[tuple[str, str], str], data: str, model: str) -> list[str]:
    reason = reasons.get((data, model), "")
    return [f"- **{words.markdown(reason)}**"] if reason else []


def _by_timing(latency: pd.DataFrame) -> list[str]:
    """Return the speed-ups of a network with several timings, a column for each."""
    table = timings.table(latency)
    if table.empty:
        return []
    return [f"### {timings.TITLE}", columns.markdown(table, table_columns.by_timing(table))]


def _section(data: str, model: str, lines: pd.DataFrame, pictures: Sequence[str], median: bool) -> str:
    done = lines[lines["n"] > 0]
    about = [f"Accuracy: {words.markdown(words.trained(done))}."] if len(done) else ["No run is done."]
    if measured := words.measured(done):
        about.append(f"Speed-up: measured {words.markdown(measured)}.")
    images = [f"![{words.markdown(name)}]({name})" for name in pictures]
    table = columns.markdown(lines, table_columns.table(median=median))
    return "\n\n".join([f"## {words.markdown(data)}, {words.markdown(model)}", " ".join(about), table, *images])


def _reference(reference: pd.DataFrame) -> list[str]:
    """Return the section of the reference rows, apart from the table above."""
    if reference.empty:
        return []
    about = f"{words.markdown(words.about_reference(reference))}. Accuracy: {words.markdown(words.trained(reference))}."
    return ["### Reference rows", about, columns.markdown(reference, table_columns.table(median=False))]


def _comparisons(compared: pd.DataFrame) -> list[str]:
    """Return the warnings that belong under the table, and the methods told apart."""
    if compared.empty:
        return []
    warnings = "\n".join(f"- **{words.markdown(text)}**" for text in pairs.warnings(compared))
    shown = pairs.shown(compared)
    table = (
        ["### Methods told apart", f"{words.PAIRS}.", columns.markdown(shown, further_columns.PAIRS)]
        if len(shown)
        else []
    )
    return [*([warnings] if warnings else []), *table, *_listed(pairs.meanings(compared))]


def _listed(texts: Sequence[str]) -> list[str]:
    return ["\n".join(f"- {words.markdown(text)}" for text in texts)] if texts else []


def _reproductions(reproduced: pd.DataFrame) -> list[str]:
    if reproduced.empty:
        return []
    shown, meanings = reproduction.shown(reproduced)
    table = columns.markdown(shown, further_columns.REPRODUCTION)
    return ["### Published numbers beside ours", table, *_listed(meanings)]


def _problem_lines(problems: pd.DataFrame) -> list[str]:
    """Return one line for each reason, with labels of the stopped runs."""
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
        "Accuracies are top-1 of the last epoch: mean ± sample standard deviation (number of runs). One run has no spread. "
        f"Base is before pruning. {words.DROPS}.",
        f"{words.COUNTS}.",
        f"{words.FLOPS}.",
        f"{words.SPEEDUP}.",
        "Theoretical is dense MACs / packed MACs; it is not a speed-up. Deployed is the execution that the suite would run: a "
        "packed one (`groups` or `union`), or `dense` if packing is slower. Device is the device of the timing; if the "
        "network was not timed, it is the device of the training.",
        f"Fairness follows from the rows of a data set, model and budget: {levels}. Each level includes those below it. "
        "`alone`: there is no other method; `coarse`: not to be compared.",
        "Epochs are those of base network + learning + fine-tuning; `public` base networks were downloaded trained, `init`: "
        "trained from initial weights. An epoch of a schedule with `epoch_images` has that many images. Plain epochs count a "
        "learning epoch as many times as its steps cost more than plain ones.",
        f"{words.DOSE}.",
        "`coarse`: the reached cut exceeds the budget by more than 2 % of the MACs that the budget leaves, so it is not compared "
        "as equal; for a budget of time: the measured share misses the budget by more than 2 points. `dirty`: made "
        "from a checkout with uncommitted changes. An empty cell has its reason in the note.",
        f"{words.NOTES}.",
        f"{words.NEVER_AVERAGED}.",
        f"Methods told apart: {words.PAIRS_METHOD}.",
        f"Published numbers: {words.REPRODUCTION}.",
    ]
    if (few := lines.loc[lines["n"] > 0, "n"]).lt(3).any():
        notes.append(f"Some cells have only {few.min()} run(s); a comparison needs 3, a claim 5.")
    return "\n".join(f"- {note}" for note in notes)
