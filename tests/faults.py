"""Faults for a grid on a private SLURM: kinds, how often a seed has each, and the means to inject them."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from cluster import Cluster, asked, submit
from test_launch import HEAD

from suite import grids, records
from suite.launch import queue, record
from suite.progress import read
from suite.run import Context, is_done
from suite.stages import Stage

T = TypeVar("T")
RUNS = """[
    run
    for base in (Base(data="digits", model="vgg6", schedule=schedule(epochs=8, images=512), seed=seed) for seed in range(2))
    for method in ("l1_filter", "random_filter", "slimming")
    for run in cross(bases=[base], method=method, budgets=[0.3, 0.4, 0.5, 0.6], finetune=schedule(epochs=8, images=512),
                     learning=schedule(epochs=8, images=512) if method == "slimming" else None)
]"""
"""24 runs of about two seconds, the stages that they need, and no latency, which differs between two measurements."""
RESOURCES = ("time=60", "cpus_per_task=1", "mem=8000")
"""Two jobs on a node at most, of up to four runs: this machine may have two cores."""
NODE_AWAY_S = 33.0
"""SLURM notices a lost node after about 30 s."""
TARGET_S = 60.0
"""Time limit of the search for a target of a fault."""
ADMINISTER_S = 5.0


class Grid:
    """The grid under attack, and its launcher, which is started again if it has ended."""

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
        self.redone = 0
        self.may_fail = False
        self.away: set[str] = set()
        self.undo: list[tuple[float, Callable[[], object]]] = []
        self.administered_at = time.monotonic()
        self.launch()

    def launch(self) -> None:
        """Start the launcher."""
        self.launched_at = time.monotonic()
        self.launcher = submit(self.path, self.folder, "--runs-per-gpu", 4, resources=RESOURCES)
        self.launches += 1

    @property
    def output(self) -> str:
        """Output of the last launcher."""
        return (self.folder / "out.txt").read_text()

    # ---- beside the faults -------------------------------------------------------------------------------------------

    def keep_going(self) -> None:
        """Start an ended launcher again, undo faults that are due, and do an administrator's work."""
        for due_at, undo in list(self.undo):
            if time.monotonic() > due_at:
                self.undo.remove((due_at, undo))
                undo()
        if self.launcher.poll() is not None:
            ended = (0, 1, 75, -signal.SIGKILL, -signal.SIGTERM, 130)
            stopped = "stopped watching" in self.output
            assert self.launcher.returncode in ended or stopped or self.may_fail, (
                self.launcher.returncode,
                self.output,
            )
            self.launch()
        self.administer()

    def later(self, seconds: float, undo: Callable[[], object]) -> None:
        """Undo a fault after so many seconds."""
        self.undo.append((time.monotonic() + seconds, undo))

    def administer(self) -> None:
        """Resume drained nodes, and release held jobs, at intervals of ADMINISTER_S.

        A controller that has lost its state reuses numbers, drains the nodes that run a job of such a number, and holds the new
        job.
        """
        if time.monotonic() < self.administered_at + ADMINISTER_S:
            return
        self.administered_at = time.monotonic()
        with contextlib.suppress(subprocess.SubprocessError):  # the controller is not back yet
            self.free_nodes_and_jobs()

    def free_nodes_and_jobs(self) -> None:
        """Resume drained nodes, release held jobs, and resume suspended ones."""
        if drained := asked("sinfo", "--noheader", "--Node", "--states=drain", "--format=%N").split():
            asked("scontrol", "update", f"NodeName={','.join(sorted(set(drained)))}", "State=RESUME")
        held = asked("squeue", "--noheader", "--array", "--states=PENDING", "--format=%i|%r").splitlines()
        if jobs := [job for job, _, reason in (line.partition("|") for line in held) if "held" in reason.lower()]:
            asked("scontrol", "release", *jobs)
        for job in asked("squeue", "--noheader", "--array", "--states=SUSPENDED", "--format=%i").split():
            subprocess.run(["scontrol", "resume", job], capture_output=True, timeout=30)

    def wait(self, seconds: float) -> None:
        """Let the grid run."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.keep_going()
            time.sleep(0.2)

    # ---- targets -----------------------------------------------------------------------------------------------------

    def target(self, find: Callable[[], Sequence[T]]) -> T | None:
        """Return one of the targets as soon as there are any. If all stages are done, some are redone."""
        end = time.monotonic() + TARGET_S
        while time.monotonic() < end:
            self.keep_going()
            if targets := find():
                return self.moments.choice(targets)
            if all(is_done(stage, self.context) for stage in self.stages):
                self.redo(6)
            time.sleep(0.1)
        return None

    def redo(self, count: int) -> None:
        """Delete the folders of finished runs, so that there is work left."""
        runs = [stage for stage in self.finished() if stage.kind == "pruned"]
        for stage in self.moments.sample(runs, min(count, len(runs))):
            shutil.rmtree(self.context.folder(stage), ignore_errors=True)
        self.redone += 1

    def jobs_in(self, state: str) -> list[str]:
        """Return the jobs in a state of SLURM."""
        return sorted(job for job, name in (queue.states() or {}).items() if name == state)

    def nodes(self) -> list[str]:
        """Return the nodes of running jobs."""
        command = ["squeue", "-h", "-t", "RUNNING", "-o", "%N"]
        try:
            output = subprocess.run(command, capture_output=True, text=True, timeout=30).stdout
        except subprocess.TimeoutExpired:  # the controller recovers from an earlier fault
            return []
        return sorted({node for node in output.split() if node not in self.away})

    def processes(self) -> list[int]:
        """Return the processes that execute a stage."""
        reports = (read(self.context.folder(s) / "progress.json") for s in self.stages if not is_done(s, self.context))
        return sorted(int(report["pid"]) for report in reports if "pid" in report and alive(int(report["pid"])))

    def finished(self) -> list[Stage]:
        """Return the stages with a done.json."""
        return [stage for stage in self.stages if (self.context.folder(stage) / "done.json").exists()]

    def finished_runs(self) -> list[Path]:
        """Return the folders of finished runs."""
        return [self.context.folder(stage) for stage in self.finished() if stage.kind == "pruned"]

    def started(self) -> list[Path]:
        """Return the folders of stages that are not done."""
        folders = (self.context.folder(stage) for stage in self.stages if not is_done(stage, self.context))
        return [folder for folder in folders if folder.exists()]

    def row_of(self, folder: Path) -> Path:
        """Return the path of a run's row."""
        return records.rows_folder(self.context.results) / f"{folder.name}.json"


