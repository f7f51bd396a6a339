"""Rows as pandas frames, joined with the runs of a grid.

A *series* is all that a line of a table or figure shares but the budget and the seed: data, model, base network, method
with its settings, schedules. A *cell* is a series at a budget; its runs differ in their seeds only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from suite import records
from suite.grids import Grid, runs_of, stages_of
from suite.measure import claim, energy
from suite.report import words
from suite.run import code
from suite.schedule import Schedule
from suite.stages import Pruned, Timed, TimedSteps, describe

CONDITIONS = ["commit", "dirty", "device", "tf32", "data_sha256"]
"""Accuracies of rows that differ in one of these are never averaged. `device` is that of whole blocks (`_by_block`)."""
TIMED_CONDITIONS = ["timed_device", "threads", "leg", "timed_commit", "timed_dirty", "reference"]
"""Nor are latencies of rows that differ in one of these, or in the timing of the grid (`TIMING`)."""
TIMING = ["batch", "precision", "layout", "protocol"]
SCHEDULES = ["base_schedule", "learning_schedule", "finetune_schedule"]
EPOCHS = ["base_epochs", "learning_epochs", "finetune_epochs"]
FACTS = ["dose", "group_entropy_nats", "sparse_share"]
"""Numbers of a learned state in provenance (`Pruner.facts`)."""
FROM_ABSTRACT = " (from the abstract)"
"""Mark behind the name of a method that is known from its paper's abstract alone."""

_PRUNED = [
    "key",
    "status",
    "reason",
    "base_top1_pct",
    "pruned_top1_pct",
    "macs",
    "macs_cut_pct",
    "prunable_macs_cut_pct",
    "params",
    "params_cut_pct",
    "time_cut_pct",
    "predicted_time_cut_pct",
    "coarse",
    "selection",
    *EPOCHS,
]
_TIMED = [
    "key",
    "status",
    "reason",
    "device",
    "leg",
    "dense_ms",
    "packed_ms",
    "speedup_x",
    "speedup_low_x",
    "speedup_high_x",
    "theoretical_x",
    "null_x",
    "null_low_x",
    "null_high_x",
    "cpu_speedup_x",
    "cpu_speedup_low_x",
    "cpu_speedup_high_x",
    "deployed",
    "flags",
]
ENERGY = ["dense_mj", "packed_mj", "energy_x", "energy_low_x", "energy_high_x"]
_ENERGY = ["dense_mj", "packed_mj", "x", "low_x", "high_x"]
"""The same in a row's `energy`."""
_NUMBERS = [
    *ENERGY,
    *(name for name in (*_PRUNED, *_TIMED) if name.endswith(("_pct", "_x", "_ms", "macs", "params", "_epochs"))),
    *FACTS,
]


@dataclass(frozen=True)
class Frames:
    """Runs and latency measurements of a grid, done or not.

    The `status` of a run without a row is "missing".
    """

    runs: pd.DataFrame
    timings: pd.DataFrame
    rows: Mapping[str, records.Row]
    """Rows by key."""
    unreadable: tuple[Path, ...] = ()
    """Unreadable row files; their runs count as missing."""


