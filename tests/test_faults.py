"""A grid on a real SLURM while everything that can go wrong does, at random moments: no run is lost, no bit is different.

The moments are drawn from a stored seed. SUITE_FAULT_SEED="20251126 20251127 20251128" runs three.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest
from cluster import Cluster, _tidy, slurm, waiting
from faults import FAULTS, Grid
from tiny_grid import results, wait_for

from suite import records
from suite.launch import queue
from suite.run import Context, execute

__all__ = ["_tidy", "slurm"]
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("slurm")]  # one cluster at a time

SEEDS = [int(seed) for seed in os.environ.get("SUITE_FAULT_SEED", "20251126").split()]
LIMIT_S = 1500.0
"""Time limit of a seed on a machine that is busy with other things; the time taken is printed."""


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_goes_wrong_every_run_ends_with_its_row(
    seed: int, tmp_path: Path, slurm: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    began = time.monotonic()
    moments = random.Random(seed)
    grid = Grid(tmp_path, slurm, moments)
    wait_for(grid.processes, 300)
    first_s = time.monotonic() - grid.launched_at
    kinds = [kind for kind, fault in FAULTS.items() for _ in range(fault.times)]
    moments.shuffle(kinds)
    injected: Counter[str] = Counter(dict.fromkeys(FAULTS, 0))
    tries = Counter[str]()
    while kinds:
        kind = kinds.pop(0)
        grid.wait(moments.uniform(0.5, 4))
        if not (hit := FAULTS[kind].inject(grid)) and tries[kind] < 3:  # no target within its time: later again
            tries[kind] += 1
            kinds.append(kind)
        injected[kind] += hit
        with (tmp_path / "injected.txt").open("a") as file:
            file.write(f"{time.monotonic() - began:.0f} s {kind}: {injected[kind]}\n")
    until_quiet(grid, began)
    seconds = time.monotonic() - began
    lost, differing = compare(grid, tmp_path / "undisturbed")
    with capsys.disabled():
        counts = "\n".join(f"  {count} x {kind}" for kind, count in injected.items())
        print(
            f"\nseed {seed}: {injected.total()} faults of {sum(map(bool, injected.values()))} kinds in {seconds:.0f} s, "
            f"{grid.launches} launches, runs deleted {grid.redone} times\n{counts}\n"
            f"first job running {first_s:.1f} s after the launch\n"
            f"{len(grid.stages)} stages; runs lost: {lost}; rows differing: {differing}"
        )
    assert (lost, differing) == (0, 0)
    assert all(injected.values()), injected
    assert waiting() == ""
    assert not list(grid.context.results.rglob("*.lease"))
    assert not (tmp_path / "outside").exists()


def until_quiet(grid: Grid, began: float) -> None:
    """Launch again until nothing is left to do."""
    while grid.undo or "nothing to do" not in grid.output or grid.launcher.returncode != 0:
        assert "left alone" not in grid.output, grid.output
        grid.keep_going()
        with contextlib.suppress(subprocess.TimeoutExpired):
            grid.launcher.wait(0.5)
        assert time.monotonic() - began < LIMIT_S, grid.output
    wait_for(lambda: queue.states() == {}, 60)


def compare(grid: Grid, folder: Path) -> tuple[int, int]:
    """Runs without a good row, and stages whose result differs from that of a run that nothing disturbed."""
    local = Context(results=folder, threads=1)
    runs = [stage for stage in grid.stages if stage.kind == "pruned"]
    assert len(runs) >= 24
    rows = {row.key for row in records.read_all(grid.context.results, [s.key for s in runs]) if row.status == "done"}
    assert [execute(stage, local) for stage in grid.stages] == ["done"] * len(grid.stages)
    good = [stage for stage in grid.stages if stage.kind != "pruned" or stage.key in rows]
    ours, theirs = results(local, good), results(grid.context, good)
    files = list(records.rows_folder(grid.context.results).glob("*.json"))
    assert len(files) == len(rows), "one row a run"
    return len(runs) - len(rows), sum(ours[name] != theirs.get(name) for name in ours)
