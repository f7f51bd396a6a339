"""Curves of learning and fine-tuning from the logs of the stages.

Each number that the log has for an epoch is a panel, the method's own numbers first; constant ones are in the caption.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypedDict

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from suite import grids, jsonfile, records
from suite.report import words
from suite.report.figures import looks, style
from suite.report.figures.looks import Look
from suite.report.frames import CONDITIONS
from suite.report.statistics.cells import UNLEARNED
from suite.stages import Learned, Pruned

log = logging.getLogger(__name__)

PANEL_IN = (2.55, 1.95)
LEGEND_IN = 1.9
COLUMNS = 3
LOG_FROM_X = 30
"""A panel of positive numbers whose largest is so many times the smallest has a logarithmic axis."""
ABOUT = ["data", "model", "method", "line", "run", "groups"]
"""Columns that identify a row of `Logs`. `line` has the settings that tell the lines of a figure apart."""
CONSTANT = 1e-3
"""A metric that changes by at most this share of its largest value in every run is constant, and has no panel."""
LEAST_SPAN, LEAST_SPAN_PP = 0.05, 1.0
"""Least span of an axis: share of the largest value, points for percentages. Smaller changes are no course to read."""
COMMON = ["loss", "train_top1_pct", "held_out_top1_pct"]
"""Metrics that the training loop logs for each method; `epoch` is the axis, and `lr` follows from the schedule."""
UNITS = {"pct": "%", "pp": "points", "nats": "nats", "share": "share", "ms": "ms", "s": "s", "x": "x"}

ENTROPY, DOSE = "group_entropy_nats", "dose"
_WHILE = {"learning": "while the method learns", "finetuning": "while the packed networks are fine-tuned"}


class _Base(TypedDict):
    data: str
    model: str


class _Settings(TypedDict):
    method: str


class _Schedule(TypedDict):
    epochs: int


class _Stage(TypedDict):
    base: _Base
    settings: _Settings
    schedule: _Schedule


class LearnedDone(TypedDict):
    """Entries of a learned stage's `done.json` that its curves need."""

    label: str
    stage: _Stage


Epoch = dict[str, float | None]
"""Line of a log."""
Logs = pd.DataFrame
"""One row an epoch of a learned stage: `ABOUT`, `epoch`, and the log's numbers."""


def report(name: str, results: Path, smoke: bool = False) -> tuple[list[Path], list[str]]:
    """Draw a learned stage (by key) or all of a grid (by name).

    Returns paths and remarks. Stages of no epochs have no curves.

    Raises ValueError if there is no such stage or grid, if the grid's methods do not learn, or if no log exists yet.
    """
    if re.fullmatch(r"[a-z]+-[0-9a-f]{12}", name):
        logs = of_stage(name, results)
        if logs.empty:
            return [], [f"{name} learns for 0 epochs: there is nothing to draw"]
        return _write(logs, results / "learning", name), []
    if re.match(r"(base|learned|pruned|timed)-", name):
        raise ValueError(
            f"{name!r} is no key of a stage; a key has 12 hexadecimal digits, such as learned-0123456789ab"
        )
    every = stages_of(name, smoke)
    learned = [stage for stage in every if stage.schedule.epochs]
    if not learned:
        return [], [f"all {len(every)} learned stages of {name} learn for 0 epochs: there is nothing to draw"]
    logs, missing = of_stages(learned, results)
    if logs.empty:
        raise ValueError(f"none of the {len(learned)} learned stages of {name} has finished in {results / 'work'}")
    short = len(every) - len(learned)
    remarks = [f"{short} of {len(every)} learned stages learn for 0 epochs and have no curve"] if short else []
    remarks += [f"{missing} of {len(learned)} learned stages have not finished and are left out"] if missing else []
    paths: list[Path] = []
    for (data, model, method), part in logs.groupby(["data", "model", "method"], sort=False):
        file = words.file_name("learning", str(data), str(model), str(method))
        paths += _write(part, results / grids.folder_name(name), file)
    return paths, remarks


# ---- reading the logs ------------------------------------------------------------------------------------------------


def stages_of(grid_name: str, smoke: bool) -> list[Learned]:
    """Return the learned stages of a grid, each once.

    Raises ValueError if there is none.
    """
    grid = grids.load(grid_name)
    runs = grids.runs_of(grid, smoke=smoke)
    learned = [stage for stage in grids.stages_of(grid, runs, smoke=smoke) if isinstance(stage, Learned)]
    if not learned:
        raise ValueError(f"no method of the grid {grid_name} learns before it prunes, so there are no curves")
    return learned