def load(grid: Grid, results: Path, smoke: bool) -> Frames:
    """Join the grid's runs with the rows in `results`/rows.

    Raises ValueError when a row of a smoke run lies among real ones, or the other way round.
    """
    runs = runs_of(grid, smoke=smoke)
    measured = [stage for stage in stages_of(grid, runs, smoke=smoke) if isinstance(stage, Timed)]
    timed = [stage for stage in measured if not isinstance(stage, TimedSteps)]
    keys = [stage.key for stage in (*runs, *measured)]
    rows = records.read_all(results, keys)
    without = set(keys) - {row.key for row in rows}
    if wrong := [row for row in rows if row.smoke != smoke]:
        kind = "smoke" if wrong[0].smoke else "real"
        raise ValueError(
            f"{records.rows_folder(results) / wrong[0].key}.json is a {kind} row among {'smoke' if smoke else 'real'} "
            f"ones ({len(wrong)} such rows); they are never mixed: move it away"
        )
    runs_frame, timed_frame = _runs(grid, runs), _timings(timed)
    pruned_rows = [row for row in rows if isinstance(row, records.PrunedRow)]
    series = dict(zip(runs_frame["key"], runs_frame["series"], strict=True))
    pruned_rows = _marked(pruned_rows, [series[row.key] for row in pruned_rows])
    timed_rows = [row for row in rows if isinstance(row, records.TimedRow)]
    joined = _joined(runs_frame, _pruned_rows(pruned_rows, runs), ["base_top1_pct", "pruned_top1_pct", "macs_cut_pct"])
    joined["base_weights"] = joined["base_sha256"].replace("unknown", None).fillna(joined["base_key"])
    joined["device"] = _by_block(joined)
    return Frames(
        runs=joined.assign(
            plain_epochs=_plain_epochs(joined), other_code=joined["key"].isin(_of_other_code(grid, runs, pruned_rows))
        ),
        timings=_with_claims(
            _joined(timed_frame, _timed_rows(timed_rows), ["speedup_x", "speedup_low_x", "speedup_high_x"])
        ),
        rows={row.key: row for row in rows},
        unreadable=tuple(records.unreadable(results, [key for key in keys if key in without])),
    )