def alive(pid: int) -> bool:
    """Return True if the process exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


# ---- faults of SLURM -------------------------------------------------------------------------------------------------


def told(*words: str) -> bool:
    """Run a command of SLURM; return True if it succeeded in time."""
    try:
        return subprocess.run(words, capture_output=True, timeout=30).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def on_job(state: str, *command: str, undo: tuple[str, ...] = (), seconds: float = 0.0) -> Callable[[Grid], bool]:
    """Return a fault that runs a command with a job's number, and undoes it later."""

    def inject(grid: Grid) -> bool:
        job = grid.target(lambda: grid.jobs_in(state))
        if job is None or not told(*command, job):
            return False
        if undo:
            grid.later(seconds, lambda: told(*undo, job))
        return True

    return inject


def preempt(grid: Grid) -> bool:
    node = grid.target(grid.nodes)
    if node is None:
        return False
    return told("sbatch", "-p", "high", "-w", node, "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1")


def drain(grid: Grid) -> bool:
    node = grid.target(grid.nodes)
    return node is not None and told("scontrol", "update", f"NodeName={node}", "State=DRAIN", "Reason=test")


def lose_node(grid: Grid) -> bool:
    if node := grid.target(grid.nodes):
        grid.cluster.tool("kill", node)
        grid.away.add(node)

        def back() -> None:
            grid.cluster.tool("start", node)
            grid.away.discard(node)

        grid.later(NODE_AWAY_S, back)
    return node is not None


