"""Rows: one JSON file for each finished run and each latency measurement, with all that is needed to trace and regenerate it.

`results/rows/KEY.json` are the records; tables and figures are made from them alone. `results/work/KEY/` is the stage's own
folder (checkpoints, log, packed network, `done.json`), which decides what is done and may be deleted.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import os
import platform
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch

from suite.files import write_json

log = logging.getLogger(__name__)

SCHEMA = 2
"""Of the rows that are written. Rows of every version before it are read: `MIGRATIONS`."""
Status = Literal["done", "diverged", "failed"]
Leg = Literal["eager", "graph"]
DAMAGED = ".json.damaged"
ROOT = Path(__file__).resolve().parents[2]
"""Where the source lies that runs: a checkout, an installed package, or a snapshot that a launch took."""
SNAPSHOT = "snapshot.json"
"""In a snapshot: what `source` said where it was taken, and the snapshot's name."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """What every row has. `reason` says why a status is not "done"; result fields are then None."""

    kind: ClassVar[str]
    key: str
    label: str
    status: Status
    reason: str = ""
    stage: dict[str, Any]
    """The full identity of the stage."""
    data: str
    model: str
    method: str
    settings: str
    """Method with the settings that differ from its defaults; runs that differ in seed only share it."""
    granularity: str
    groups: int
    budget: float
    budget_scope: str
    seed: int
    split: str
    smoke: bool
    provenance: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PrunedRow(Row):
    """A pruned, fine-tuned network. Accuracies are of the last epoch, on the test set, which is read once."""

    kind: ClassVar[str] = "pruned"
    result_fields: ClassVar[tuple[str, ...]] = (
        "base_top1_pct",
        "pruned_top1_pct",
        "macs",
        "params",
        "macs_cut_pct",
        "prunable_macs_cut_pct",
        "plan_sha256",
        "weights_sha256",
    )
    """Two rows of one run are equal when these are."""

    base_top1_pct: float | None = None
    pruned_top1_pct: float | None = None
    drop_pp: float | None = None
    """Base minus pruned; positive is worse."""
    dense_macs: int | None = None
    macs: int | None = None
    executed_macs: int | None = None
    """What the execution used for training computes: more than `macs` where groups are merged."""
    macs_cut_pct: float | None = None
    prunable_macs_cut_pct: float | None = None
    dense_params: int | None = None
    params: int | None = None
    params_cut_pct: float | None = None
    coarse: bool | None = None
    selection: str = "last"
    """Which epoch was kept, "last" or "best_validation"; "best_test" is comparable with published rows of that kind only."""
    unsupported_ops: tuple[str, ...] = ()
    """Operators that fvcore does not count; none of them is a convolution or a linear layer."""
    base_epochs: int | None = None
    learning_epochs: int | None = None
    finetune_epochs: int | None = None
    seconds: float | None = None
    """Time spent on this stage, fine-tuning and measuring; not a result."""
    plan_sha256: str | None = None
    weights_sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class TimedRow(Row):
    """Latency of a packed network beside its dense one, alternating in one process; in three of them ("full" protocol).

    What only later versions record is absent from earlier rows, and where it could not be read.
    """

    kind: ClassVar[str] = "timed"
    result_fields: ClassVar[tuple[str, ...]] = ()

    pruned_key: str
    device: str
    batch: int
    precision: str
    layout: str
    protocol: str
    leg: Leg | None = None
    """"eager" or, on a GPU, "graph": one captured CUDA graph."""
    execution: str | None = None
    """The packed execution that was measured: the fastest of `executions_ms`; "tuned": each layer has its own ("full")."""
    layers: dict[str, Any] = field(default_factory=dict)
    """Of "dense" and "packed": memory layout, and how many layers have each execution, where these were tuned."""
    executions_ms: dict[str, float] = field(default_factory=dict)
    blocks: int | None = None
    attempts: int | None = None
    """Measurements until the null test passed; it fails by chance in about one of twenty."""
    dense_ms: float | None = None
    dense_ms_q1: float | None = None
    dense_ms_q3: float | None = None
    dense_ms_p5: float | None = None
    dense_ms_p95: float | None = None
    packed_ms: float | None = None
    packed_ms_q1: float | None = None
    packed_ms_q3: float | None = None
    packed_ms_p5: float | None = None
    packed_ms_p95: float | None = None
    speedup_x: float | None = None
    """Median over blocks of dense time / packed time; of several processes, the median of theirs."""
    speedup_low_x: float | None = None
    speedup_high_x: float | None = None
    """Bootstrap 95 % interval of `speedup_x`; of several processes, from their lowest to their highest end."""
    eager_speedup_x: float | None = None
    eager_speedup_low_x: float | None = None
    eager_speedup_high_x: float | None = None
    """The same of the eager leg, launch cost included."""
    theoretical_x: float | None = None
    """Dense MACs / packed MACs. Not a speed-up."""
    null_x: float | None = None
    null_low_x: float | None = None
    null_high_x: float | None = None
    """Dense against dense, measured alike; when this interval misses 1 the measurement is not to be trusted. Of several
    processes, that of the one that fails worst."""
    verdict: str | None = None
    """"faster", "slower", "no difference", or "not trusted" when the null test fails."""
    deployed: str | None = None
    """What would be deployed: the packed execution, or "dense" where packing is slower."""
    processes: tuple[dict[str, Any], ...] = ()
    """For each process and leg: ratio and null test with their intervals, and the machine's conditions (`measure.machine`)."""
    flags: tuple[str, ...] = ()
    """Why the measurement is doubtful: other processes, a throttled GPU. Nothing is known against it when empty."""
    cudnn_benchmark: bool | None = None
    dense_peak_bytes: int | None = None
    packed_peak_bytes: int | None = None
    """Weights and the most that a forward pass allocates at once ("full" protocol)."""
    bound_ms: float | None = None
    """The least time on paper for the packed network on this machine (`measure.bounds`, "full" protocol)."""
    dense_bound_ms: float | None = None
    """The same of the dense network: `dense_bound_ms` / `bound_ms` is the speed-up that the machine allows."""
    of_bound: float | None = None
    """`bound_ms` / `packed_ms`: the share of the physical limit that is reached."""


