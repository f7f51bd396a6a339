"""`--status`, `--follow` and `--cancel`: a grid seen, and ended, from any shell. The launcher need not live."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from suite import lease
from suite.files import write_json
from suite.launch import queue, record
from suite.launch.display import minutes
from suite.launch.record import Launch
from suite.launch.status import (
    NAMES,
    RUNNING,
    Name,
    Observer,
    State,
    counts,
    launcher_lives,
    log_of,
    process_of,
    tail,
    time_left_s,
)
from suite.run import Context
from suite.stages import Stage

STYLES: dict[Name, str] = {"done": "green", "running": "cyan", "failed": "red", "lost": "red", "interrupted": "yellow"}
REFRESH_S = 2.0
WIDTH = 160
"""Columns where there is no terminal."""
USUAL = ("None", "Dependency", "Priority", "Resources", "BeginTime", "JobArrayTaskLimit")
"""Reasons to wait that pass by themselves: after a requeue, and by --parallel, too."""
AGAIN_S = 60.0
"""After so long accounting is asked again about a job that it did not know."""
AT_A_TIME = 2000
"""Jobs that one scancel is given."""
STOP_S = 10.0
"""A launcher that was told to stop is given so long to say which jobs it has submitted."""


class View:
    """What is to be seen of a grid: everything is read anew each time, with one call of squeue, and one of sacct when a job
    was lost since the last.

    name  of the grid's launch file
    """

    def __init__(self, name: str, stages: Sequence[Stage], context: Context) -> None:
        self.name = name
        self.context = context
        self.observer = Observer(stages, context)
        self.launch: Launch | None = None
        self.jobs: dict[str, str] | None = {}
        """The states of SLURM's jobs; None when it is silent."""
        self.held: Counter[str] = Counter()
        """How many of them wait for what unusual reason."""
        self.ended: dict[str, str] = {}
        """How the jobs of lost stages ended, as far as SLURM knows."""
        self.asked: dict[str, float] = {}
        """When it was asked about each, in seconds."""
        self.states: list[State] = []

    def look(self) -> None:
        """Read the states."""
        self.launch = record.read(self.context.results, self.name)
        found = queue.jobs(self.name) if self.launch and self.launch.jobs else {}
        self.jobs = None if found is None else {job: state for job, (state, _) in found.items()}
        waiting = (reason for state, reason in (found or {}).values() if state == "PENDING")
        self.held = Counter(reason for reason in waiting if reason not in USUAL)
        self.states = self.observer.states(self.launch, self.jobs)
        lost = {state.job for state in self.states if state.name == "lost"} - {""}
        self.ended = {job: how for job, how in self.ended.items() if job in lost}
        now = time.monotonic()
        unknown = {job for job in lost - self.ended.keys() if now - self.asked.get(job, -math.inf) > AGAIN_S}
        if unknown:
            self.asked |= dict.fromkeys(unknown, now)
            self.ended |= {job: how for job, how in queue.ended(unknown).items() if how not in (*RUNNING, "PENDING")}

    @property
    def exit_status(self) -> int:
        """0 all done, 1 something failed or was lost, 75 not done yet."""
        there = Counter(state.name for state in self.states)
        return 1 if there["failed"] or there["lost"] else 0 if there["done"] == len(self.states) else 75

    @property
    def goes_on(self) -> bool:
        """Whether anything runs or waits to run, or may do so while SLURM is silent."""
        silent = self.jobs is None
        return any(
            state.name in ("running", "queued") or (silent and state.job and state.name not in ("done", "failed"))
            for state in self.states
        )

    def summary(self) -> str:
        """One line: how many stages stand where, and the time left."""
        there = Counter(state.name for state in self.states)
        left = time_left_s(self.states)
        parts = [f"{there[name]:,} {name}" for name in NAMES if there[name]]
        time_left = f"; about {minutes(left)} left" if left is not None else ""
        return f"{self.name}: {len(self.states):,} stages: {', '.join(parts)}{time_left}"

    def lines(self) -> Iterator[RenderableType]:
        """The whole picture: counts, what runs, what failed."""
        yield Text(self.summary(), style="bold")
        yield Text(_launched(self.launch, self.context.results), style="dim")
        if self.jobs is None:
            yield Text("SLURM does not answer squeue: which jobs wait or run is not known", style="yellow")
        for reason, count in self.held.most_common():
            yield Text(f"SLURM lets {count:,} jobs wait: {reason}", style="yellow")
        yield _counted(self.states)
        if running := [state for state in self.states if state.name == "running"]:
            yield _running(running)
        yield from self._bad()

    def _bad(self) -> Iterator[RenderableType]:
        """What failed, was lost or interrupted; the end of the log once for each reason."""
        shown: set[tuple[str, str]] = set()
        for state in self.states:
            if state.name not in ("failed", "lost", "interrupted"):
                continue
            reason = str(state.about.get("reason") or f"nothing was heard of it since {_when(state)}")
            how = self.ended.get(state.job, "") if state.name == "lost" else ""
            ended = f"its job {state.job} ended as {how}; " if how else ""
            yield Text.assemble((f"{state.name:11} ", STYLES[state.name]), f"{state.stage.key} {state.stage.label}")
            yield Text(f"{'':12}{ended}{reason}")
            log = log_of(state, self.context) if state.name != "interrupted" else None
            if log is not None:
                yield Text(f"{'':12}{_shown(log)}", style="dim")
                if (how, reason) not in shown:
                    yield from (Text(f"{'':12}| {line}", style="dim") for line in tail(log))
                shown.add((how, reason))


