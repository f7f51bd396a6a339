"""Row files: write, read and list them."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

from suite import jsonfile
from suite.files import write_json
from suite.records.migrations import MIGRATIONS, SCHEMA
from suite.records.rows import ROW_TYPES, Provenance, Row, Status

log = logging.getLogger(__name__)

DAMAGED = ".json.damaged"


def rows_folder(results: Path) -> Path:
    """Return the folder of the row files."""
    return results / "rows"


def row_path(results: Path, key: str) -> Path:
    """Return the file of a row."""
    return rows_folder(results) / f"{key}.json"


def output_folder(results: Path, key: str) -> Path:
    """Return the folder of a stage's output: `work/KEY`, or that of the zoo, `networks/KEY`."""
    work, member = results / "work" / key, results / "networks" / key
    return member if member.is_dir() and not work.is_dir() else work


def write(row: Row, results: Path) -> None:
    """Write the row's file, atomically."""
    write_json(row_path(results, row.key), to_dict(row))


def to_dict(row: Row) -> dict[str, Any]:
    """Return the row as plain JSON values, with kind and schema version."""
    return {"schema": SCHEMA, "kind": row.kind, **dataclasses.asdict(row)}


class NewerRowError(ValueError):
    """Raised for a row of a later schema version than `SCHEMA`."""


def from_dict(value: Any) -> Row:
    """Return the row of a value made by `to_dict` in any known schema version.

    Raises ValueError naming the bad field; NewerRowError if the schema version is later.
    """
    if not isinstance(value, dict) or value.get("kind") not in tuple(ROW_TYPES):
        raise ValueError(f"not a row: its kind is none of {', '.join(ROW_TYPES)}")
    version = value.get("schema")
    if type(version) is not int or version < 1:
        raise ValueError(f"schema {version} is none of 1 to {SCHEMA}, which this version reads")
    if version > SCHEMA:
        raise NewerRowError(f"schema {version} is later than {SCHEMA}; update the suite to read it")
    if not isinstance(value.get("provenance", {}), dict):
        raise ValueError(f"provenance = {repr(value['provenance'])[:60]} is no object of names and values")
    if value.get("status") not in get_args(Status):
        raise ValueError(f"status = {repr(value.get('status'))[:60]} is none of {', '.join(get_args(Status))}")
    kind: type[Row] = ROW_TYPES[value["kind"]]
    fields: dict[str, Any] = {k: v for k, v in value.items() if k not in ("schema", "kind")}
    for before in range(version, SCHEMA):
        fields = MIGRATIONS[before](fields)
    if unknown := fields.keys() - {f.name for f in dataclasses.fields(kind)}:
        raise ValueError(f"unknown fields {sorted(unknown)}")
    jsonfile.convert(fields.get("provenance", {}), Provenance)
    row = jsonfile.convert(fields, kind)
    _check_numbers(vars(row))
    return row


RANGES = {"_top1_pct": (0.0, 100.0), "_cut_pct": (-1e6, 100.0), "drop_pp": (-100.0, 100.0), "_x": (1e-6, 1e6)}
"""End of a column's name -> least and largest value. Reports draw all values that are read."""
COUNTED = ("macs", "params", "_bytes", "_ms", "seconds", "epochs")
"""Ends of names of columns that are 0 or more."""
LARGEST = 1e18


def _check_numbers(columns: Mapping[str, Any]) -> None:
    """Raise ValueError for a number outside of its column's range.

    Also for an interval whose ends are exchanged.
    """
    for name, value in columns.items():
        if type(value) is not int and type(value) is not float:
            continue
        ends = next((ends for suffix, ends in RANGES.items() if name.endswith(suffix)), None)
        low, high = ends or (0.0 if name.endswith(COUNTED) else -LARGEST, LARGEST)
        if not low <= value <= high:
            raise ValueError(f"{name} = {value:g} is not in {low:g} to {high:g}")
        if (
            name.endswith("_low_x")
            and (top := columns.get(f"{name.removesuffix('low_x')}high_x")) is not None
            and value > top
        ):
            raise ValueError(f"{name} = {value:g} is larger than the other end of its interval, {top:g}")


def read(path: Path, *, set_aside: bool = True) -> Row | None:
    """Return the row in this file, or None if the file is missing or damaged.

    A damaged file is renamed to NAME.damaged; a file of a later schema version stays in place. The log names both. If `set_aside`
    is False, nothing is renamed or logged of damaged files.
    Raises OSError if the storage does not give the file, which then stays in place.
    """
    try:
        row = from_dict(jsonfile.loads(jsonfile.read_bytes(path)))
        if row.key != path.stem:
            raise ValueError(f"it holds the row {row.key}")
        return row
    except FileNotFoundError:
        return None
    except NewerRowError as error:
        log.warning("row %s is left out: %s", path, error)
        return None
    except ValueError as error:
        if not set_aside:
            return None
        aside = path.with_suffix(DAMAGED)
        os.replace(path, aside)
        log.warning("row %s cannot be read (%s); set aside as %s", path, error, aside.name)
        return None


def read_all(results: Path, keys: Iterable[str], *, set_aside: bool = True) -> list[Row]:
    """Return the readable rows of these keys. Damaged files are renamed, unless `set_aside` is False."""
    rows = (read(row_path(results, key), set_aside=set_aside) for key in keys)
    return [row for row in rows if row is not None]


def unreadable(results: Path, keys: Iterable[str]) -> list[Path]:
    """Return the row files of keys for which `read_all` gave no row.

    These are damaged files, and files of a later schema version.
    """
    folder = rows_folder(results)
    names = {path.name for path in folder.glob("*.json*")}
    candidates = (name for key in keys for name in (f"{key}.json", f"{key}{DAMAGED}"))
    return [folder / name for name in candidates if name in names]
