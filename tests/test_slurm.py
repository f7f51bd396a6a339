"""The launcher on a real SLURM: rows like those of this machine, failures that stay where they belong, plain words."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_grid
import torch
from test_launch import HEAD
from tiny_grid import results, start, wait_for

from suite import grids, records
from suite.progress import read
from suite.run import Context, execute, failure
from suite.stages import Stage

pytestmark = pytest.mark.slow

OPTIONS = ("--cluster", "slurm", "--device", "cpu", "--threads", 1)
RESOURCES = ("time=60", "cpus_per_task=1", "mem=1500")
DEADLINE_S = 240


@pytest.fixture(scope="module")
def slurm() -> Iterator[Path]:
    """A private SLURM; its commands find it by SLURM_CONF."""
    tool = os.environ.get("SUITE_SLURM")
    if not tool:
        pytest.skip("needs a command that starts a private Slurm: set SUITE_SLURM")
    state = Path(tempfile.mkdtemp(prefix="ps", dir="/tmp"))  # short: it holds unix sockets
    environment = {**os.environ, "SLURM_DEV_DIR": str(state), "SLURM_DEV_PORT": str(20000 + os.getpid() % 20000)}
    before = os.environ.get("SLURM_CONF")
    try:
        up = subprocess.run([tool, "up"], env=environment, capture_output=True, text=True, timeout=400)
        if up.returncode:
            pytest.fail(f"{tool} up: {up.stderr[-2000:]}")
        os.environ["SLURM_CONF"] = up.stdout.strip().rpartition("=")[2]
        yield state
    finally:
        subprocess.run([tool, "down", "--purge"], env=environment, capture_output=True, timeout=120)
        shutil.rmtree(state, ignore_errors=True)
        os.environ.pop("SLURM_CONF", None)
        if before is not None:
            os.environ["SLURM_CONF"] = before


def submit(grid: Path, folder: Path, *more: object) -> subprocess.Popen[bytes]:
    words = [word for option in RESOURCES for word in ("--slurm", option)]
    folder.mkdir(exist_ok=True)
    log = folder / "out.txt"
    return start("suite.launch", "--grid", grid, "--results", folder / "results", *OPTIONS, *words, *more, log=log)


def ended(process: subprocess.Popen[bytes]) -> int:
    """Its exit status. Ends it when it takes too long."""
    try:
        return process.wait(DEADLINE_S)
    finally:
        process.kill()
        process.wait()


def stages_of(grid: Path) -> list[Stage]:
    found = grids.load(str(grid))
    return grids.stages_of(found, grids.runs_of(found))


def write_grid(folder: Path, runs: str) -> Path:
    path = folder / "mine.py"
    path.write_text(f"{HEAD}\nGRID = Grid(title='Mine', about='', runs=lambda: {runs}, timings=())\n")
    return path


def waiting() -> str:
    """The names of the jobs that are still there."""
    command = ["squeue", "-h", "-o", "%j", "-t", "PENDING,RUNNING,SUSPENDED"]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout


def command(*words: str) -> None:
    subprocess.run(words, capture_output=True, timeout=30, check=True)


def job_of(stage: Stage) -> str:
    """The number of the stage's job."""
    words = ["squeue", "-h", "-o", "%A", "-n", stage.key]
    return subprocess.run(words, capture_output=True, text=True, timeout=30, check=True).stdout.split()[0]


@pytest.mark.usefixtures("slurm")
def test_a_grid_ends_with_the_rows_of_this_machine(tmp_path: Path) -> None:
    process = submit(tiny_grid.FILE, tmp_path, "--only", "dsp")
    assert ended(process) == 0, (tmp_path / "out.txt").read_text()
    found = [stage for stage in stages_of(tiny_grid.FILE) if stage.kind == "base" or "dsp" in stage.label]
    assert [stage.kind for stage in found] == ["base", "learned", "pruned", "timed"]
    local = Context(results=tmp_path / "local", threads=1)
    for stage in found:
        assert stage.kind == "timed" or execute(stage, local) == "done"
    assert results(Context(results=tmp_path / "results"), found) == results(local, found)
    rows = records.read_all(tmp_path / "results", [stage.key for stage in found])
    assert [row.status for row in rows] == ["done"] * 2
    assert (tmp_path / "results" / "tiny_grid" / "table.md").is_file()
    assert waiting() == ""


