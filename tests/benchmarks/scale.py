"""Seconds and memory of planning grids of 100, 1,000 and 10,000 runs.

    python tests/benchmarks/scale.py [--runs 100 1000 10000] [--limit-s 5] [--limit-mb 500]

Planning, hashing of stages and reading of states are timed apart. The runs are two methods that learn and three that do not,
on two networks, at ten budgets, with as many seeds as needed; each run has a latency measurement. Half of the stages have an
output in a temporary folder, one of a hundred has a failure. Every size has a process of its own. Memory is the peak of that
process's anonymous pages; the share of importing torch and the pages of library files, which all processes share, are columns
too. `linear` is the time per run divided by the time per run of the row above: 1.0 is linear, less is better. Seconds are this
process's own CPU time, which a busy machine does not change, beside the wall-clock sum. The exit status is 1 if the largest
grid is over a limit.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:  # `measure` imports when it is to be measured
    from suite.run import Context
    from suite.stages import Pruned, Stage

PARTS = ("list the runs", "find and hash the stages", "what is done (launch)", "status", "status again")
LEARNING, PLAIN, MODELS, BUDGETS = (
    ("dsp", "slimming"),
    ("l1_filter", "fpgm", "random_filter"),
    ("resnet20", "resnet56"),
    10,
)


@dataclass
class Sizes:
    """Counts and measurements for one number of runs."""

    runs: int
    stages: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    wall_s: float = 0.0
    torch_mb: float = 0.0
    memory_mb: float = 0.0
    files_mb: float = 0.0
    states: dict[str, int] = field(default_factory=dict)


def memory_mb(name: str) -> float:
    """Return an entry of /proc/self/status, such as RssAnon."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024


def many(count: int) -> list[Pruned]:
    """Return about `count` runs, of methods with and without learning."""
    from suite.grids import cross
    from suite.schedule import Schedule
    from suite.stages import Base

    short = Schedule(epochs=2, lr=0.1, weight_decay=0.0)
    seeds = range(count // (len(MODELS) * BUDGETS * len(LEARNING + PLAIN)))
    bases = [Base(data="cifar10", model=model, schedule=short, seed=seed) for model in MODELS for seed in seeds]
    budgets = [(1 + number) / (1 + BUDGETS) for number in range(BUDGETS)]
    return [
        run
        for method in LEARNING + PLAIN
        for run in cross(bases=bases, method=method, budgets=budgets, finetune=short, learning=short)
    ]


def leave(stage: Stage, number: int, context: Context) -> None:
    """Write the output of a finished stage, or of a failed one at 1 %."""
    from suite.stages import identity

    folder = context.folder(stage)
    folder.mkdir(parents=True)
    if number % 100 == 0:
        (folder / "failed.json").write_text(json.dumps({"status": "failed", "reason": "example", "time": 0.0}))
        return
    about = {"stage": identity(stage), "label": stage.label}
    row: dict[str, Any] | None = None
    if stage.kind in ("pruned", "timed"):
        row = {"key": stage.key, **about, "seconds": 1.0, "filler": "x" * 1500}
        (context.results / "rows" / f"{stage.key}.json").write_text(json.dumps(row, indent=1))
    (folder / "packed.safetensors").write_bytes(b"whole")
    files = {"packed.safetensors": {"bytes": 5, "sha256": "0" * 64}}
    done = {**about, "files": files, "result": {"seconds": 1.0}, "row": row}
    (folder / "done.json").write_text(json.dumps(done, indent=1))


def measure(count: int) -> Sizes:
    """Measure all parts for a grid of `count` runs."""
    import torch  # noqa: F401  (what it takes is measured)

    sizes = Sizes(runs=count, torch_mb=memory_mb("RssAnon"))
    from suite import grids, methods
    from suite.launch.status import Observer
    from suite.run import Context, is_done
    from suite.stages import Timing

    @contextmanager
    def timed(part: str) -> Iterator[None]:
        began, cpu = time.perf_counter(), time.process_time()
        yield
        sizes.seconds[part] = time.process_time() - cpu
        sizes.wall_s += time.perf_counter() - began

    methods.discover()  # imports every method's libraries: a second, whatever the grid
    grid = grids.Grid(
        title="Scale", about="Nothing.", runs=lambda: many(count), timings=(Timing(device="cuda", protocol="quick"),)
    )
    with timed(PARTS[0]):
        runs = grids.runs_of(grid)
    with timed(PARTS[1]):
        stages = grids.stages_of(grid, runs)
    sizes.runs, sizes.stages = len(runs), len(stages)
    with tempfile.TemporaryDirectory() as name:
        context = Context(results=Path(name))
        (context.results / "rows").mkdir()
        for number, stage in enumerate(stages[: len(stages) // 2]):
            leave(stage, number, context)
        observer = Observer(stages, context)
        with timed(PARTS[2]):
            done = sum(is_done(stage, context) for stage in stages)
        with timed(PARTS[3]):
            states = observer.states(None, {})
        with timed(PARTS[4]):
            observer.states(None, {})
    sizes.states = dict(Counter(state.name for state in states))
    assert sizes.states["done"] == done
    sizes.memory_mb, sizes.files_mb = memory_mb("RssAnon"), memory_mb("RssFile")
    return sizes


def main() -> int:
    """Print the table; 1 when the largest grid is over a limit."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--limit-s", type=float, default=5.0, metavar="S")
    parser.add_argument("--limit-mb", type=float, default=500.0, metavar="MB")
    arguments = parser.parse_args()
    if min(arguments.runs) < 100:
        parser.error(f"--runs {min(arguments.runs)}: it takes 100 or more, a seed of every network, budget and method")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
        measured = list(pool.map(measure, sorted(arguments.runs)))
    table = Table(
        *("runs", "stages", *PARTS, "sum", "linear", "wall", "MB alone", "torch's", "MB shared"),
        title=f"seconds; {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
    )
    before: Sizes | None = None
    for sizes in measured:
        total = sum(sizes.seconds.values())
        linear = f"{total / sizes.runs / (sum(before.seconds.values()) / before.runs):.2f}" if before else ""
        table.add_row(
            f"{sizes.runs:,}",
            f"{sizes.stages:,}",
            *(f"{sizes.seconds[part]:.3f}" for part in PARTS),
            f"{total:.2f}",
            linear,
            f"{sizes.wall_s:.2f}",
            *(f"{mb:.0f}" for mb in (sizes.memory_mb, sizes.torch_mb, sizes.files_mb)),
        )
        before = sizes
    console = Console(width=130)
    console.print(table)
    largest = measured[-1]
    states = ", ".join(f"{number:,} {name}" for name, number in largest.states.items())
    console.print(f"stages of the largest: {states}", highlight=False)
    within = sum(largest.seconds.values()) <= arguments.limit_s and largest.memory_mb <= arguments.limit_mb
    console.print(f"limits: {arguments.limit_s:g} s and {arguments.limit_mb:g} MB: {'kept' if within else 'BROKEN'}")
    return int(not within)


if __name__ == "__main__":
    sys.exit(main())