def of_stages(learned: Sequence[Learned], results: Path) -> tuple[Logs, int]:
    """Return the logs of the finished stages, and the number of unfinished ones."""
    frames = []
    names = _lines(learned)
    for stage, line in zip(learned, names, strict=True):
        folder = records.output_folder(results, stage.key)
        if (folder / "done.json").is_file():
            about: tuple[Any, ...] = (
                stage.base.data,
                stage.base.model,
                stage.settings.method_name(),
                line,
                stage.key,
                stage.settings.groups,
            )
            frames.append(_log(folder).assign(**dict(zip(ABOUT, about, strict=True))))
    return (pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()), len(learned) - len(frames)


def of_stage(key: str, results: Path) -> Logs:
    """Return the log of one learned stage; empty if the stage has no epochs.

    Raises ValueError if it has not finished or is another kind of stage.
    """
    folder = records.output_folder(results, key)
    if not (folder / "done.json").is_file():
        raise ValueError(f"{key} is no finished stage in {results / 'work'}")
    try:
        about = jsonfile.checked(folder / "done.json", LearnedDone)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder / 'done.json'} is not that of a learned stage: {error}") from error
    if not key.startswith(f"{Learned.kind}-"):
        raise ValueError(f"{key} ({about['label']}) is no learned stage: those have keys such as learned-0123456789ab")
    if not about["stage"]["schedule"]["epochs"]:
        return pd.DataFrame()
    base, method = about["stage"]["base"], about["stage"]["settings"]["method"]
    line = about["label"].removeprefix(f"{base['data']}/{base['model']} ")
    values = (base["data"], base["model"], method, line, key, about["stage"]["settings"].get("groups", 1))
    return _log(folder).assign(**dict(zip(ABOUT, values, strict=True)))


def of_finetuning(runs: pd.DataFrame, results: Path) -> Logs:
    """Return the logs of runs that have finished fine-tuning; a `line` for each series.

    `runs` are those of `frames`.

    A run without fine-tuning has none; a damaged log is named and left out.
    """
    learned = []
    for run in runs.to_dict("records"):
        folder = records.output_folder(results, run["key"])
        history = folder / "history.jsonl"
        if not (folder / "done.json").is_file() or (history.is_file() and not history.stat().st_size):
            continue
        at = words.budget(run["budget"], run["budget_scope"])
        about = (run["data"], run["model"], f"fine-tuning at {at}", run["short"], run["key"], 1)
        try:
            learned.append(_log(folder).assign(**dict(zip(ABOUT, about, strict=True))))
        except ValueError as error:
            log.warning("%s", error)
    return pd.concat(learned, ignore_index=True) if learned else pd.DataFrame()


def read_log(folder: Path) -> list[Epoch]:
    """Return the lines of a log. Raises OSError, and ValueError if a line is none."""
    lines = jsonfile.read_lines(folder / "history.jsonl", Epoch, finite=False)
    if any(line.get("epoch") is None for line in lines):
        raise ValueError("a line has no epoch")
    return lines


def _log(folder: Path) -> pd.DataFrame:
    try:
        curve = pd.DataFrame(read_log(folder))
    except (OSError, ValueError) as error:
        raise ValueError(f"the log {folder / 'history.jsonl'} cannot be read: {error}") from error
    if not {"epoch", "loss"} <= set(curve):
        raise ValueError(f"{folder / 'history.jsonl'} is no training log: it has no epochs or no loss")
    return curve


def _lines(learned: Sequence[Learned]) -> list[str]:
    """Return the name of each stage's line: the settings in which the lines differ.

    Stages that differ in what they train on or for how long are never one line.
    """
    together: dict[tuple[str, str, str], list[Learned]] = {}
    for stage in learned:
        together.setdefault(_figure(stage), []).append(stage)
    twins: dict[str, dict[str, str]] = {}
    names = []
    for stage in learned:
        own = _settings(stage)
        settings_of_twins = [_settings(other) for other in together[_figure(stage)]]
        shown = [
            f"{field}={own[field]}" for field in own if any(other[field] != own[field] for other in settings_of_twins)
        ]
        name = words.rounded(", ".join(shown)) or stage.settings.method_name()
        base = dataclasses.replace(stage.base, seed=0)
        same = twins.setdefault(f"{_figure(stage)} {name}", {})
        suffix = f" [schedule {len(same) + 1}]" if same else ""
        names.append(name + same.setdefault(dataclasses.replace(stage, seed=0, base=base).key, suffix))
    return names


def _figure(stage: Learned) -> tuple[str, str, str]:
    """Return data set, model and method: each has a figure of its own."""
    return stage.base.data, stage.base.model, stage.settings.method_name()


def _settings(stage: Learned) -> dict[str, Any]:
    fields = {field.name: getattr(stage.settings, field.name) for field in dataclasses.fields(stage.settings)}
    return {**fields, "budget": f"{stage.budget.share:.2%}" if stage.budget else ""}


