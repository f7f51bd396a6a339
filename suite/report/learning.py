"""What methods do while they learn, as curves from the logs of their learned stages.

The log says what there is to see: every number that it has for an epoch is a panel, the method's own first.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from suite import grids
from suite.contract import Pruner
from suite.report import style, words
from suite.stages import Learned, name_of

PANEL_IN = (2.55, 1.95)
LEGEND_IN = 1.9
COLUMNS = 3
LOG_FROM_X = 30
"""A panel of positive numbers whose largest is so many times the smallest has a logarithmic axis."""
ABOUT = ["data", "model", "method", "line", "seed"]
"""Columns that say whose numbers a row of `Logs` has. `line` is the method with the settings that tell lines apart."""
COMMON = ["loss", "train_top1_pct", "held_out_top1_pct"]
"""What the training loop logs for every method; `epoch` is the axis, and `lr` follows from the schedule."""
UNITS = {"pct": "%", "pp": "points", "nats": "nats", "share": "share", "ms": "ms", "s": "s", "x": "x"}

Logs = pd.DataFrame
"""One row an epoch of a learned stage: `ABOUT`, `epoch`, and the log's numbers."""


def report(name: str, results: Path, smoke: bool = False) -> tuple[list[Path], list[str]]:
    """Write the figures of a learned stage (by its key) or of all those of a grid (by its name); paths and remarks.

    Raises ValueError when there is neither such a stage nor such a grid, when the grid's methods do not learn, or when no
    log is there yet.
    """
    if re.fullmatch(r"[a-z]+-[0-9a-f]{12}", name):
        return _write(of_stage(name, results), results / "learning", name), []
    learned = stages_of(name, smoke)
    logs, missing = of_stages(learned, results)
    if logs.empty:
        raise ValueError(f"none of the {len(learned)} learned stages of {name} has finished in {results / 'work'}")
    remarks = [f"{missing} of {len(learned)} learned stages have not finished and are left out"] if missing else []
    paths: list[Path] = []
    for (data, model, method), part in logs.groupby(["data", "model", "method"], sort=False):
        file = words.file_name("learning", str(data), str(model), str(method))
        paths += _write(part, results / grids.folder_name(name), file)
    return paths, remarks


# ---- reading the logs ------------------------------------------------------------------------------------------------


def stages_of(grid_name: str, smoke: bool) -> list[Learned]:
    """The learned stages of a grid, each once. Raises ValueError when it has none."""
    grid = grids.load(grid_name)
    runs = grids.runs_of(grid, smoke=smoke)
    found = [stage for stage in grids.stages_of(grid, runs, smoke=smoke) if isinstance(stage, Learned)]
    if not found:
        raise ValueError(f"no method of the grid {grid_name} learns before it prunes, so there are no curves")
    return found


def of_stages(learned: Sequence[Learned], results: Path) -> tuple[Logs, int]:
    """The logs of those stages that have finished, and how many have not."""
    frames = []
    names = _lines(learned)
    for stage, line in zip(learned, names, strict=True):
        folder = results / "work" / stage.key
        if (folder / "done.json").is_file():
            about = (stage.base.data, stage.base.model, name_of(stage.settings), line, stage.seed)
            frames.append(_log(folder).assign(**dict(zip(ABOUT, about, strict=True))))
    return (pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()), len(learned) - len(frames)


def of_stage(key: str, results: Path) -> Logs:
    """The log of one learned stage. Raises ValueError when it has not finished or is another kind of stage."""
    folder = results / "work" / key
    if not (folder / "done.json").is_file():
        raise ValueError(f"{key} is no finished stage in {results / 'work'}")
    about = json.loads((folder / "done.json").read_text())
    if not key.startswith(f"{Learned.kind}-"):
        raise ValueError(f"{key} ({about['label']}) is no learned stage: those have keys such as learned-0123456789ab")
    stage = about["stage"]
    values = (stage["base"]["data"], stage["base"]["model"], stage["settings"]["method"], about["label"], stage["seed"])
    return _log(folder).assign(**dict(zip(ABOUT, values, strict=True)))


def _log(folder: Path) -> pd.DataFrame:
    try:
        lines = (folder / "history.jsonl").read_text().splitlines()
        return pd.DataFrame([json.loads(line) for line in lines])
    except (OSError, ValueError) as error:
        raise ValueError(f"the log {folder / 'history.jsonl'} cannot be read: {error}") from error


def _lines(learned: Sequence[Learned]) -> list[str]:
    """For each stage the name of the line that it is a seed of: the settings that differ, and the schedule where it does."""
    fields: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for stage in learned:
        fields.setdefault(_panel(stage), []).append(_settings(stage))
    names = []
    for stage in learned:
        same, own = fields[_panel(stage)], _settings(stage)
        shown = [f"{name}={value}" for name, value in own.items() if any(other[name] != value for other in same)]
        names.append(name_of(stage.settings) + (f"({', '.join(shown)})" if shown else ""))
    return names


def _panel(stage: Learned) -> tuple[str, str, str]:
    return stage.base.data, stage.base.model, name_of(stage.settings)


def _settings(stage: Learned) -> dict[str, Any]:
    """All that tells lines apart, seeds not among it."""
    base = stage.base
    return {
        **_fields(stage.settings),
        "budget": f"{stage.budget.share:.2%}" if stage.budget else "",
        "learning": stage.schedule,
        "base": dataclasses.replace(base, seed=0, schedule=base.schedule),
    }


def _fields(settings: Pruner) -> dict[str, Any]:
    return {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
