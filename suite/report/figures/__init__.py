"""Figures of a grid, drawn from its rows; a figure without data is not written.

pareto        accuracy over what was saved, beside what others published; `extent` limits its axes
speed         measured speed-up over the theoretical one
comparison    methods against each other: intervals and ranks
orders        accuracy at equal time beside accuracy at equal MACs
ablation      accuracy over the value of one setting; `dose` is that of a penalty
learning      what methods log while they learn and networks while they are fine-tuned, as curves
structure     a pruned network as a picture, from its plan
style         style of all figures; `looks` has colour and mark of each method
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pandas as pd

from suite.contract import Pruner
from suite.report.figures import ablation, comparison, dose, looks, orders, pareto, speed
from suite.report.figures.style import Picture
from suite.report.frames import CONDITIONS, Frames
from suite.report.statistics import published

KINDS = ("pareto", "speed", "intervals", "ranks", "orders", "ablation", "dose")
"""What the files' names begin with."""


def draw_all(
    frames: Frames,
    lines: pd.DataFrame,
    latency: pd.DataFrame,
    compared: pd.DataFrame,
    settings: Mapping[str, Pruner],
    folder: Path,
    reference: pd.DataFrame | None = None,
    home: Path = published.HOME,
) -> list[Picture]:
    """Draw each figure that has data into `folder`; delete other figures there.

    `lines` and `latency` are the tables of `suite.report.statistics.cells`, `compared` is that of `pairs` beside it, `settings`
    the method of every run's key, `home` the folder of published numbers.
    """
    lines = lines.assign(look=looks.of_lines(lines))
    numbers = published.load(home).dropna(subset=["top1_pct"])
    if reference is not None and len(reference):
        numbers = pd.concat([numbers, published.from_reference(reference)])
    pictures = [
        picture
        for (data, model), part in lines.groupby(["data", "model"], sort=False)
        for picture in _of_model(
            part,
            _own(frames.runs, part),
            _own(latency, part),
            compared,
            settings,
            numbers[(numbers["data"] == data) & (numbers["model"] == model)],
            folder,
        )
    ]
    written = {path for picture in pictures for path in picture.paths}
    for kind in KINDS:
        for path in (*folder.glob(f"{kind}_*.png"), *folder.glob(f"{kind}_*.pdf")):
            if path not in written:
                path.unlink()
    return pictures


def _of_model(
    lines: pd.DataFrame,
    runs: pd.DataFrame,
    latency: pd.DataFrame,
    compared: pd.DataFrame,
    settings: Mapping[str, Pruner],
    numbers: pd.DataFrame,
    folder: Path,
) -> Iterator[Picture]:
    """Yield the figures of one network.

    `runs` and `latency` have the `look` of their line.
    """
    if len(measured := speed.points_of(latency)):
        yield speed.draw(measured, folder)
    about = comparison.described(runs)
    if pd.concat([about["base_top1_pct"], about["pruned_top1_pct"]]).nunique() == 1:
        return  # random weights have one accuracy, and nothing to show over it
    shared = comparison.compared(about)
    one_budget = len(about) and about.loc[about["removes"].astype(bool), "budget"].nunique() == 1
    for over in pareto.AXES:
        points = pareto.points_of(lines, over)
        if len(points) and (not one_budget or pareto.spreads(points, over, numbers)):
            yield pareto.draw(points, over, numbers, folder)
    if len(shown := about[about["removes"].astype(bool)] if one_budget else shared):
        yield comparison.draw_intervals(shown, folder)
    if len(ranked := comparison.ranked(shared, compared)):
        yield comparison.draw_ranks(ranked, compared, folder, shared)
    if len(both := orders.points_of(comparison.compared(comparison.described(runs, coarse_too=True)))):
        yield orders.draw(both, folder)
    controls = lines[~lines["removes"].astype(bool) & (lines["n"] > 0)]
    for varied in ablation.find(lines, runs, settings):
        if dose.varies(varied.points):
            yield dose.draw(varied, controls, folder)
        else:
            yield ablation.draw(varied, folder)


def _own(frame: pd.DataFrame, lines: pd.DataFrame) -> pd.DataFrame:
    """Select done runs or latencies of these lines; add look and name."""
    if "line" in frame:
        own = lines.drop_duplicates("line")[["line", "short", "series", "look", "base_n"]]
        both = frame.merge(own, on="line")
        return both.assign(bases=both[["base_n", "speedup_n"]].min(axis=1))
    keys = ["series", *CONDITIONS]
    done = frame[frame["status"] == "done"]
    return done.merge(lines.drop_duplicates(keys)[[*keys, "look"]], on=keys)