# ---- the curves of a grid --------------------------------------------------------------------------------------------


def draw_all(planned: Sequence[Pruned], runs: pd.DataFrame, results: Path, folder: Path) -> list[style.Picture]:
    """Draw the curves of learning and fine-tuning that have two or more epochs.

    The logs are in `results`/work, or in the zoo, `results`/networks. `runs` are those of
    `suite.report.frames`: only logs of runs with a finished row are drawn. Different conditions are separate lines.
    """
    runs = runs.assign(look=looks.of_runs(runs))
    done = runs[runs["status"] == "done"].set_index("key", drop=False)
    # a learning stage of no epochs has an empty log
    with_log = [(run.learned, run.key) for run in planned if run.learned and run.learned.schedule.epochs]
    learned = {stage.key: stage for stage, key in with_log if key in done.index}
    of_stage = {stage.key: key for stage, key in with_log if key in done.index}
    pictures = []
    for logs, kind in (
        (of_stages(list(learned.values()), results)[0], "learning"),
        (of_finetuning(done, results), "finetuning"),
    ):
        if logs.empty:
            continue
        for _, part in logs.groupby(["data", "model", "method"], sort=False):
            if part["epoch"].nunique() > 1:
                rows = done.loc[[of_stage.get(key, key) for key in part["run"]]].set_index(part.index)
                pictures.append(_picture(part, rows, kind, folder))
    return pictures


def _picture(logs: Logs, rows: pd.DataFrame, kind: str, folder: Path) -> style.Picture:
    """Draw one figure; `rows` are the runs of the logs' lines."""
    method = str(logs["method"].iloc[0])
    letters, meanings = words.told_apart(rows, CONDITIONS)
    logs = logs.assign(line=logs["line"] + letters)
    methods = dict(zip(logs["line"], rows["look"], strict=True))
    trained = f"T{words.trained(rows)[1:]}"
    with style.new_figure(entries=0) as figure:
        draw(figure, logs, methods if kind == "finetuning" or len(methods) == 1 else {})
        return style.picture(
            figure,
            folder,
            logs,
            kind=kind,
            further=(words.file_name(method.removeprefix("fine-tuning at ")).rstrip("_"),),
            title=f"{method}: what it learns" if kind == "learning" else f"F{method[1:]}",
            caption_text=" ".join(
                [_caption(logs, kind), *(f"{text}." for text in ("; ".join(meanings), trained) if text)]
            ),
        )


# ---- drawing ---------------------------------------------------------------------------------------------------------


def metrics(logs: Logs) -> list[str]:
    """Return the metrics with a panel: the method's own, then the common ones."""
    every = _metrics(logs)
    return [name for name in every if name not in constant(logs)] or every


def constant(logs: Logs) -> list[str]:
    """Return the metrics that no run changes over its epochs.

    A log of one epoch has none.
    """
    metrics = _metrics(logs)
    if logs["epoch"].nunique() == 1:
        return []
    by_run = logs.groupby("run")[metrics]
    change = (by_run.max() - by_run.min()).max()
    return [name for name in metrics if change[name] <= CONSTANT * logs[name].abs().max()]


def _metrics(logs: Logs) -> list[str]:
    own_metrics = [
        name for name in logs.columns if logs[name].notna().any() and name not in (*ABOUT, *COMMON, "epoch", "lr")
    ]
    return [*own_metrics, *(name for name in COMMON if name in logs.columns)]


def draw(figure: Figure, logs: Logs, of_lines: Mapping[str, Look] = MappingProxyType({})) -> None:
    """Draw a panel for each metric and a line for each setting.

    Thin lines are seeds.

    `figure` is empty (`style.new_figure`), `of_lines` has the look of each line that is a method.
    """
    shown = metrics(logs)
    columns = min(COLUMNS, len(shown))
    rows = math.ceil(len(shown) / columns)
    lines = list(dict.fromkeys(logs["line"]))
    legend = LEGEND_IN if len(lines) > 1 else 0
    figure.set_size_inches(PANEL_IN[0] * columns + legend, PANEL_IN[1] * rows + 0.45)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True).flatten().tolist()
    for axes, metric in zip(panels, shown, strict=False):
        for index, line in enumerate(lines):
            look = of_lines[line].style() if line in of_lines else style.of_series(index)
            _line(axes, logs[logs["line"] == line], metric, look)
        _label(axes, logs, metric, last_row=shown.index(metric) >= len(shown) - columns)
    for axes in panels[len(shown) :]:
        axes.remove()
    if legend:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper")


