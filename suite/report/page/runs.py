"""Data of each run on the page: rows, curves, structure and log."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from suite import records
from suite.report.figures import learning, structure
from suite.stages import Pruned, Timed, identity

POINTS = 80
"""Epochs of a curve that are kept; of more, those spread evenly."""
LOG_LINES = 40
LOG_CHARACTERS = 6000
_ABOUT = set(records.Row.__dataclass_fields__)


def collect(
    runs: Sequence[Pruned], timed: Iterable[Timed], rows: Mapping[str, records.Row], results: Path
) -> dict[str, Any]:
    """Return plain JSON values.

    `runs` are in the grid's order, `curves` by stage; `provenance` is shared by several rows and indexed.
    """
    measured: dict[str, list[Timed]] = {}
    for stage in timed:
        measured.setdefault(stage.pruned.key, []).append(stage)
    shared: dict[str, int] = {}
    data_of_runs = [_run(run, measured.get(run.key, []), rows, shared, results) for run in runs]
    stages = {key for run in data_of_runs for _, key in run["curves"]}
    curves = {key: curve for key in sorted(stages) if (curve := _curve(records.output_folder(results, key)))}
    for run in data_of_runs:
        run["curves"] = [(title, key) for title, key in run["curves"] if key in curves]
    most = max((len(groups) for run in data_of_runs for *_, groups in run["structure"]), default=1)
    return {
        "runs": data_of_runs,
        "curves": curves,
        "provenance": [json.loads(text) for text in shared],
        "colours": [structure.colour(index, most) for index in range(most)],
    }


def _run(
    run: Pruned, timed: Sequence[Timed], rows: Mapping[str, records.Row], shared: dict[str, int], results: Path
) -> dict[str, Any]:
    row, folder = rows.get(run.key), records.output_folder(results, run.key)
    learned = [("learning", run.learned.key)] if run.learned else []
    return {
        "key": run.key,
        "label": run.label,
        "seed": run.seed,
        "status": row.status if row else "missing",
        "reason": row.reason if row else "",
        "configuration": list(_flat(identity(run))),
        "result": _numbers(row) if row else [],
        "provenance": _provenance(row, shared) if row else None,
        "timed": [_timed(rows[stage.key], shared) for stage in timed if stage.key in rows],
        "curves": [("base", run.base.key), *learned, ("fine-tuning", run.key)],
        "structure": _structure(folder / structure.PACKED_NAME),
        "log": _log_tail(folder / "log.txt"),
    }


def _timed(row: records.Row, shared: dict[str, int]) -> dict[str, Any]:
    return {
        "title": "Training steps" if isinstance(row, records.StepsRow) else "Latency",
        "key": row.key,
        "status": row.status,
        "reason": row.reason,
        "result": _numbers(row),
        "provenance": _provenance(row, shared),
    }


def _numbers(row: records.Row) -> list[tuple[str, Any]]:
    """Return the row's own fields that have a value; floats have six digits."""
    values = {name: value for name, value in vars(row).items() if name not in _ABOUT}
    return list(_flat({name: value for name, value in values.items() if value not in (None, "", (), {})}))


def _flat(value: Any, name: str = "") -> Iterable[tuple[str, Any]]:
    """Yield nested values as ("base.schedule.epochs", 5)."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        yield name, ", ".join(map(str, value))
    elif isinstance(value, float):
        yield name, float(f"{value:.6g}") if math.isfinite(value) else str(value)
    else:
        yield name, value


def _provenance(row: records.Row, shared: dict[str, int]) -> dict[str, Any]:
    """Return `own` values of this row, and the index of the `shared` ones."""
    own = {name: row.provenance[name] for name in ("finished", "base_sha256") if name in row.provenance}
    rest = list(_flat({name: value for name, value in row.provenance.items() if name not in own}))
    return {"own": list(own.items()), "shared": shared.setdefault(json.dumps(rest), len(shared))}


# ---- what lies in the run's folder -----------------------------------------------------------------------------------


def _curve(folder: Path) -> dict[str, Any] | None:
    """Return `epoch` and each number of the log.

    None without a whole log of two epochs or more.
    """
    try:
        lines = learning.read_log(folder)
        names = [name for name in lines[0] if name != "epoch"] if len(lines) > 1 else []
        step = max(1, math.ceil(len(lines) / POINTS))
        kept = [*lines[:-1:step], lines[-1]] if names else []
        return (
            {
                "epoch": [e["epoch"] for e in kept],
                **{learning.words_of(n): [_short(e.get(n)) for e in kept] for n in names},
            }
            if kept
            else None
        )
    except (OSError, ValueError):
        return None


def _short(value: Any) -> float | None:
    return float(f"{value:.4g}") if isinstance(value, int | float) and math.isfinite(value) else None


def _structure(path: Path) -> list[tuple[str, int, int, list[tuple[float, float]]]]:
    """Return name, filters, channels and groups of each convolution.

    A group is (share of filters, share of channels).
    """
    if not path.is_file():
        return []
    try:
        layers = structure.layers(*structure.read(path))
    except ValueError:
        return []
    return [
        (row.conv.name, row.conv.filters, row.conv.channels, [(round(f, 4), round(c, 4)) for f, c in row.groups])
        for row in layers
    ]


def _log_tail(path: Path) -> str:
    """Return the last lines of the run's log; "" without one."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return "\n".join(text[-LOG_CHARACTERS:].splitlines()[-LOG_LINES:])