def restart_node(grid: Grid) -> bool:
    node = grid.target(grid.nodes)
    return node is not None and grid.cluster.tool("restart", node).returncode == 0


def down(daemon: str, seconds: float) -> Callable[[Grid], bool]:
    """Return a fault that kills a daemon and starts it after some seconds."""

    def inject(grid: Grid) -> bool:
        grid.target(lambda: grid.jobs_in("RUNNING"))
        grid.cluster.tool("kill", daemon)
        end = time.monotonic() + seconds
        while time.monotonic() < end:  # nobody administers meanwhile
            time.sleep(0.2)
            if grid.launcher.poll() is not None:
                break
        return grid.cluster.tool("start", daemon).returncode == 0

    return inject


def kill_controller_after_a_submit(grid: Grid) -> bool:
    """Kill the controller within 5 s of a submission by a new launcher."""
    stop_launcher(grid, signal.SIGKILL)
    grid.redo(2)
    launch = record.read(grid.context.results, "faults")
    states = queue.states() or {}
    for job in [job for job in (launch.jobs if launch else {}).values() if job in states][-2:]:
        told("scancel", job)
    grid.launch()
    before = launch.jobs if launch else {}

    def submitted() -> list[int]:
        now = record.read(grid.context.results, "faults")
        return [1] * (now is not None and now.jobs != before)

    hit = grid.target(submitted)
    grid.cluster.tool("kill", "ctld")
    time.sleep(grid.moments.uniform(0.5, 3))
    return grid.cluster.tool("start", "ctld").returncode == 0 and hit is not None


# ---- faults of processes ---------------------------------------------------------------------------------------------


def on_process(number: signal.Signals, seconds: float = 0.0) -> Callable[[Grid], bool]:
    """Return a fault that sends a signal to a job's process, and SIGCONT after some seconds."""

    def send(process: int, what: signal.Signals) -> bool:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, what)
            return True
        return False

    def inject(grid: Grid) -> bool:
        process = grid.target(grid.processes)
        if process is None or not send(process, number):
            return False
        if seconds:
            grid.later(seconds, lambda: send(process, signal.SIGCONT))
        return True

    return inject


def stop_launcher(grid: Grid, number: signal.Signals) -> bool:
    """Send a signal to the launcher; kill it if it has not ended after 20 s."""
    grid.keep_going()
    grid.launcher.send_signal(number)
    with contextlib.suppress(subprocess.TimeoutExpired):
        grid.launcher.wait(20)
    grid.launcher.kill()
    grid.launcher.wait()
    return True


def on_launcher(number: signal.Signals) -> Callable[[Grid], bool]:
    """Return a fault that stops the launcher by a signal."""
    return lambda grid: stop_launcher(grid, number)


# ---- faults of files -------------------------------------------------------------------------------------------------

NESTED = "[" * 5000 + "]" * 5000


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def outside(path: Path) -> None:
    """Name a file outside of the stage's folder in done.json."""
    done = json.loads(path.read_text())
    done["files"]["../../outside"] = {"bytes": 1, "sha256": ""}
    path.write_text(json.dumps(done))