def show(view: View, console: Console) -> int:
    """Print the picture once."""
    view.look()
    for item in view.lines():
        console.print(item, soft_wrap=not isinstance(item, Table))
    return view.exit_status


def follow(view: View, console: Console) -> int:
    """Draw the picture anew until nothing runs or waits; without a terminal, a line whenever the counts change."""
    said = ""
    if not console.is_terminal:
        for _ in _looks(view):
            if (now := view.summary().partition(";")[0]) != said:
                said = now
                console.print(view.summary(), markup=False, highlight=False)
    else:
        with contextlib.suppress(KeyboardInterrupt), Live(console=console, auto_refresh=False, screen=True) as live:
            for _ in _looks(view):
                live.update(Group(*view.lines()), refresh=True)
    return show(view, console)


def _looks(view: View) -> Iterator[None]:
    """Look again and again while anything goes on, after a pause that is longer where looking takes long."""
    while True:
        began = time.monotonic()
        view.look()
        took_s = time.monotonic() - began
        if not view.goes_on:
            return
        yield
        time.sleep(max(REFRESH_S, 2 * took_s))


def _launched(launch: Launch | None, results: Path) -> str:
    if launch is None:
        return f"there is no launch of it in {record.folder(results)}"
    when = time.strftime("%F %T", time.localtime(launch.time))
    how = "still at work" if launcher_lives(launch, results) else "no longer there"
    if launch.cluster == "slurm":
        how += f"; {len(set(launch.jobs.values())):,} jobs"
    commit = launch.commit[:12] + (" with changes" if launch.dirty else "")
    return f"launched {when} ({launch.cluster}, commit {commit}) by process {launch.pid} on {launch.host}, {how}"


