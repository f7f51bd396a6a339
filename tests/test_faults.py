"""A grid on a real SLURM while everything that can go wrong does, at random moments: no run is lost, no bit is different.

SUITE_FAULT_SEED gives other moments.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
from cluster import Cluster, _tidy, asked, slurm, submit, waiting
from test_launch import HEAD
from tiny_grid import results, wait_for

from suite import grids, records
from suite.launch import queue, record
from suite.progress import read
from suite.run import Context, execute, is_done
from suite.stages import Stage

T = TypeVar("T")
__all__ = ["_tidy", "slurm"]
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("slurm")]  # one cluster at a time

SEED = int(os.environ.get("SUITE_FAULT_SEED", "20251126"))
RUNS = """[
    run
    for base in (Base(data="digits", model="vgg6", schedule=schedule(epochs=8, images=512), seed=seed) for seed in range(2))
    for method in ("l1_filter", "random_filter", "slimming")
    for run in cross(bases=[base], method=method, budgets=[0.3, 0.4, 0.5, 0.6], finetune=schedule(epochs=8, images=512),
                     learning=schedule(epochs=8, images=512) if method == "slimming" else None)
]"""
"""24 runs of about two seconds, the stages that they need, and no latency, which is never the same."""
RESOURCES = ("time=60", "cpus_per_task=1", "mem=8000")
"""Two jobs on a node at most, of up to four runs: this machine may have two cores."""
FAULTS = {
    "pre-emption": 2,
    "requeue": 2,
    "scancel": 1,
    "SIGKILL of a job's process": 2,
    "controller killed": 1,
    "controller killed after a submit": 1,
    "node lost": 1,
    "launcher killed": 2,
    "checkpoint truncated": 1,
    "row truncated": 1,
}
NODE_AWAY_S = 33.0
"""A lost node is noticed after about 30 s."""
TARGET_S = 180.0
"""For so long a fault waits for something that it can hit."""
ADMINISTER_S = 5.0
LIMIT_S = 1500.0
"""Of a machine that is busy with other things; what it takes is printed."""


class Grid:
    """The grid under attack, and its launcher, which is started again whenever it has ended."""

    def __init__(self, folder: Path, cluster: Cluster, moments: random.Random) -> None:
        self.folder = folder
        self.cluster = cluster
        self.moments = moments
        self.path = folder / "faults.py"
        self.path.write_text(f"{HEAD}\nGRID = Grid(title='Faults', about='', runs=lambda: {RUNS}, timings=())\n")
        grid = grids.load(str(self.path))
        self.stages = grids.stages_of(grid, grids.runs_of(grid))
        self.context = Context(results=folder / "results", threads=1)
        self.launches = 0
        self.away, self.node_back_at = "", float("inf")
        self.administered_at = time.monotonic()
        self.launch()

    def launch(self) -> None:
        """Start the launcher."""
        self.launched_at = time.monotonic()
        self.launcher = submit(self.path, self.folder, "--runs-per-gpu", 4, resources=RESOURCES)
        self.launches += 1

    @property
    def output(self) -> str:
        return (self.folder / "out.txt").read_text()

    def keep_going(self) -> None:
        """What happens beside the faults: a launcher that has ended is started again, a lost node comes back."""
        if self.launcher.poll() is not None:
            assert self.launcher.returncode in (0, 1, 75, -signal.SIGKILL), self.output
            self.launch()
        if time.monotonic() > self.node_back_at:
            self.node_back_at = float("inf")
            self.cluster.tool("start", self.away)
            self.away = ""
        self.administer()

    def administer(self) -> None:
        """What an administrator does after a controller has lost its memory: it gives numbers away again, drains the nodes that
        still run a job of that number, and holds the new one."""
        if time.monotonic() < self.administered_at + ADMINISTER_S:
            return
        self.administered_at = time.monotonic()
        with contextlib.suppress(subprocess.SubprocessError):  # the controller is not back yet
            self.free_nodes_and_jobs()

    def free_nodes_and_jobs(self) -> None:
        if drained := asked("sinfo", "--noheader", "--Node", "--states=drain", "--format=%N").split():
            asked("scontrol", "update", f"NodeName={','.join(sorted(set(drained)))}", "State=RESUME")
        held = asked("squeue", "--noheader", "--array", "--states=PENDING", "--format=%i|%r").splitlines()
        if jobs := [job for job, _, reason in (line.partition("|") for line in held) if "held" in reason]:
            asked("scontrol", "release", *jobs)

    def wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.keep_going()
            time.sleep(0.2)

    def target(self, find: Callable[[], list[T]]) -> T | None:
        """One of what `find` gives, as soon as it gives any."""
        end = time.monotonic() + TARGET_S
        while time.monotonic() < end:
            self.keep_going()
            if found := find():
                return self.moments.choice(found)
            time.sleep(0.1)
        return None

    def running(self) -> list[str]:
        """The jobs that run."""
        return sorted(job for job, state in (queue.states() or {}).items() if state == "RUNNING")

    def nodes(self) -> list[str]:
        """The nodes of the jobs that run."""
        command = ["squeue", "-h", "-t", "RUNNING", "-o", "%N"]
        said = subprocess.run(command, capture_output=True, text=True, timeout=30).stdout
        return sorted({node for node in said.split() if node != self.away})

    def processes(self) -> list[int]:
        """Processes that are doing a stage."""
        found = (read(self.context.folder(s) / "progress.json") for s in self.stages if not is_done(s, self.context))
        return sorted(int(state["pid"]) for state in found if "pid" in state and alive(int(state["pid"])))

    def finished(self) -> list[Stage]:
        return [stage for stage in self.stages if (self.context.folder(stage) / "done.json").exists()]

    def jobs(self) -> dict[str, str]:
        launch = record.read(self.context.results, "faults")
        return launch.jobs if launch else {}

    def inject(self, kind: str) -> bool:
        """Let it happen; False when there was nothing that it could happen to."""
        if kind == "pre-emption":
            if node := self.target(self.nodes):
                asked("sbatch", "-p", "high", "-w", node, "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1")
            return node is not None
        if kind in ("requeue", "scancel"):
            job = self.target(self.running)
            command = ("scancel",) if kind == "scancel" else ("scontrol", "requeue")
            return job is not None and subprocess.run([*command, job], capture_output=True, timeout=30).returncode == 0
        if kind == "SIGKILL of a job's process":
            process = self.target(self.processes)
            with contextlib.suppress(ProcessLookupError):
                if process is not None:
                    os.kill(process, signal.SIGKILL)
                    return True
            return False
        if kind.startswith("controller killed"):
            return self.kill_controller(after_a_submit=kind != "controller killed")
        if kind == "node lost":
            if node := self.target(self.nodes):
                self.cluster.tool("kill", node)
                self.away, self.node_back_at = node, time.monotonic() + NODE_AWAY_S
            return node is not None
        if kind == "launcher killed":
            self.keep_going()
            self.launcher.kill()
            self.launcher.wait()
            return True
        return self.truncate("packed.safetensors" if kind == "checkpoint truncated" else "row")

    def kill_controller(self, *, after_a_submit: bool) -> bool:
        """With a new launcher, and a stage that is not with SLURM, so that there is something to submit."""
        if after_a_submit:
            self.launcher.kill()
            self.launcher.wait()
            states = queue.states() or {}
            known = {key: job for key, job in self.jobs().items() if job in states}
            for key in list(known)[-2:]:
                asked("scancel", known[key])
            self.launch()
            before = self.jobs()
            hit = self.target(lambda: [1] * (self.jobs() != before))
            submitted_at = time.monotonic()
        self.cluster.tool("kill", "ctld")
        if after_a_submit:
            assert time.monotonic() - submitted_at < 5
        time.sleep(self.moments.uniform(0.5, 3))
        self.cluster.tool("start", "ctld")
        return not after_a_submit or hit is not None

    def truncate(self, what: str) -> bool:
        """A finished run's network, or a row."""

        def finished() -> list[Stage]:
            return [stage for stage in self.finished() if stage.kind == "pruned"]

        if (stage := self.target(finished)) is None:
            return False
        path = self.context.folder(stage) / what
        if what == "row":
            path = records.rows_folder(self.context.results) / f"{stage.key}.json"
        os.truncate(path, path.stat().st_size // 2)
        return True


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_whatever_goes_wrong_every_run_ends_with_its_row(
    tmp_path: Path, slurm: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    began = time.monotonic()
    moments = random.Random(SEED)
    grid = Grid(tmp_path, slurm, moments)
    wait_for(grid.processes, 300)
    first_s = time.monotonic() - grid.launched_at
    faults = [kind for kind, times in FAULTS.items() for _ in range(times)]
    moments.shuffle(faults)
    injected: Counter[str] = Counter(dict.fromkeys(FAULTS, 0))
    for kind in faults:
        grid.wait(moments.uniform(1, 6))
        injected[kind] += grid.inject(kind)
    until_quiet(grid, began)
    seconds = time.monotonic() - began
    lost, differing = compare(grid, tmp_path / "undisturbed")
    with capsys.disabled():
        counts = "\n".join(f"  {count} x {kind}" for kind, count in injected.items())
        print(
            f"\nseed {SEED}: {injected.total()} faults in {seconds:.0f} s, {grid.launches} launches\n{counts}\n"
            f"first job running {first_s:.1f} s after the launch\n"
            f"{len(grid.stages)} stages; runs lost: {lost}; rows differing: {differing}"
        )
    assert all(injected.values()), injected
    assert (lost, differing) == (0, 0)
    assert waiting() == ""
    assert not list(grid.context.results.rglob("*.lease"))
    assert not list(grid.context.results.rglob("*.part"))


def until_quiet(grid: Grid, began: float) -> None:
    """Launch again until nothing is left to do."""
    while "nothing to do" not in grid.output or grid.launcher.returncode != 0:
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