def unlearned(logs: Logs) -> str:
    """Describe runs whose group entropy ends at ln G; "" without that metric.

    In such a run no group was learned.
    """
    if ENTROPY not in logs or logs[ENTROPY].isna().all():
        return ""
    measured = logs.dropna(subset=[ENTROPY])
    count, every = len(unlearned_runs(logs)), measured["run"].nunique()
    limit = f"ln G = {math.log(measured['groups'].max()):.2f} nats, the entropy of groups drawn uniformly"
    about = [f"Dotted line: {limit}."] if ENTROPY in metrics(logs) else []
    if count:
        about.append(f"Nothing was learned in {count} of {every} runs: their entropy ends at {limit}.")
    if DOSE in logs and logs[DOSE].notna().any():
        dose = logs.dropna(subset=[DOSE]).sort_values("epoch").groupby("run")[DOSE].last()
        about.append(f"Dose at the end: {_range(dose)}.")
    return " ".join(about)


def _range(values: pd.Series) -> str:
    """Format as "0.0021 to 0.0022", or as one number."""
    return " to ".join(dict.fromkeys(map(words.significant, (values.min(), values.max()))))


def unlearned_runs(logs: Logs) -> list[str]:
    """Return the runs whose group entropy ends at ln G."""
    last = logs.dropna(subset=[ENTROPY]).sort_values("epoch").groupby("run").tail(1)
    flat = (last["groups"] > 1) & (last[ENTROPY] >= UNLEARNED * last["groups"].map(math.log))
    return last.loc[flat, "run"].tolist()


def _line(axes: Axes, logs: Logs, metric: str, look: Mapping[str, Any]) -> None:
    """Draw the seeds of one setting, and their mean over the epochs of all seeds."""
    look = {name: look[name] for name in ("color", "linestyle")}
    by_seed = logs.pivot_table(index="epoch", columns="run", values=metric, dropna=False)
    if by_seed.shape[1] > 1:
        axes.plot(by_seed.index, by_seed, color=look["color"], linewidth=0.6, alpha=0.45)
    name = style.label(str(logs["line"].iloc[0]))
    marker = "o" if len(by_seed) == 1 else ""  # a single epoch has no line
    axes.plot(by_seed.index, by_seed.mean(axis=1, skipna=False), **look, linewidth=1.6, marker=marker, label=name)


def _label(axes: Axes, logs: Logs, metric: str, *, last_row: bool) -> None:
    values = logs[metric].dropna()
    title = words_of(metric)
    if metric == ENTROPY:
        limit = math.log(logs["groups"].max())
        axes.axhline(limit, color=style.REFERENCE, linewidth=0.8, linestyle=(0, (1, 2)))
        if count := len(unlearned_runs(logs)):
            axes.set_ylim(0, 1.15 * limit)
            runs = logs["run"].nunique()
            title += ": nothing learned" if count == runs else f": nothing learned in {count} of {runs}"
    if values.min() > 0 and values.max() > LOG_FROM_X * values.min():
        axes.set_yscale("log")
    else:
        low, high = axes.get_ylim()
        least = LEAST_SPAN_PP if metric.endswith("_pct") else LEAST_SPAN * values.abs().max()
        lacking = max(0.0, least - (high - low)) / 2
        axes.set_ylim(low - lacking, high + lacking)
    axes.set_title(title, fontsize=8.5, loc="left")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    axes.tick_params(labelsize=7.5, labelbottom=last_row)
    if last_row:
        axes.set_xlabel("epoch", fontsize=8)


def words_of(metric: str) -> str:
    """Return a metric's name with its unit: "train top-1 (%)" for "train_top1_pct"."""
    name, _, unit = metric.replace("top1", "top-1").rpartition("_")
    return f"{name} ({UNITS[unit]})".replace("_", " ") if name and unit in UNITS else metric.replace("_", " ")


def _caption(logs: Logs, kind: str = "learning") -> str:
    first, runs = logs.iloc[0], logs.groupby("line")["run"].nunique()
    few, many = runs.min(), runs.max()
    name = first["line"] if len(runs) == 1 else first["method"]
    if many > 1:
        n = f"n = {few}" if few == many else f"n = {few} to {many}"
        seeds = f"thick lines: mean over {n} seeds, thin lines: the seeds"
    else:
        seeds = "n = 1 run" if len(runs) > 1 else str(first["run"])
    text = f"{first['data']}, {first['model']}, {name}: {_WHILE[kind]}, from the runs' own logs; {seeds}."
    left_out = [metric for metric in constant(logs) if metric not in metrics(logs)]
    flat = ", ".join(f"{words_of(metric)} at {_range(logs[metric])}" for metric in left_out)
    return " ".join([text, *([f"Constant, without a panel: {flat}."] if flat else []), unlearned(logs)]).strip()


def _write(logs: Logs, folder: Path, name: str) -> list[Path]:
    with style.new_figure(entries=0) as figure:
        draw(figure, logs)
        return list(style.finish(figure, folder / name, _caption(logs)))
