"""The launcher on a real SLURM: rows like those of this machine, failures that stay where they belong, plain words."""

from __future__ import annotations

import os
import re
import shutil
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
import tiny_grid
import torch
from cluster import (
    DEADLINE_S,
    OPTIONS,
    RESOURCES,
    STARTED,
    Cluster,
    _tidy,
    asked,
    ended,
    job_of,
    slurm,
    state_of,
    submit,
    waiting,
)
from safetensors.torch import load_file
from test_launch import HEAD
from tiny_grid import call, results, start, wait_for
from torch.testing import assert_close

from suite import grids, lease, records
from suite.launch import display, heartbeat, queue, record
from suite.launch.__main__ import main
from suite.progress import read
from suite.run import Context, execute, failure, is_done
from suite.stages import Stage

__all__ = ["_tidy", "slurm"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("slurm"),
    pytest.mark.xdist_group("slurm"),
]  # one cluster at a time


def stages_of(grid: Path) -> list[Stage]:
    found = grids.load(str(grid))
    return grids.stages_of(found, grids.runs_of(found))


def write_grid(folder: Path, runs: str) -> Path:
    path = folder / "mine.py"
    path.write_text(f"{HEAD}\nGRID = Grid(title='Mine', about='', runs=lambda: {runs}, timings=())\n")
    return path


def training(stage: Stage, context: Context) -> bool:
    """Is it being done, with a checkpoint that it can go on from?"""
    folder = context.folder(stage)
    return (folder / "train.pt").exists() and read(folder / "progress.json") != {}


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

    process = submit(grid, tmp_path)
    try:
        wait_for(lambda: training(lost, context) or process.poll() is not None, DEADLINE_S)
        asked("scancel", job_of(lost, context))
        wait_for(lambda: training(requeued, context) or process.poll() is not None, DEADLINE_S)
        asked("scontrol", "requeue", job_of(requeued, context))
    except BaseException:
        process.kill()
        raise
    assert ended(process) == 1
    shown = (tmp_path / "out.txt").read_text()
    assert "Traceback" not in shown
    why = failure(lost, context)
    assert why is not None
    assert re.match(
        r"its job \d+(_\d+)? ended as CANCELLED by 0 and left no status: on n\d by user root; ", why["reason"]
    )
    assert "; see " in why["reason"]
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


def long_run(folder: Path, epochs: int, images: int = 256) -> tuple[Path, list[Stage], Context]:
    """A grid of one run whose base network trains for a while."""
    runs = (
        f"cross(bases=bases(epochs={epochs}, images={images}), method='l1_filter', budgets=[0.5], finetune=schedule())"
    )
    grid = write_grid(folder, runs)
    return grid, stages_of(grid), Context(results=folder / "results", threads=1)


def as_on_this_machine(found: list[Stage], context: Context, folder: Path) -> bool:
    local = Context(results=folder / "local", threads=1)
    assert [execute(stage, local) for stage in found] == ["done"] * len(found)
    return results(context, found) == results(local, found)


def test_preempted_more_often_than_submitit_allows_it_goes_on(tmp_path: Path) -> None:
    """Pre-empt by jobs of higher priority, then by the signal alone.

    The time limit lets submitit count each as a time-out.
    """
    grid, found, context = long_run(tmp_path, epochs=100, images=1024)
    base = found[0]
    process = submit(grid, tmp_path, resources=("time=9", "cpus_per_task=1", "mem=1500"))

    def step() -> int:
        return int(torch.load(context.folder(base) / "train.pt", weights_only=True)["step"])

    steps, pids = [], [0]

    def goes_on() -> bool:
        """In a process that was not there before."""
        assert process.poll() is None, (tmp_path / "out.txt").read_text()
        return training(base, context) and read(context.folder(base) / "progress.json").get("pid", 0) != pids[-1]

    for number in range(5):
        wait_for(goes_on, DEADLINE_S)
        pids.append(read(context.folder(base) / "progress.json")["pid"])
        job = job_of(base, context)
        if number == 0:
            asked("sbatch", "-p", "high", "-N2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1")
        else:
            asked("scancel", "--signal=USR2", job)
        wait_for(lambda: (failure(base, context) or {}).get("status") == "interrupted" or is_done(base, context), 60)
        if is_done(base, context):
            break
        steps.append(step())
        wait_for(lambda: state_of(job) != "RUNNING", 60)  # noqa: B023 (used at once)
    assert len(steps) > 3
    assert steps == sorted(set(steps)), "each start went on"
    assert any(step % 16 for step in steps), "it stopped in the middle of an epoch"
    assert ended(process) == 0, (tmp_path / "out.txt").read_text()
    assert as_on_this_machine(found, context, tmp_path)
    assert waiting() == ""


