"""Jobs that SLURM counts as running while their processes are stopped, with a faked queue."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console
from tiny_grid import stages

from suite import lease
from suite.launch import heartbeat, queue, record, slurm
from suite.launch.display import Display, show
from suite.launch.heartbeat import STALLED_S, START_S, Heartbeats
from suite.launch.options import Options
from suite.launch.view import View
from suite.run import Context
from suite.stages import Stage

STAGES = stages()[:2]
JOBS: heartbeat.Jobs = {"7_1": STAGES}


class Clock:
    """A clock that moves when it is told to, and the commands that were given to SLURM."""

    def __init__(self, context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
        self.context = context
        self.now = 1000.0
        self.refusal = ""
        self.commands: list[tuple[str, ...]] = []
        self.started_s: float | None = time.time() - 3600
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(heartbeat, "_command", self.told)
        monkeypatch.setattr(queue, "started_s", lambda job: self.started_s)

    def told(self, *command: str) -> str:
        self.commands.append(command)
        return self.refusal if command[0] == "scontrol" else ""

    def beat(self, stage: Stage = STAGES[1]) -> None:
        path = self.context.folder(stage) / ".lease"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, ns=(0, int(time.time() * 1e9) + int(self.now * 1000)))

    def tend(self, heartbeats: Heartbeats, seconds: float, jobs: heartbeat.Jobs = JOBS) -> list[str]:
        """Return the lines of so many seconds."""
        lines = []
        end = self.now + seconds
        while self.now < end:
            self.now += 5
            lines += heartbeats.tend(jobs)
        return lines


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    with monkeypatch.context() as patch:  # undone before pytest's own use of the clock
        yield Clock(Context(results=tmp_path), patch)


def test_a_job_that_shows_heartbeats_is_left_alone(clock: Clock) -> None:
    heartbeats = Heartbeats(clock.context)
    for _ in range(50):
        clock.beat()
        assert clock.tend(heartbeats, lease.LEASE_S - 20) == []
    assert clock.commands == []


def test_a_job_without_heartbeat_is_named_requeued_once_and_then_cancelled(clock: Clock) -> None:
    clock.beat()
    heartbeats = Heartbeats(clock.context)
    heartbeats.tend(JOBS)
    (line,) = clock.tend(heartbeats, STALLED_S - 10)
    assert f"job 7_1 (2 stages, {STAGES[0].key} and others) shows no heartbeat since " in line
    assert "scontrol requeue 7_1" in line
    assert clock.commands == []
    (line,) = clock.tend(heartbeats, 10)
    assert line == "job 7_1 had no heartbeat for 180 s and is requeued"
    assert clock.commands == [("scontrol", "requeue", "7_1")]
    assert clock.tend(heartbeats, 60, jobs={}) == [], "it waits"
    clock.beat()
    lines = clock.tend(heartbeats, STALLED_S + 10)
    assert "7_1 had no heartbeat for 180 s again after a requeue, so the launcher cancelled it" in lines[-1]
    assert clock.commands[1:] == [("scancel", "7_1")]
    assert heartbeats.cancelled["7_1"] == lines[-1]


def test_a_start_without_heartbeat_is_given_more_time(clock: Clock) -> None:
    """The lease that lies there is of an earlier process, or there is none."""
    for leave in (lambda: None, clock.beat):
        leave()
        clock.started_s = time.time() + 3600
        clock.commands.clear()
        heartbeats = Heartbeats(clock.context)
        heartbeats.tend(JOBS)
        clock.tend(heartbeats, START_S - 10)
        assert clock.commands == []
        clock.tend(heartbeats, 10)
        assert clock.commands == [("scontrol", "requeue", "7_1")]


def test_a_job_that_cannot_be_requeued_is_cancelled(clock: Clock) -> None:
    clock.beat()
    clock.refusal = "Requested operation is presently disabled for job 7_1"
    heartbeats = Heartbeats(clock.context)
    heartbeats.tend(JOBS)
    lines = clock.tend(heartbeats, STALLED_S)
    assert f"could not be requeued ({clock.refusal}), so the launcher cancelled it" in lines[-1]
    assert clock.commands[-1] == ("scancel", "7_1")


def test_the_grid_ends_although_a_job_never_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue says RUNNING until the job is cancelled; no process ever shows a heartbeat again."""
    context, states = Context(results=tmp_path), {"7": "RUNNING"}
    now = [1000.0]

    def told(*command: str) -> str:
        if command[0] == "scancel":
            states.clear()
        return ""

    def asked(*command: str) -> str:
        if command[0] == "squeue" and "--format=%S" not in command:
            return "".join(f"{job}|N/A|{state}|None\n" for job, state in states.items())
        return "7|7|CANCELLED by 0|0:0|n1\n" if command[0] == "sacct" else ""

    def sleep(seconds: float) -> None:
        now[0] += 10

    (context.folder(STAGES[0])).mkdir(parents=True)
    (context.folder(STAGES[0]) / ".lease").touch()
    monkeypatch.setattr(heartbeat, "_command", told)
    monkeypatch.setattr(queue, "_ask", asked)
    launch = record.begin("mine", "slurm", STAGES, snapshot="", jobs={stage.key: "7" for stage in STAGES})
    record.write(launch, tmp_path)
    output = io.StringIO()
    display = Display(View("mine", STAGES, context), 2, console=Console(file=output, width=300))
    with monkeypatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: now[0])
        patch.setattr(time, "sleep", sleep)
        outcomes = slurm.run(STAGES, context, display, launch, options=Options(), source=tmp_path)
    assert outcomes == dict.fromkeys((stage.key for stage in STAGES), "failed")
    text = " ".join(output.getvalue().split())
    assert "is requeued" in text
    assert text.count("again after a requeue, so the launcher cancelled it") == 3, (
        "in the log, and as the reason of each stage"
    )


def test_status_names_a_job_without_heartbeat_and_suspended_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = Context(results=tmp_path)
    path = context.folder(STAGES[0]) / ".lease"
    path.parent.mkdir(parents=True)
    path.touch()
    lines = "7|N/A|RUNNING|None\n8|N/A|SUSPENDED|None\n"
    monkeypatch.setattr(queue, "_ask", lambda *command: lines if command[0] == "squeue" else "")
    jobs = {STAGES[0].key: "7", STAGES[1].key: "8"}
    record.write(record.begin("mine", "slurm", STAGES, snapshot="", jobs=jobs), tmp_path)

    def picture() -> str:
        output = io.StringIO()
        show(View("mine", STAGES, context), Console(file=output, width=400))
        return output.getvalue()

    text = picture()
    assert "shows no heartbeat" not in text
    assert "1 jobs are suspended; `scontrol resume JOB` continues them: 8" in text
    os.utime(path, (0, time.time() - 1.5 * lease.LEASE_S))
    assert f"job 7 ({STAGES[0].key}) shows no heartbeat since " in picture()