def content(text: str) -> Callable[[Path], None]:
    """Return a fault that replaces a file's content."""

    def replace(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    return replace


def on_file(find: Callable[[Grid], Sequence[Path]], damage: Callable[[Path], object]) -> Callable[[Grid], bool]:
    """Return a fault that damages one of the files."""

    def inject(grid: Grid) -> bool:
        path = grid.target(lambda: find(grid))
        if path is None:
            return False
        with contextlib.suppress(FileNotFoundError):  # a stage has begun anew
            damage(path)
            return True
        return False

    return inject


def output(name: str) -> Callable[[Grid], list[Path]]:
    """Return a search for a file of finished runs."""
    return lambda grid: [folder / name for folder in grid.finished_runs() if (folder / name).exists()]


def unfinished(name: str) -> Callable[[Grid], list[Path]]:
    """Return a search for a file of stages that are not done; the file may be missing."""
    return lambda grid: [folder / name for folder in grid.started()]


def rows(grid: Grid) -> list[Path]:
    return [path for folder in grid.finished_runs() if (path := grid.row_of(folder)).exists()]


def launch_record(grid: Grid) -> list[Path]:
    path = grid.context.results / "launches" / "faults.json"
    return [path] if path.exists() else []


def unwritable(seconds: float) -> Callable[[Grid], bool]:
    """Return a fault that makes the results folder read-only for so long."""

    def inject(grid: Grid) -> bool:
        grid.target(grid.processes)
        folder = str(grid.context.results)
        if not told("mount", "--bind", folder, folder):
            return False
        grid.may_fail = True
        try:
            done = told("mount", "-o", "remount,ro,bind", folder)
            grid.wait(seconds)
        finally:
            told("umount", "--lazy", folder)
            grid.launcher.kill()  # it may be about to report the folder
            grid.launcher.wait()
            grid.may_fail = False
        return done

    return inject


# ---- the kinds -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """A kind of fault, and how often a seed has it."""

    times: int
    inject: Callable[[Grid], bool]


FAULTS: dict[str, Fault] = {
    "pre-emption": Fault(3, preempt),
    "requeue": Fault(3, on_job("RUNNING", "scontrol", "requeue")),
    "requeuehold": Fault(2, on_job("RUNNING", "scontrol", "requeuehold")),
    "scancel": Fault(2, on_job("RUNNING", "scancel")),
    "job suspended": Fault(2, on_job("RUNNING", "scontrol", "suspend", undo=("scontrol", "resume"), seconds=5)),
    "pending job held": Fault(1, on_job("PENDING", "scontrol", "hold")),
    "node drained": Fault(2, drain),
    "node lost": Fault(1, lose_node),
    "node's daemon restarted": Fault(1, restart_node),
    "controller killed": Fault(1, down("ctld", 2)),
    "controller killed after a submit": Fault(1, kill_controller_after_a_submit),
    "slurmdbd down": Fault(1, down("dbd", 5)),
    "munge down": Fault(1, down("munged", 5)),
    "job's process killed": Fault(4, on_process(signal.SIGKILL)),
    "job's process terminated": Fault(2, on_process(signal.SIGTERM)),
    "job's process told to stop": Fault(2, on_process(signal.SIGUSR2)),
    "job's process asleep": Fault(2, on_process(signal.SIGSTOP, 5)),
    "launcher killed": Fault(2, on_launcher(signal.SIGKILL)),
    "launcher terminated": Fault(2, on_launcher(signal.SIGTERM)),
    "launcher interrupted": Fault(2, on_launcher(signal.SIGINT)),
    "results unwritable": Fault(1, unwritable(10)),
    "network truncated": Fault(2, on_file(output("packed.safetensors"), truncated)),
    "row truncated": Fault(2, on_file(rows, truncated)),
    "row nested 5,000 deep": Fault(1, on_file(rows, content(NESTED))),
    "row deleted": Fault(1, on_file(rows, Path.unlink)),
    "done.json truncated": Fault(1, on_file(output("done.json"), truncated)),
    "done.json of a wrong shape": Fault(1, on_file(output("done.json"), content('{"files": ["x"]}'))),
    "done.json with a name outside": Fault(1, on_file(output("done.json"), outside)),
    "launch record of a wrong shape": Fault(1, on_file(launch_record, content('{"jobs": [1]}'))),
    "failures.json of a wrong shape": Fault(1, on_file(unfinished("failures.json"), content('{"x": 3}'))),
    "progress.json of a wrong shape": Fault(1, on_file(unfinished("progress.json"), content('["x"]'))),
    "started.json of a wrong shape": Fault(1, on_file(unfinished("started.json"), content('{"threads": ["x"]}'))),
    "output deleted": Fault(1, on_file(Grid.finished_runs, shutil.rmtree)),
}
"""Kind -> fault. A seed has 51 faults, so three seeds have more than 150."""