def by_network(frame: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Yield data set, model and lines of each network, in order of appearance."""
    for (data, model), part in frame.groupby(["data", "model"], sort=False):
        yield str(data), str(model), part


def of_network(frame: pd.DataFrame, data: str, model: str) -> pd.DataFrame:
    """Return the lines of one data set and model."""
    return frame[(frame["data"] == data) & (frame["model"] == model)]


# ---- runs of the grid ------------------------------------------------------------------------------------------------


def _runs(grid: Grid, runs: Sequence[Pruned]) -> pd.DataFrame:
    """Return one line for each run, in the grid's order."""
    frame = pd.DataFrame([{**_about(run), "declared": grid.declares(run)} for run in runs])
    numbers: dict[tuple[object, ...], int] = {}
    frame["series"] = [numbers.setdefault(_series(run), len(numbers)) for run in runs]
    frame["cell"] = frame.groupby(["series", "budget", "budget_scope"], sort=False).ngroup()
    frame = frame.join(_names(runs, frame), on="series")
    return frame.drop_duplicates("key")


def _series(run: Pruned) -> tuple[object, ...]:
    base = run.base
    return base.data, base.model, base.weights, base.split, run.described, run.budget.round_to, *_schedules(run)


def _schedules(run: Pruned) -> tuple[Schedule | None, ...]:
    return run.base.schedule, run.learning if run.settings.learns else None, run.finetune


def _about(run: Pruned) -> dict[str, Any]:
    base = run.base
    return {
        "key": run.key,
        "label": run.label,
        "data": base.data,
        "model": base.model,
        "split": base.split,
        "weights": base.weights,
        "method": run.method,
        "granularity": run.settings.granularity,
        "start": run.settings.start,
        "evidence": run.settings.evidence,
        "removes": run.settings.removes,
        "step_cost": run.settings.step_cost,
        "groups": run.settings.groups,
        "fields": fields(run),
        "budget": run.budget.share,
        "budget_scope": run.budget.scope,
        "seed": run.seed,
        "base_key": base.key,
        **dict(zip(SCHEDULES, map(_schedule, _schedules(run)), strict=True)),
        "finetune_recipe": _schedule(run.finetune, without=("epochs",)),
    }


def fields(run: Pruned) -> str:
    """Format all settings of the method, defaults too, as "n=4, ranking=layer"."""
    return ", ".join(f"{name}={value}" for name, value in vars(run.settings).items())


def _schedule(schedule: Schedule | None, without: Sequence[str] = ()) -> str:
    """Format the schedule's settings that differ from its defaults; "" for None."""
    if schedule is None:
        return ""
    return ", ".join(
        f"{field.name}={getattr(schedule, field.name)}"
        for field in dataclasses.fields(schedule)
        if getattr(schedule, field.name) != field.default and field.name not in without
    )


def _names(runs: Sequence[Pruned], frame: pd.DataFrame) -> pd.DataFrame:
    """Return `settings` and `short` of each series.

    `settings` is unique in its data set and model; `short` has only the settings that tell the variants of a method apart.

    Equal settings are told apart by their epochs of fine-tuning, or by a number where those are equal too.
    """
    first = frame.drop_duplicates("series")
    names = first[["series", "data", "model", "method"]].copy()
    names["pruner"] = pd.Series({i: _settings(runs[i]) for i in first.index}, dtype="object")
    names["settings"] = [words.rounded(runs[i].described) for i in first.index]
    names["short"] = ""
    for _, same in names.groupby(["data", "model", "method"], sort=False):
        defaults = {field.name: field.default for field in dataclasses.fields(runs[same.index[0]].settings)}
        names.loc[same.index, "short"] = _short(same["method"].iloc[0], list(same["pruner"]), defaults)
    names["epochs"] = [runs[i].finetune.epochs for i in first.index]
    names["round_to"] = [runs[i].budget.round_to for i in first.index]
    twins = names.groupby(["data", "model", "settings", "round_to"], sort=False)
    size, distinct = twins["series"].transform("size"), twins["epochs"].transform("nunique")
    apart = (
        names["epochs"]
        .map(lambda n: f" [{n} epoch{'s' * (n != 1)}]")
        .where(distinct == size, " [schedule " + (twins.cumcount() + 1).astype(str) + "]")
    )
    rounded = ", widths rounded to " + names["round_to"].astype(str)
    abstract = pd.Series([runs[i].settings.evidence == "abstract" for i in first.index], index=names.index)
    mark = abstract.map({True: FROM_ABSTRACT, False: ""})
    suffix = rounded.where(names["round_to"] > 1, "") + apart.where(size > 1, "") + mark
    names["settings"] += suffix
    names["short"] += suffix
    return names.set_index("series")[["settings", "short"]]


def _settings(run: Pruned) -> dict[str, Any]:
    """Return the settings of method and followed method, and the ignored layers."""
    like = {"like": describe(run.reference.settings)} if run.reference else {}
    return {**like, **vars(run.settings), "without": "+".join(run.ignored_layers) or "nothing"}


def _short(method: str, pruners: Sequence[Mapping[str, Any]], defaults: Mapping[str, Any]) -> list[str]:
    """Return the method's name with the settings in which its variants differ.

    Of a variant with an option that is off, "", only those that are not at their defaults.
    """
    varied = [name for name in pruners[0] if len({repr(pruner.get(name)) for pruner in pruners}) > 1]
    shown = []
    for pruner in pruners:
        off = any(pruner[name] == "" for name in varied)
        names = [name for name in varied if not off or pruner[name] != defaults.get(name)]
        shown.append(", ".join(f"{name}={pruner[name]}" for name in names))
    return [words.rounded(f"{method}({text})") if text else method for text in shown]


def _timings(timed: Sequence[Timed]) -> pd.DataFrame:
    """Return one line for each latency measurement.

    `timing` is the index of its timing in the grid.
    """
    columns = ["key", "label", "pruned_key", "asked_device", *TIMING]
    frame = pd.DataFrame(
        [
            (
                stage.key,
                stage.label,
                stage.pruned.key,
                stage.timing.device,
                *(getattr(stage.timing, name) for name in TIMING),
            )
            for stage in timed
        ],
        columns=columns,
    )
    frame["timing"] = frame.groupby(["asked_device", *TIMING], sort=False).ngroup()
    return frame


# ---- what is there ---------------------------------------------------------------------------------------------------


def _marked(rows: Sequence[records.PrunedRow], series: Sequence[int]) -> list[records.PrunedRow]:
    """Return the rows; name the code in the commit if codes differ.

    Codes are compared within a series.
    """
    codes: dict[int, set[str]] = {}
    for row, number in zip(rows, series, strict=True):
        if "code" in row.provenance:
            codes.setdefault(number, set()).add(row.provenance["code"])
    marked = []
    for row, number in zip(rows, series, strict=True):
        if len(codes.get(number, ())) > 1 and "code" in row.provenance:
            commit = f"{words.commit(str(row.provenance.get('commit')), '')} code {row.provenance['code']}"
            row = dataclasses.replace(row, provenance={**row.provenance, "commit": commit})
        marked.append(row)
    return marked


def _of_other_code(grid: Grid, runs: Sequence[Pruned], rows: Iterable[records.PrunedRow]) -> set[str]:
    """Return the keys of rows whose code differs, by fingerprint, from that of today.

    A row without a fingerprint, of an earlier version of the suite, counts as equal; so does a row of the grid's own commit.
    """
    now = {run.key: run for run in runs}
    later = [row for row in rows if row.provenance.get("commit") != (grid.commit or None)]
    return {row.key for row in later if row.provenance.get("code", "") not in ("", code.short(now[row.key]))}


def _pruned_rows(rows: Sequence[records.PrunedRow], runs: Sequence[Pruned]) -> pd.DataFrame:
    provenance = [*CONDITIONS, "base_sha256"]
    stages = {run.key: run for run in runs}
    frame = pd.DataFrame(
        [
            [
                *(getattr(row, name) for name in _PRUNED),
                *(
                    _device(row, stages[row.key]) if name == "device" else row.provenance.get(name)
                    for name in provenance
                ),
                *(row.provenance.get("learned", {}).get(name) for name in FACTS),
            ]
            for row in rows
        ],
        columns=[*_PRUNED, *provenance, *FACTS],
    )
    files = [tuple(sorted(row.provenance.get("files", {}).items())) for row in rows]
    return _with_conditions(frame, provenance).assign(files=pd.Series(files, index=frame.index, dtype="object"))


def _device(row: records.PrunedRow, run: Pruned) -> str | None:
    """Return the device that trained, with the precisions of the run's training that it emulates."""
    used = [schedule.compute.precision for schedule in _schedules(run)[1:] if schedule]
    device = records.kind_of_device(row.provenance, used)
    learned = row.provenance.get("learned_device")
    return f"{device}, learned on {learned}" if learned else device or None


def _by_block(runs: pd.DataFrame) -> pd.Series:
    """Return the device of each run; blocks of different devices have all of these devices.

    A block is a base network with a seed. Differences between methods are taken within blocks, so that blocks may come from
    several devices. If a block has rows of more than one device, the device with most of them holds the block, and the other
    rows keep their own.
    """
    done = runs[runs["status"] == "done"]
    same = ["data", "model", "split", "weights", "base_schedule", *(name for name in CONDITIONS if name != "device")]
    holds = done.groupby([*same, "base_weights", "seed"], dropna=False)["device"].transform(lambda own: own.mode()[0])
    result = runs["device"].astype("object")
    for _, devices in done[done["device"] == holds].groupby(same, dropna=False)["device"]:
        result[devices.index] = words.blocks_on(devices.unique())
    return result


def _reference(row: records.TimedRow) -> str:
    """Return the runtimes of which the fastest is the reference.

    Rows of the quick protocol and earlier rows of the full one are marked.
    """
    names = ", ".join(row.reference)
    return f"{names or 'torch'}, untuned" if row.protocol == "quick" else names or "tuned only (earlier rule)"


def _energy(row: records.TimedRow) -> list[Any]:
    """Return the values of `ENERGY`, and the reason if they are missing."""
    earlier = energy.QUICK if row.protocol == "quick" else "not measured in earlier rows"
    made = row.energy or {"missing": earlier}
    reason = str(made.get("missing", ""))
    low, high = (made.get(name) for name in ("null_low_x", "null_high_x"))
    passed = isinstance(low, float) and isinstance(high, float) and low <= 1 <= high
    if not reason and not passed:
        reason = "the null test of energy failed"
    return [*(None if reason else made.get(name) for name in _ENERGY), reason]


def _timed_rows(rows: Iterable[records.TimedRow]) -> pd.DataFrame:
    provenance = ["threads", "commit", "dirty"]
    frame = pd.DataFrame(
        [
            [*(getattr(row, name) for name in _TIMED), *(row.provenance.get(name) for name in provenance)]
            for row in rows
        ],
        columns=[*_TIMED, *provenance],
    ).rename(columns={"device": "timed_device", "commit": "timed_commit", "dirty": "timed_dirty"})
    made = [_energy(row) for row in rows]
    frame = frame.join(pd.DataFrame(made, columns=[*ENERGY, "energy_missing"], index=frame.index))
    frame["reference"] = [_reference(row) for row in rows]
    frame["time_goes"] = [row.losses.get("text", row.losses.get("missing", "")) for row in rows]
    frame = _with_conditions(frame, TIMED_CONDITIONS)
    frame["flags"] = frame["flags"].map("; ".join)
    frame["threads"] = frame["threads"].where(frame["timed_device"].str.startswith("cpu"), "")
    return frame


def _with_claims(timings: pd.DataFrame) -> pd.DataFrame:
    """Add `claim`, the verdict on each measurement by the present rule.

    The verdict on a measurement that is not done is "".
    """
    claims = []
    for row in timings.to_dict("records"):
        ratio, cpu, null = (
            tuple(row[f"{name}{end}_x"] for end in ("", "_low", "_high")) for name in ("speedup", "cpu_speedup", "null")
        )
        cpu_or_none = None if any(pd.isna(value) for value in cpu) else cpu
        done = row["status"] == "done"
        claims.append(claim.verdict(ratio, null, cpu=cpu_or_none, flags=[row["flags"]]) if done else "")
    return timings.assign(claim=claims)


def _with_conditions(frame: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Format conditions as text: "unknown" if absent, `dirty` as "yes" or "no"."""
    for name in names:
        frame[name] = pd.Series([_text(value) for value in frame[name]], index=frame.index, dtype="object")
    return frame


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "unknown" if value is None or value == "" or value != value else str(value)


def _joined(requested: pd.DataFrame, rows: pd.DataFrame, needed: Sequence[str]) -> pd.DataFrame:
    """Join each requested line with its row.

    A row with status "done" and without its numbers counts as failed.
    """
    numbers = [name for name in rows.columns if name in _NUMBERS]
    rows[numbers] = rows[numbers].apply(pd.to_numeric, errors="coerce").astype(float)
    rows[numbers] = rows[numbers].where(rows[numbers].abs() != float("inf"))
    broken = (rows["status"] == "done") & rows[list(needed)].isna().any(axis=1)
    rows.loc[broken, "reason"] = f"its row has status done but lacks a finite {', '.join(needed)}"
    rows.loc[broken, "status"] = "failed"
    both = requested.merge(rows, on="key", how="left", validate="one_to_one")
    both["status"] = both["status"].fillna("missing")
    return both


def _plain_epochs(runs: pd.DataFrame) -> pd.Series:
    """Return epochs of base, learning and fine-tuning in plain-step equivalents, from the rows.

    A public base network counts nothing. Networks that start at the initial weights have no base network.
    """
    base = runs["base_epochs"].where(runs["start"] == "base").fillna(0)
    total = base + runs["learning_epochs"].fillna(0) * runs["step_cost"] + runs["finetune_epochs"].fillna(0)
    return total.where(runs["status"] == "done")


def timed_without_run(frames: Frames) -> int:
    """Count finished latency measurements of runs without a finished row."""
    done = frames.runs.loc[frames.runs["status"] == "done", "key"]
    timings = frames.timings
    return int(((timings["status"] == "done") & ~timings["pruned_key"].isin(done)).sum())


def any_rows(results: Path) -> bool:
    """Return True if there is a row of any grid."""
    return next(records.rows_folder(results).glob("*.json"), None) is not None