def test_a_job_whose_processes_are_stopped_for_ever_is_requeued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """SLURM counts a stopped job as running, as after a suspension that a killed controller lost."""
    monkeypatch.setattr(heartbeat, "STALLED_S", lease.HEARTBEAT_S + 5)
    grid, found, context = long_run(tmp_path, epochs=60)
    stopped: list[str] = []

    def stop() -> None:
        wait_for(lambda: training(found[0], context), DEADLINE_S)
        job = job_of(found[0], context)
        for line in asked("scontrol", "listpids", job).splitlines()[1:]:
            if (pid := int(line.split()[0])) > 0:
                os.kill(pid, signal.SIGSTOP)
        stopped.append(job)

    thread = threading.Thread(target=stop)
    thread.start()
    words = [word for option in RESOURCES for word in ("--slurm", option)]
    code = call(main, "--grid", grid, "--results", context.results, *OPTIONS, *words)
    thread.join()
    text = capsys.readouterr().out
    assert code == 0, text
    silence = re.search(rf"job {stopped[0]} had no heartbeat for (\d+) s and is requeued", text)
    assert silence, text
    assert int(silence[1]) >= heartbeat.STALLED_S
    assert as_on_this_machine(found, context, tmp_path)
    assert waiting() == ""


def test_runs_side_by_side_stop_and_go_on_together(tmp_path: Path) -> None:
    """Three runs in a job that gets the signal."""
    runs = "[run for b in (0.3, 0.5, 0.7) for run in cross(bases=bases(), method='l1_filter', budgets=[b], "
    grid = write_grid(tmp_path, runs + "finetune=schedule(epochs=200, images=256))]")
    found, context = stages_of(grid), Context(results=tmp_path / "results", threads=1)
    process = submit(grid, tmp_path, "--runs-per-gpu", 3, resources=("time=60", "cpus_per_task=1", "mem=8000"))
    pruned = found[1:]

    def fine_tuning() -> bool:
        assert process.poll() is None, (tmp_path / "out.txt").read_text()
        return all((context.folder(stage) / "train0.pt").exists() for stage in pruned)

    wait_for(fine_tuning, DEADLINE_S)
    jobs = {job_of(stage, context) for stage in pruned}
    assert len(jobs) == 1
    asked("scancel", "--signal=USR2", *jobs)
    wait_for(lambda: any((failure(stage, context) or {}).get("status") == "interrupted" for stage in pruned), 60)
    assert ended(process) == 0, (tmp_path / "out.txt").read_text()
    assert as_on_this_machine(found, context, tmp_path)


def test_jobs_run_the_source_of_their_launch(tmp_path: Path) -> None:
    grid, found, context = long_run(tmp_path, epochs=1)
    assert ended(submit(grid, tmp_path)) == 0, (tmp_path / "out.txt").read_text()
    launch = record.read(context.results, "mine")
    assert launch is not None
    assert launch.jobs.keys() == launch.stages.keys() == {stage.key for stage in found}
    row = records.read(context.results / "rows" / f"{found[-1].key}.json")
    assert row is not None
    assert row.provenance["commit"] == launch.commit
    assert row.provenance.get("snapshot") == (launch.snapshot if launch.dirty else None)
    copy = context.results / "snapshots" / launch.snapshot
    (copy / "suite" / "run" / "__init__.py").write_text("raise ImportError('this is the snapshot')\n")
    (context.folder(found[-1]) / "done.json").unlink()
    assert ended(submit(grid, tmp_path)) == 1
    assert "ended as FAILED and left no status" in (tmp_path / "out.txt").read_text()
    assert "this is the snapshot" in record.log_of(context.results, job_of(found[-1], context)).read_text()


def test_a_second_launcher_finds_the_jobs_of_the_first(tmp_path: Path) -> None:
    """While the first is there it is refused; when that was killed it watches the same jobs."""
    grid, found, context = long_run(tmp_path, epochs=300)
    first = submit(grid, tmp_path)
    try:
        wait_for(lambda: job_of(found[-1], context), DEADLINE_S)
        second = submit(grid, tmp_path)
        assert ended(second) == 2
        said = (tmp_path / "out.txt").read_text()  # of both launchers
        assert re.search(rf"suite.launch: mine is being launched already, by process {first.pid} on ", said)
    finally:
        first.kill()
        first.wait()
    jobs = {stage.key: job_of(stage, context) for stage in found}
    assert ended(submit(grid, tmp_path)) == 0, (tmp_path / "out.txt").read_text()
    assert {stage.key: job_of(stage, context) for stage in found} == jobs
    assert not list(context.results.rglob("*.lease"))


