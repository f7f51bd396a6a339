"""Rows: one JSON file per finished run and per latency measurement.

A row has everything needed to trace and repeat its run.
`results/rows/KEY.json` are the records; tables and figures are made from them alone. `results/work/KEY/` is the stage's
folder (checkpoints, log, packed network, `done.json`); it decides if the stage is done, and may be deleted.
"""

from __future__ import annotations

from suite.records.migrations import MIGRATIONS, SCHEMA
from suite.records.origin import PACKAGES, ROOT, SNAPSHOT, device_name, kind_of_device, provenance, source
from suite.records.rows import ROW_TYPES, Done, How, Leg, PrunedRow, Row, Status, StepsRow, TimedRow
from suite.records.storage import (
    DAMAGED,
    NewerRowError,
    from_dict,
    output_folder,
    read,
    read_all,
    row_path,
    rows_folder,
    to_dict,
    unreadable,
    write,
)

__all__ = [
    "DAMAGED",
    "MIGRATIONS",
    "PACKAGES",
    "ROOT",
    "ROW_TYPES",
    "SCHEMA",
    "SNAPSHOT",
    "Done",
    "How",
    "Leg",
    "NewerRowError",
    "PrunedRow",
    "Row",
    "Status",
    "StepsRow",
    "TimedRow",
    "device_name",
    "from_dict",
    "kind_of_device",
    "output_folder",
    "provenance",
    "read",
    "read_all",
    "row_path",
    "rows_folder",
    "source",
    "to_dict",
    "unreadable",
    "write",
]
