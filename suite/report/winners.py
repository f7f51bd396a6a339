"""Best settings of each method in a tuning grid, by mean validation accuracy.

A trial counts when all its runs are done, and trials are compared only when all were run under one set of conditions. Of
equal trials the earlier one wins, so the recipe stays unless another trial is better.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from suite import grids
from suite.files import write_text
from suite.report import columns, frames, words
from suite.report.columns import further_columns
from suite.report.tables import notes

TRIAL = ["data", "model", "method"]


def report(name: str, results: Path, smoke: bool = False) -> tuple[list[Path], list[str]]:
    """Write winners.csv and winners.md of a tuning grid; return paths and remarks.

    Raises ValueError when the grid is measured on the test set, when no trial is complete, or when those of a method differ in
    their conditions.
    """
    grid = grids.load(name)
    values = frames.load(grid, results, smoke).runs
    if set(values["split"]) != {"tuning"}:
        raise ValueError(f"the grid {name} reads the test set; settings are chosen where split='tuning' only")
    best = winners(values)
    if best.empty:
        raise ValueError(f"no trial of {name} is complete; `python -m suite.launch --grid {name}` goes on with them")
    folder = results / grids.folder_name(name)
    paths = [folder / "winners.csv", folder / "winners.md"]
    write_text(paths[0], columns.csv(best, further_columns.WINNERS))
    write_text(paths[1], _document(grid.title, best))
    missing = int((best["trials"] - best["complete"]).sum())
    return paths, [f"{missing} trials are not complete and were left out"] if missing else []


def winners(runs: pd.DataFrame) -> pd.DataFrame:
    """Return one line for each method with a complete trial.

    `first` is its first trial: the method's recipe without winners.

    Raises ValueError when the complete trials of a method differ in commit, device or another condition.
    """
    runs = runs.assign(done=runs["status"] == "done", commit=runs["commit"].fillna(""))
    trials = runs.groupby([*TRIAL, "series", "settings"], sort=False).agg(
        complete=("done", "all"),
        top1_mean_pct=("pruned_top1_pct", "mean"),
        top1_sd_pp=("pruned_top1_pct", "std"),
        n=("pruned_top1_pct", "count"),
        base_n=("base_key", "nunique"),
        finetune_schedule=("finetune_schedule", "first"),
        commit=("commit", lambda values: " ".join(words.different(values))),
        rows=("key", " ".join),
    )
    trials = trials.reset_index()
    lines = []
    for _, part in trials.groupby(TRIAL, sort=False):
        complete = part[part["complete"]]
        if len(complete):
            _check(runs[runs["series"].isin(complete["series"])])
            first = part.iloc[0]
            line = complete.nlargest(1, "top1_mean_pct").assign(trials=len(part), complete=len(complete))
            lines.append(line.assign(first_top1_mean_pct=first["top1_mean_pct"] if first["complete"] else float("nan")))
    best = pd.concat(lines) if lines else pd.DataFrame(columns=columns.names(further_columns.WINNERS))
    return best.assign(gain_pp=best["top1_mean_pct"] - best["first_top1_mean_pct"])[
        columns.names(further_columns.WINNERS)
    ].reset_index(drop=True)


def _check(runs: pd.DataFrame) -> None:
    differing = {name: values for name in frames.CONDITIONS if len(values := words.different(runs[name])) > 1}
    if differing:
        about = " and ".join(str(runs[name].iloc[0]) for name in ("method", "data", "model"))
        differences = "; ".join(f"{name} {' and '.join(values)}" for name, values in differing.items())
        raise ValueError(
            f"the trials of {about} were run under different conditions ({differences}); winners are chosen "
            "among equals only: move the rows of all but one away and launch the grid again"
        )


def _document(title: str, best: pd.DataFrame) -> str:
    about = (
        "By the mean accuracy on the validation part; no test image was read. The gain over the recipe is the gain of the best "
        "of several noisy trials, so it is too large. Rows and commits are in winners.csv."
    )
    sections = [
        f"## {data}, {model}\n\n{columns.markdown(part, further_columns.WINNERS)}"
        for data, model, part in frames.by_network(best)
    ]
    under = notes.markdown(notes.of_methods(best["method"]))
    return (
        "\n\n".join([f"# {words.markdown(title)}: the best settings of each method", about, *sections, *under]) + "\n"
    )