@pytest.mark.usefixtures("slurm")
def test_what_fails_takes_only_its_dependents_along(tmp_path: Path) -> None:
    """And a lost job is called lost; one that is requeued goes on."""
    grid = write_grid(
        tmp_path,
        "[run for images, method, changes in ((192, 'l1_filter', {}), (256, 'l1_filter', {}), (256, 'dsp', {'groups': 99}))"
        " for run in cross(bases=bases(epochs=150, images=images), method=method, budgets=[0.5], learning=schedule(), "
        "finetune=schedule(), **changes)]",
    )
    found = stages_of(grid)
    lost, requeued = (stage for stage in found if stage.kind == "base")
    context = Context(results=tmp_path / "results", threads=1)

    def training(stage: Stage) -> bool:
        assert process.poll() is None, (tmp_path / "out.txt").read_text()
        return (context.folder(stage) / "train.pt").exists() and read(context.folder(stage) / "progress.json") != {}

    process = submit(grid, tmp_path)
    try:
        wait_for(lambda: training(lost), DEADLINE_S)
        command("scancel", job_of(lost))
        wait_for(lambda: training(requeued), DEADLINE_S)
        command("scontrol", "requeue", job_of(requeued))
    except BaseException:
        process.kill()
        raise
    assert ended(process) == 1
    shown = (tmp_path / "out.txt").read_text()
    assert "Traceback" not in shown
    why = failure(lost, context)
    assert why is not None
    assert why["reason"].startswith("its job ended as CANCELLED")
    assert " and left no status; see " in why["reason"]
    done, statuses = [], {}
    for stage in found:
        row = records.read(context.results / "rows" / f"{stage.key}.json")
        if row is not None:
            statuses[stage.label, lost in stage.needs] = row.status
            if row.status == "done":
                done.append(stage)
            elif lost in stage.needs:
                assert f"needs {lost.key}" in row.reason
            else:
                assert "99" in row.reason, "it names why learning failed"
    assert list(statuses.values()).count("done") == 1
    assert len(statuses) == 3
    assert done[0].needs == (requeued,)
    local = Context(results=tmp_path / "local", threads=1)
    for stage in (requeued, *done):
        assert execute(stage, local) == "done"
    assert results(context, [requeued, *done]) == results(local, [requeued, *done])
    assert waiting() == ""


@pytest.mark.usefixtures("slurm")
@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("partition=nonsense", "nvalid partition name specified"),
        ("gpus_per_node=99", "node configuration is not available"),
    ],
)
def test_what_slurm_refuses_is_said_in_its_own_words(tmp_path: Path, option: str, said: str) -> None:
    process = submit(tiny_grid.FILE, tmp_path, "--only", "l1_filter", "--slurm", option)
    assert ended(process) == 2
    last = (tmp_path / "out.txt").read_text().splitlines()[-1]
    assert last.startswith("suite.launch: SLURM refused the job of digits/vgg6 seed 0: ")
    assert said in last
    assert "Traceback" not in (tmp_path / "out.txt").read_text()
    assert waiting() == ""


@pytest.mark.usefixtures("slurm")
def test_at_its_time_limit_a_job_stops_and_the_same_command_goes_on(tmp_path: Path) -> None:
    grid = write_grid(tmp_path, "cross(bases=bases(epochs=3), method='l1_filter', budgets=[0.5], finetune=schedule())")
    base = stages_of(grid)[0]
    assert ended(submit(grid, tmp_path, "--max-minutes", 0)) == 75, (tmp_path / "out.txt").read_text()
    saved = tmp_path / "results" / "work" / base.key / "train.pt"
    assert torch.load(saved, weights_only=True)["step"] == 1
    assert not (tmp_path / "results" / "rows").exists()
    assert ended(submit(grid, tmp_path)) == 0, (tmp_path / "out.txt").read_text()
    local = Context(results=tmp_path / "local", threads=1)
    for stage in stages_of(grid):
        assert execute(stage, local) == "done"
    assert results(Context(results=tmp_path / "results"), stages_of(grid)) == results(local, stages_of(grid))