def test_three_equal_failures_are_enough(tmp_path: Path) -> None:
    """And what needs such a stage is not tried; `--retry-failed` does it again."""
    runs = "cross(bases=bases(), method='dsp', budgets=[0.5], learning=schedule(), finetune=schedule(), groups=99)"
    grid = write_grid(tmp_path, runs)
    learned = stages_of(grid)[1]
    context = Context(results=tmp_path / "results", threads=1)
    tried = []
    for more in ((), (), (), (), ("--retry-failed",)):
        assert ended(submit(grid, tmp_path, *more)) == 1
        tried.append(job_of(learned, context))
    assert len(set(tried[:3])) == 3
    assert tried[3] == tried[2]
    assert tried[4] != tried[3]


def test_no_more_jobs_than_wanted(tmp_path: Path, slurm: Cluster) -> None:
    runs = "[run for b in (0.3, 0.4, 0.5, 0.6) for run in cross(bases=bases(), method='l1_filter', budgets=[b], "
    grid = write_grid(tmp_path, runs + "finetune=schedule(epochs=10))]")
    process = submit(grid, tmp_path, "--parallel", 2)
    most = 0
    while process.poll() is None:
        running = [state for state in (queue.states() or {}).values() if state == "RUNNING"]
        most = max(most, len(running))
    assert ended(process) == 0, (tmp_path / "out.txt").read_text()
    assert most == 2
    launch = record.read(tmp_path / "results", "mine")
    assert launch is not None
    assert {job.partition("_")[2] for job in launch.jobs.values()} == {"", "0", "1", "2", "3"}


def test_slurm_without_a_cluster_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its commands are here, and the file that says which cluster they are for is not."""
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    assert call(main, "--grid", tiny_grid.FILE, "--results", tmp_path / "results", *OPTIONS) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("suite.launch: --cluster slurm: SLURM's commands here know of no cluster (")
    assert shown.count(str(tmp_path / "slurm.conf")) == 1
    assert "use --cluster local" in shown
    assert (shown.count("\n"), len(shown) < 400) == (1, True), shown


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Names and callers of SLURM's commands that are called from here; the commands do what they always do."""
    log, folder = tmp_path / "calls", tmp_path / "bin"
    folder.mkdir()
    for name in ("squeue", "sacct", "scancel"):
        path = folder / name
        path.write_text(f'#!/bin/sh\necho "{name} $PPID" >> {log}\nexec {shutil.which(name)} "$@"\n')
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return log


