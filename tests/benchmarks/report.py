"""Seconds from 10,000 synthetic rows to a report's tables, part by part.

    python tests/benchmarks/report.py [--rows 10000] [--limit 5]

The rows are two networks, 25 methods, ten budgets and enough seeds, half of them latencies; their files lie in a temporary
folder. Reading the rows and making the table must take at most `--limit` seconds of this process's own CPU time, which a busy
machine does not change; the exit status is 1 otherwise. Pairs of methods, LaTeX and Markdown are timed too, figures are not.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from suite import records
from suite.contract import Budget, Pruner
from suite.grids import Grid
from suite.report import content, frames
from suite.report.statistics import cells
from suite.report.tables import documents
from suite.schedule import Schedule
from suite.stages import Base, Pruned, Timed, Timing, identity

MODELS, METHODS, BUDGETS = ("resnet20", "resnet56"), 25, 10
SHORT = Schedule(epochs=2, lr=0.1, weight_decay=0.0)
CPU = "cpu: Example, 2 cores"


@dataclass(frozen=True, kw_only=True)
class Synthetic(Pruner):
    """A method that is only named, never run."""

    granularity = "filter"
    source = "none"
    number: int = 0


def runs_of(count: int) -> list[Pruned]:
    """`count` runs at most, with as many seeds as that takes."""
    seeds = max(1, count // (len(MODELS) * METHODS * BUDGETS))
    return [
        Pruned(
            base=Base(data="cifar10", model=model, schedule=SHORT, seed=seed),
            settings=Synthetic(number=number),
            learning=None,
            budget=Budget(share=(1 + budget) / (1 + BUDGETS)),
            finetune=SHORT,
            seed=seed,
        )
        for model in MODELS
        for number in range(METHODS)
        for budget in range(BUDGETS)
        for seed in range(seeds)
    ]


def write_rows(runs: list[Pruned], timing: Timing, folder: Path) -> int:
    """Write a row and a latency row per run, unflushed; return their number."""
    (folder / "rows").mkdir()
    draw, count = random.Random(0), 0
    for run in runs:
        for row in rows_of(run, timing, draw):
            text = json.dumps(records.to_dict(row), indent=1)
            (records.rows_folder(folder) / f"{row.key}.json").write_text(text, encoding="utf-8")
            count += 1
    return count


def rows_of(run: Pruned, timing: Timing, draw: random.Random) -> Iterator[records.Row]:
    """Yield the rows of a run and of its latency measurement."""
    timed, cut = Timed(pruned=run, timing=timing), 100 * run.budget.share
    about: dict[str, Any] = {
        "label": run.label,
        "status": "done",
        "data": run.base.data,
        "model": run.base.model,
        "method": run.method,
        "settings": run.described,
        "granularity": "filter",
        "groups": 1,
        "budget": run.budget.share,
        "budget_scope": "network",
        "seed": run.seed,
        "split": "all",
        "smoke": False,
        "provenance": {
            **{"commit": "0" * 40, "dirty": False, "device": CPU, "tf32": False, "threads": 2},
            **{"data_sha256": "d" * 64, "base_sha256": f"{run.seed:064d}"},
        },
    }
    accuracy = 92 - math.exp(cut / 30) / 4 + draw.gauss(0, 0.2)
    pruned: dict[str, Any] = {
        **{"key": run.key, "stage": identity(run), "base_top1_pct": 92.0, "pruned_top1_pct": accuracy},
        **{"drop_pp": 92 - accuracy, "macs": 1000, "macs_cut_pct": cut, "prunable_macs_cut_pct": cut},
        **{"params": 100, "params_cut_pct": cut, "coarse": False},
        **{"base_epochs": 2, "learning_epochs": 0, "finetune_epochs": 2},
    }
    yield records.PrunedRow(**{**about, **pruned})
    speed = 1 + cut / 100
    latency: dict[str, Any] = {
        **{"key": timed.key, "stage": identity(timed), "pruned_key": run.key, "device": CPU, "leg": "eager"},
        **{"batch": timing.batch, "precision": timing.precision, "layout": timing.layout, "protocol": timing.protocol},
        **{"dense_ms": 2.0, "packed_ms": 2 / speed, "speedup_x": speed, "theoretical_x": 1 / (1 - cut / 100)},
        **{"speedup_low_x": speed - 0.05, "speedup_high_x": speed + 0.05, "deployed": "groups"},
        **{"null_x": 1.0, "null_low_x": 0.99, "null_high_x": 1.01},
    }
    yield records.TimedRow(**{**about, **latency})


def main() -> int:
    """Print the seconds of every part; 1 when collecting takes longer than the limit."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--limit", type=float, default=5.0, metavar="S", help="seconds that collecting may take")
    arguments = parser.parse_args()
    seconds: dict[str, tuple[float, float]] = {}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        start, cpu = time.perf_counter(), time.process_time()
        yield
        seconds[name] = time.process_time() - cpu, time.perf_counter() - start

    timing = Timing()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = write_rows(runs_of(arguments.rows // 2), timing, folder)
        grid = Grid(title="Synthetic", about="Nothing.", runs=lambda: runs_of(arguments.rows // 2), timings=(timing,))
        with timed("read the rows"):
            loaded = frames.load(grid, folder, smoke=False)
        with timed("collect them into the table"):
            lines = cells.table(loaded)
        with timed("latency, pairs of methods, CSV, Markdown, LaTeX"):
            texts = documents.texts(content.collect("example", grid, loaded, smoke=False), ())
    title = f"{rows:,} rows, {len(lines):,} lines, {len(texts)} files; {platform.machine()}, {os.cpu_count()} cores"
    table = Table("part", "CPU seconds", "wall-clock seconds", title=title)
    for part, (cpu, wall) in seconds.items():
        table.add_row(part, f"{cpu:.2f}", f"{wall:.2f}")
    collect = seconds["read the rows"][0] + seconds["collect them into the table"][0]
    table.add_row("collect: read and table", f"{collect:.2f} (limit {arguments.limit:g})")
    Console(width=100).print(table)
    return int(collect > arguments.limit)


if __name__ == "__main__":
    sys.exit(main())