def _counted(states: Sequence[State]) -> Table:
    table = Table("stage", *NAMES, "all", box=None, header_style="dim")
    for kind, found in counts(states).items():
        numbers = (Text(f"{found[name]:,}" if found[name] else "", style=STYLES.get(name, "")) for name in NAMES)
        table.add_row(kind, *numbers, f"{found.total():,}")
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def _running(states: Sequence[State]) -> Table:
    table = Table("running", "run", "doing", "epoch", "train top-1", "left", "where", box=None, header_style="dim")
    for state in states:
        about = state.about
        share, accuracy = about.get("share") or 0.0, about.get("train_top1_pct")
        where = [str(about.get("host", "")), f"job {state.job}" if state.job else f"process {about.get('pid', '?')}"]
        table.add_row(
            state.stage.key,
            state.stage.label,
            str(about.get("doing", "starting")),
            f"{about['epoch']}/{about['epochs']}" if "epochs" in about else "",
            f"{accuracy:.1f} %" if accuracy is not None else "",
            minutes(about["seconds"] * (1 - share) / share) if share else "",
            " ".join(word for word in where if word),
        )
    return table


def _when(state: State) -> str:
    when = state.about.get("time")
    return time.strftime("%F %T", time.localtime(when)) if when else "it was submitted"


def _shown(path: Path) -> str:
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


# ---- ending it -------------------------------------------------------------------------------------------------------


def cancel(view: View) -> str:
    """End what waits and runs of the grid, and say what was done: first its launcher, which could submit more, then its jobs.

    Raises ValueError when there is nothing that could be ended from here.
    """
    view.look()
    launch, results = view.launch, view.context.results
    if launch is None:
        raise ValueError(f"--cancel: there is no launch of {view.name} in {record.folder(results)}")
    said = []
    if launcher_lives(launch, results):
        said.append(_stop(launch, results))
        view.look()
        launch = view.launch or launch
    elif not launch.jobs:
        said.append(f"its launcher (process {launch.pid} on {launch.host}) is no longer there; nothing to cancel")
    if view.jobs is None:
        silent = "SLURM does not answer squeue, so its jobs go on; try again on a host that submits jobs"
        raise ValueError(f"--cancel: {'; '.join([*said, silent])}")
    if launch.jobs:
        said.append(_cancel_jobs(view, launch, view.jobs))
    return f"{view.name}: {'; '.join(said)}"


def _cancel_jobs(view: View, launch: Launch, states: Mapping[str, str]) -> str:
    """Cancel the jobs that the launch's file names, and note in the folders of their stages that they were not lost."""
    there = list(dict.fromkeys(job for job in launch.jobs.values() if job in states))
    for first in range(0, len(there), AT_A_TIME):
        command = ["scancel", *there[first : first + AT_A_TIME]]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ValueError(f"--cancel: scancel says: {' '.join(done.stderr.split())}")
    running = [s for s in view.states if s.name == "running" and launch.jobs.get(s.stage.key) in there]
    for state in running:
        about = {
            "status": "interrupted",
            "reason": "cancelled by --cancel",
            "time": time.time(),
            **process_of(state.about),
        }
        write_json(view.context.folder(state.stage) / "failed.json", about)
    kept = {key: job for key, job in launch.jobs.items() if job not in there}
    record.write(dataclasses.replace(launch, jobs=kept), view.context.results)
    return f"cancelled {len(there):,} jobs, of which {len(running):,} ran" if there else "no job of it waits or runs"


def _stop(launch: Launch, results: Path) -> str:
    """Send the launcher SIGTERM, if it is ours and here, and wait a little until it is gone."""
    if launch.host != lease.host():
        return f"its launcher is process {launch.pid} on {launch.host}: run --cancel there to stop it"
    command = Path(f"/proc/{launch.pid}/cmdline").read_bytes()
    if b"suite.launch" not in command.replace(b"/", b".") or os.stat(f"/proc/{launch.pid}").st_uid != os.getuid():
        return f"process {launch.pid} is no launcher of yours; it was left alone"
    os.kill(launch.pid, signal.SIGTERM)
    patience = time.monotonic() + STOP_S
    while launcher_lives(launch, results) and time.monotonic() < patience:
        time.sleep(0.1)
    runs = "" if launch.cluster == "slurm" else "; what runs stops at its next step and goes on at the next launch"
    return f"told its launcher (process {launch.pid}) to stop{runs}"