def test_a_grid_is_watched_and_ended_from_another_process(
    tmp_path: Path, calls: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = "[run for e in (1, 9000, 9001) for run in cross(bases=bases(epochs=e), method='l1_filter', budgets=[0.5], "
    grid = write_grid(tmp_path, runs + "finetune=schedule())]")
    context = Context(results=tmp_path / "results", threads=1)
    short, short_run, lost, lost_run, cancelled, _ = stages_of(grid)
    assert [execute(stage, context) for stage in (short, short_run)] == ["done", "done"]
    other = asked("sbatch", "--parsable", "-J", "mine-training", "-o", "/dev/null", "--wrap", "sleep 600").strip()
    options = ("--grid", grid, "--results", context.results)
    launcher = submit(grid, tmp_path)

    def look(option: str = "--status") -> tuple[int, str, Counter[str]]:
        """Exit status, picture, and the commands of SLURM that it took."""
        calls.write_text("")
        code = call(main, *options, option)
        mine = (line.split() for line in calls.read_text().splitlines())
        return code, capsys.readouterr().out, Counter(name for name, pid in mine if int(pid) == os.getpid())

    wait_for(lambda: job_of(lost_run, context), DEADLINE_S)
    code, text, took = look()
    assert re.search(r"6 stages: 2 done, (1 running, 3|2 running, 2|4) queued", text), text
    wait_for(lambda: training(lost, context) and training(cancelled, context), DEADLINE_S)
    code, text, took = look()
    assert (code, took) == (75, {"squeue": 1})
    assert "6 stages: 2 done, 2 running, 2 queued" in text
    for stage, epochs in ((lost, 9000), (cancelled, 9001)):
        row = rf"{stage.key} +{re.escape(stage.label)} +base +\d+/{epochs} .* job {job_of(stage, context)}\b"
        assert re.search(row, text), text

    calls.write_text("")
    began = time.monotonic()
    follower = start("suite.launch", *options, "--follow", log=tmp_path / "follow")
    STARTED.append(follower)
    wait_for(lambda: "2 running, 2 queued" in (tmp_path / "follow").read_text(), 60)
    asked("scancel", job_of(lost, context))
    wait_for(lambda: "1 lost" in (tmp_path / "follow").read_text(), 60)
    took = Counter(line.split()[0] for line in calls.read_text().splitlines() if line.endswith(f" {follower.pid}"))
    assert 2 <= took["squeue"] <= (time.monotonic() - began) / display.REFRESH_S + 1
    assert took["sacct"] <= 2
    code, text, took = look()
    assert (code, took) == (1, {"squeue": 1, "sacct": 1})
    assert f"lost        {lost.key}" in text
    assert f"its job {job_of(lost, context)} ended as CANCELLED" in text

    follower.send_signal(signal.SIGINT)
    assert follower.wait(30) == 130
    assert "Traceback" not in (tmp_path / "follow").read_text()

    code, text, took = look("--cancel")
    assert (code, took["scancel"], took["squeue"] <= 2) == (0, 1, True), (text, took)
    assert f"told its launcher (process {launcher.pid}) to stop; cancelled" in text
    ended_by = rf"interrupted {cancelled.key} .*\n +cancelled by --cancel"
    text = look()[1]
    assert re.search(ended_by, text), text
    assert launcher.wait(30) == 130
    wait_for(lambda: asked("squeue", "-h", "--array", "-o", "%F").split() == [other], 60)
    text = look()[1]
    assert re.search(ended_by, text), text
    assert not re.search("running|queued", text.splitlines()[0]), text


def test_two_tasks_of_a_job_stop_and_go_on_together(tmp_path: Path) -> None:
    """Send the signal to all tasks, then to the second one, through a real srun.

    The row is that of one process, up to rounding.
    """
    runs = "cross(bases=bases(), method='l1_filter', budgets=[0.5], finetune=schedule(epochs=50, images=256, lr=1e-3))"
    grid = write_grid(tmp_path, runs)
    base, pruned = stages_of(grid)
    alone, context = (Context(results=tmp_path / name, threads=1) for name in ("alone", "results"))
    assert execute(base, alone) == "done"
    shutil.copytree(alone.results, context.results)
    process = submit(grid, tmp_path, "--slurm", "ntasks_per_node=2", "--slurm", "mem=3000")
    steps, pids = [], {0}

    def fine_tuning() -> bool:
        """In processes that were not there before."""
        assert process.poll() is None, (tmp_path / "out.txt").read_text()
        pid = read(context.folder(pruned) / "progress.json").get("pid", 0)
        return (context.folder(pruned) / "train0.pt").exists() and pid not in pids

    for whom in ("all", "second"):
        wait_for(fine_tuning, DEADLINE_S)
        pids.add(read(context.folder(pruned) / "progress.json")["pid"])
        job = job_of(pruned, context)
        if whom == "all":
            asked("scancel", "--signal=USR2", job)
        else:
            lines = (line.split() for line in asked("scontrol", "listpids", job).splitlines())
            (second,) = (int(pid) for pid, _, step, _, rank in lines if (step, rank) == ("0", "1"))
            os.kill(second, signal.SIGUSR2)
        wait_for(lambda: (failure(pruned, context) or {}).get("status") == "interrupted", 30)
        steps.append(torch.load(context.folder(pruned) / "train0.pt", weights_only=True)["step"])
        wait_for(lambda: state_of(job) != "RUNNING", 60)  # noqa: B023 (used at once)
    assert steps == sorted(set(steps)), "each start went on"
    assert ended(process) == 0, (tmp_path / "out.txt").read_text()
    assert len(list((context.results / "rows").iterdir())) == 1
    assert execute(pruned, alone) == "done"
    row, expected = (records.read(c.results / "rows" / f"{pruned.key}.json") for c in (context, alone))
    assert isinstance(row, records.PrunedRow)
    assert isinstance(expected, records.PrunedRow)
    assert (row.status, row.provenance["tasks"]) == ("done", 2)
    differing = {name for name in row.result_fields if getattr(row, name) != getattr(expected, name)}
    assert differing <= {"weights_sha256"}
    ours, theirs = (load_file(c.folder(pruned) / "packed.safetensors") for c in (context, alone))
    assert_close(ours, theirs, rtol=0, atol=1e-3)
