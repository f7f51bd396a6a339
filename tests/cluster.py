"""A private SLURM for tests, and what they ask of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_grid import start

from suite.launch import queue, record
from suite.run import Context
from suite.stages import Stage

OPTIONS = ("--cluster", "slurm", "--device", "cpu", "--threads", 1)
RESOURCES = ("time=60", "cpus_per_task=1", "mem=1500")
DEADLINE_S = 480


class Cluster:
    """Two nodes, n1 and n2, and a partition `high` whose jobs take them from those of the others."""

    def __init__(self, tool: str) -> None:
        self.command = tool
        self.state = Path(tempfile.mkdtemp(prefix="ps", dir="/tmp"))  # short: it holds unix sockets
        port = str(20_000 + os.getpid() % 12_000)  # below those that systems give out
        self.environment = {**os.environ, "SLURM_DEV_DIR": str(self.state), "SLURM_DEV_PORT": port}

    def tool(self, *words: str, seconds: float = 120) -> subprocess.CompletedProcess[str]:
        """Start, stop or kill a part of it."""
        return subprocess.run(
            [self.command, *words], env=self.environment, capture_output=True, text=True, timeout=seconds
        )

    def up(self) -> None:
        """Start it; its commands find it by SLURM_CONF."""
        done = self.tool("up", seconds=400)
        if done.returncode:
            pytest.fail(f"{self.command} up: {done.stderr[-2000:]}")
        os.environ["SLURM_CONF"] = done.stdout.strip().rpartition("=")[2]

    def down(self) -> None:
        """Stop it."""
        self.tool("down", "--purge")
        shutil.rmtree(self.state, ignore_errors=True)


@pytest.fixture(scope="module")
def slurm() -> Iterator[Cluster]:
    """A private SLURM."""
    tool = os.environ.get("SUITE_SLURM")
    if not tool:
        pytest.skip("needs a command that starts a private Slurm: set SUITE_SLURM")
    before = os.environ.get("SLURM_CONF")
    cluster = Cluster(tool)
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.down()
        os.environ.pop("SLURM_CONF", None)
        if before is not None:
            os.environ["SLURM_CONF"] = before


STARTED: list[subprocess.Popen[bytes]] = []


@pytest.fixture(autouse=True)
def _tidy() -> Iterator[None]:
    """A test that fails leaves no launcher and no job to the next."""
    yield
    for process in STARTED:
        process.kill()
        process.wait()
    STARTED.clear()
    if "SLURM_CONF" in os.environ:
        subprocess.run(["scancel", f"--user={os.getuid()}"], capture_output=True, timeout=30)


def submit(grid: Path, folder: Path, *more: object, resources: tuple[str, ...] = RESOURCES) -> subprocess.Popen[bytes]:
    """A launcher of its own; what it says goes to out.txt."""
    words = [word for option in resources for word in ("--slurm", option)]
    folder.mkdir(exist_ok=True)
    log = folder / "out.txt"
    results = folder / "results"
    STARTED.append(start("suite.launch", "--grid", grid, "--results", results, *OPTIONS, *words, *more, log=log))
    return STARTED[-1]


def ended(process: subprocess.Popen[bytes], seconds: float = DEADLINE_S) -> int:
    """Its exit status. Ends it when it takes too long."""
    try:
        return process.wait(seconds)
    finally:
        process.kill()
        process.wait()


def waiting() -> str:
    """The names of the jobs that are still there."""
    return asked("squeue", "-h", "-o", "%j", "-t", "PENDING,RUNNING,SUSPENDED")


def asked(*words: str) -> str:
    """Return the output of a command."""
    return subprocess.run(words, capture_output=True, text=True, timeout=30, check=True).stdout


def job_of(stage: Stage, context: Context, grid: str = "mine") -> str:
    """The number of the stage's job; "" when there is none."""
    launch = record.read(context.results, grid)
    return launch.jobs.get(stage.key, "") if launch else ""


def state_of(job: str) -> str:
    """Return SLURM's state of a job; "" after its end."""
    return (queue.states() or {}).get(job, "")