ROW_TYPES: dict[str, type[Row]] = {kind.kind: kind for kind in (PrunedRow, TimedRow)}


def provenance(device: str) -> dict[str, Any]:
    """Commit, dirty flag, library versions, device and threads of this process."""
    return {
        **_lasting(device),
        "threads": torch.get_num_threads(),
        "tf32": device == "cuda" and torch.backends.cudnn.allow_tf32,
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", ""),
    }


@functools.cache
def _lasting(device: str) -> dict[str, Any]:
    """The part that no stage changes."""
    return {
        **source(),
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "torchvision", "fvcore", "numpy", "scipy", "safetensors")},
        "device": device_name(device),
        "driver": _driver() if device == "cuda" else "",
        "platform": f"{platform.system()} {platform.machine()}",
    }


def device_name(device: str) -> str:
    """The processor's own name: "cpu: Intel(R) Xeon(R) ..." or "NVIDIA H100 ..."."""
    if device == "cuda":
        return torch.cuda.get_device_name() if torch.cuda.is_available() else "cuda: none on this machine"
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    name = next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    return f"cpu: {name or 'unknown'}, {os.cpu_count()} cores"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _driver() -> str:
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return "unknown"


def source() -> dict[str, Any]:
    """Commit of the checkout that this code comes from, and whether anything outside results/ was changed there.

    When it was changed and this is a snapshot of it, the snapshot's name too.
    """

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    if (ROOT / SNAPSHOT).is_file():
        taken = json.loads((ROOT / SNAPSHOT).read_text())
        return taken if taken["dirty"] else {name: taken[name] for name in ("commit", "dirty")}
    try:
        git("ls-files", "--error-unmatch", "suite/records/__init__.py")  # not installed inside another repository
        changed = git("status", "--porcelain", "--", ":/", ":(exclude,top)results")
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changed)}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": f"package {_version('pruning-suite')}", "dirty": None}


