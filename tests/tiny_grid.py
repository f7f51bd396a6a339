"""A grid of seconds, for tests: `--grid tests/tiny_grid.py`. And what tests of the command lines share."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from suite import grids, records
from suite.grids import Grid, cross
from suite.run import Context, execute
from suite.schedule import Schedule
from suite.stages import Base, Pruned, Stage, Timing

FILE = Path(__file__).resolve()
SETTINGS: dict[str, Any] = {"lr": 0.05, "weight_decay": 5e-4, "batch": 64, "epoch_images": 256}
SHORT = Schedule(epochs=2, **SETTINGS)
CYCLES = Schedule(epochs=2, cycles=2, replan_pp=10.0, **SETTINGS)
METHODS = ("dsp", "l1_filter", "slimming")


def base(seed: int = 0, schedule: Schedule = SHORT, model: str = "vgg6") -> Base:
    return Base(data="digits", model=model, schedule=schedule, seed=seed)


def run_of(method: str, budget: float = 0.5, of: Base | None = None, **schedules: Schedule) -> Pruned:
    """One run; its schedules are short and the fine-tuning has two cycles unless `schedules` say otherwise."""
    about: dict[str, Any] = {"finetune": CYCLES, "learning": SHORT, **schedules}
    return cross(bases=[of or base()], method=method, budgets=[budget], **about)[0]


GRID = Grid(
    title="Tiny",
    about="Three methods, a network and a budget.",
    runs=lambda: [run_of(method) for method in METHODS],
    timings=(Timing(batch=8, protocol="quick"),),
)


def stages() -> list[Stage]:
    """All stages of this grid."""
    return grids.stages_of(GRID, grids.runs_of(GRID))


def do_all(found: list[Stage], context: Context) -> list[str]:
    """The outcome of each stage, done in this process."""
    return [execute(stage, context) for stage in found]


def the(kind: str, method: str = "") -> Stage:
    """The first stage of that kind whose label has the method."""
    return next(stage for stage in stages() if stage.kind == kind and method in stage.label)


def row_of(stage: Stage, context: Context) -> records.Row:
    """The row that a stage left."""
    row = records.read(records.row_path(context.results, stage.key))
    assert row is not None
    return row


def log_of(stage: Stage, context: Context) -> str:
    """The text that a stage logged."""
    return (context.folder(stage) / "log.txt").read_text()


def contents(folder: Path) -> dict[Path, bytes]:
    """Every file below a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def call(main: Callable[[], int], *arguments: object) -> int:
    """The exit status of a command line that is run in this process."""
    with mock.patch.object(sys, "argv", ["test", *map(str, arguments)]):
        try:
            return main()
        except SystemExit as end:
            return end.code if isinstance(end.code, int) else 1


def start(*arguments: object, log: Path, **options: Any) -> subprocess.Popen[bytes]:
    """A `python -m ...` of its own, in a session of its own; what it prints goes to `log`."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    with log.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            cwd=FILE.parent.parent,
            **options,
        )


def wait_for(what: Callable[[], object], seconds: float = 120.0) -> None:
    """Wait until `what()` is true. Raises TimeoutError."""
    end = time.monotonic() + seconds
    while not what():
        if time.monotonic() > end:
            raise TimeoutError(f"after {seconds} s: {what}")
        time.sleep(0.01)


def free_port() -> int:
    """Return a free port of the loopback, below those that a system gives to connections.

    Until somebody listens on one of the latter, a connection may take it.
    """
    for port in random.SystemRandom().sample(range(10_000, 20_000), 100):
        with socket.socket() as one, contextlib.suppress(OSError):
            one.bind(("127.0.0.1", port))
            return port
    raise OSError("none of 100 ports is free")


def members(session: int) -> list[int]:
    """The processes of a session that are alive."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(folder.name))
    return found


def results(context: Context, found: list[Stage]) -> dict[str, object]:
    """Return what stops must not change by a bit: rows' result fields, weights, learned states."""
    same: dict[str, object] = {}
    for stage in found:
        row = records.read(records.rows_folder(context.results) / f"{stage.key}.json")
        if isinstance(row, records.PrunedRow):
            assert row.status == "done", row.reason
            same[stage.key] = {name: getattr(row, name) for name in row.result_fields}
        for name in ("init.safetensors", "final.safetensors", "packed.safetensors", "state.pt"):
            if (context.folder(stage) / name).exists():
                same[f"{stage.key}/{name}"] = (context.folder(stage) / name).read_bytes()
    return same