def rows_folder(results: Path) -> Path:
    """Where rows lie."""
    return results / "rows"


def write(row: Row, results: Path) -> None:
    """Write the row's file, atomically."""
    write_json(rows_folder(results) / f"{row.key}.json", to_dict(row))


def to_dict(row: Row) -> dict[str, Any]:
    """The row as plain JSON values, with kind and schema version."""
    return {"schema": SCHEMA, "kind": row.kind, **dataclasses.asdict(row)}


def _from_1(value: dict[str, Any]) -> dict[str, Any]:
    """Version 1 said in every row how fair its comparison is, which no single run can know; it is kept as it was said."""
    said = {"fairness_said": value["fairness"]} if value.get("fairness") else {}
    kept = {name: item for name, item in value.items() if name != "fairness"}
    return {**kept, "provenance": {**value.get("provenance", {}), **said}}


MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _from_1}
"""Schema version -> what makes a row of the next version of it. Files are left as they are."""


class NewerRowError(ValueError):
    """A row of a later version than this one reads."""


def from_dict(value: Any) -> Row:
    """The row that `to_dict` gave, in this version or an earlier one.

    Raises ValueError naming what is wrong; a row of a later version is a NewerRowError.
    """
    if not isinstance(value, dict) or value.get("kind") not in tuple(ROW_TYPES):
        raise ValueError(f"not a row: its kind is none of {', '.join(ROW_TYPES)}")
    version = value.get("schema")
    if type(version) is not int or version < 1:
        raise ValueError(f"schema {version} is none of 1 to {SCHEMA}, which this version reads")
    if version > SCHEMA:
        raise NewerRowError(f"schema {version} is later than {SCHEMA}; update the suite to read it")
    if not isinstance(value.get("provenance", {}), dict):
        raise ValueError(f"provenance = {value['provenance']!r} is no object of names and values")
    if value.get("status") not in get_args(Status):
        raise ValueError(f"status = {value.get('status')!r} is none of {', '.join(get_args(Status))}")
    kind: type[Row] = ROW_TYPES[value["kind"]]
    fields: dict[str, Any] = {k: v for k, v in value.items() if k not in ("schema", "kind")}
    for before in range(version, SCHEMA):
        fields = MIGRATIONS[before](fields)
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    if unknown := fields.keys() - {f.name for f in dataclasses.fields(kind)}:
        raise ValueError(f"unknown fields {sorted(unknown)}")
    try:
        return kind(**fields)
    except TypeError as error:
        raise ValueError(str(error)) from error


def read(path: Path) -> Row | None:
    """The row in this file; None when there is none.

    A damaged file is renamed to NAME.damaged, one of a later version stays where it is; the log names both.
    """
    try:
        row = from_dict(json.loads(path.read_text(encoding="utf-8")))
        if row.key != path.stem:
            raise ValueError(f"it holds the row {row.key}")
        return row
    except FileNotFoundError:
        return None
    except NewerRowError as error:
        log.warning("row %s is left out: %s", path, error)
        return None
    except (ValueError, UnicodeDecodeError) as error:
        aside = path.with_suffix(DAMAGED)
        os.replace(path, aside)
        log.warning("row %s cannot be read (%s); set aside as %s", path, error, aside.name)
        return None


def read_all(results: Path, keys: Iterable[str]) -> list[Row]:
    """The rows of these keys that are there."""
    found = (read(rows_folder(results) / f"{key}.json") for key in keys)
    return [row for row in found if row is not None]


def unreadable(results: Path, keys: Iterable[str]) -> list[Path]:
    """The files of these keys, for which `read` gave nothing, that are there all the same: damaged ones, later ones."""
    folder = rows_folder(results)
    there = {path.name for path in folder.glob("*.json*")}
    names = (name for key in keys for name in (f"{key}.json", f"{key}{DAMAGED}"))
    return [folder / name for name in names if name in there]
