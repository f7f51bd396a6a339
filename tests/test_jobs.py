"""What the launcher makes of SLURM's answers, given as text: no SLURM is needed."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from submitit.core.utils import FailedJobError
from tiny_grid import stages, wait_for

from suite import records
from suite.files import write_json
from suite.launch import arrays, job, lost, queue, record, slurm, submit
from suite.launch.display import Display
from suite.launch.options import Options
from suite.launch.queue import End
from suite.launch.view import View
from suite.run import Context, Outcome, fail, failure, given_up
from suite.stages import Stage

STAGES = stages()
BASE = STAGES[0]


def answers(monkeypatch: pytest.MonkeyPatch, **texts: str | None) -> None:
    """Let these commands say these texts; None when they fail."""
    monkeypatch.setattr(queue, "_ask", lambda *command: texts.get(command[0]))


def test_tasks_that_never_began_are_one_line_of_sacct(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = (
        "1_0|6|COMPLETED|0:0|n1\n1_1|7|FAILED|1:0|n1\n1_1.batch|7.batch|FAILED|1:0|n1\n1_1.0|7.0|OUT_OF_MEMORY|0:125|n1\n"
        "1_[2-9%2]|1|CANCELLED by 0|0:0|None assigned\n2|2|NODE_FAIL|0:0|n2\n"
    )
    answers(monkeypatch, sacct=lines)
    ends = queue.ended(job for job in ("1_1", "1_5", "2", "3", "7"))
    no_room = End(state="FAILED", status=1, nodes="n1", out_of_memory=True)
    cancelled, lost_node = End(state="CANCELLED by 0"), End(state="NODE_FAIL", nodes="n2")
    assert ends == {"1_1": no_room, "1_5": cancelled, "2": lost_node, "7": no_room}
    answers(monkeypatch)
    assert queue.ended(["1_1"]) == {}


@pytest.mark.parametrize(
    ("line", "reason", "counts"),
    [
        (
            "CANCELLED by 0|0:0|n1",
            "ended as CANCELLED by 0 and left no status: on n1 by user root; the same command",
            0,
        ),
        ("CANCELLED by 0|0:0|None assigned", "by user root; the same command submits it again; it never began", 0),
        ("CANCELLED by 4294967|0:0|n1", "on n1 by user 4294967;", 0),
        ("NODE_FAIL|0:0|n2", "on n2 its node failed; the same command submits it again", 0),
        ("PREEMPTED|0:0|n1", "another job took its place, and it was not requeued", 0),
        ("BOOT_FAIL|0:0|n1", "on n1 its node did not start", 0),
        (None, "is unknown to SLURM and left no status: there is no record of its end; it wrote no log to", 0),
        ("FAILED|0:53|n1", "on n1 SLURM could not open the job's log below", 0),
        ("OUT_OF_MEMORY|0:125|n1", "on n1 ran out of memory: --slurm mem=MB for more", 1),
        ("TIMEOUT|0:0|n1", "it reached its time limit before it stopped at a checkpoint: --slurm time=MINUTES", 1),
        ("COMPLETED|0:0|n1", "on n1 without an error: do the nodes see the same", 1),
        ("FAILED|137:0|n1", "on n1 its process was killed by SIGKILL, as a system does that is out of memory", 1),
        ("FAILED|0:11|n1", "its process was killed by SIGSEGV; it wrote no log", 1),
        ("FAILED|3:0|n1", "on n1 with exit status 3; it wrote no log to", 1),
        ("STRANGE|x|n1", "ended as STRANGE and left no status: on n1; it wrote no log to", 1),
    ],
)
def test_a_lost_job_has_the_reason_that_slurm_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str | None, reason: str, counts: int
) -> None:
    answers(monkeypatch, sacct=f"1_2|1|{line}\n" if line else None)
    context = Context(results=tmp_path)
    for _ in range(3):
        assert slurm._lost([BASE], {BASE.key: "1_2"}, context, {}) == [(BASE, "failed")]
    about = failure(BASE, context)
    assert about is not None
    assert reason in about["reason"]
    assert (given_up(BASE, context) is not None) is bool(counts), "what the cluster did is no failure of the stage"


def test_the_log_of_a_lost_job_is_where_slurm_wrote_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below the results, else where the controller says: SBATCH_ERROR moves the script's part."""
    elsewhere = tmp_path / "a folder" / "x.err"
    about = f"JobId=1 JobState=FAILED StdErr={elsewhere} StdIn=/dev/null StdOut=/dev/null Power= \n"
    answers(monkeypatch, scontrol=about)
    end = End(state="FAILED", status=1, nodes="n1")
    assert lost.explain("1", end, tmp_path).reason.endswith(f"; it wrote no log to {record.log_of(tmp_path, '1')}")
    for path in (elsewhere, record.log_of(tmp_path, "1")):
        path.parent.mkdir(parents=True)
        path.write_text("srun: error\n")
        assert lost.explain("1", end, tmp_path).reason.endswith(f"with exit status 1; see {path}")


def test_a_step_that_slurm_ended_for_its_memory_ran_out_of_memory(tmp_path: Path) -> None:
    path = record.log_of(tmp_path, "1")
    path.parent.mkdir(parents=True)
    path.write_text("slurmstepd-n1: error: StepId=1.0 exceeded memory limit (6527807488 > 6291456000), being killed\n")
    reason = lost.explain("1", End(state="FAILED", status=9, nodes="n1"), tmp_path).reason
    assert "on n1 ran out of memory: --slurm mem=MB for more" in reason
    later = lost.explain("1", End(state="NODE_FAIL", nodes="n1"), tmp_path).reason
    assert "memory" not in later, "it was started again, and its node failed"


@pytest.mark.parametrize(("restarts", "tried"), [("0", 3), ("1", 2)])
def test_a_job_that_is_started_again_leaves_what_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restarts: str, tried: int
) -> None:
    context = Context(results=tmp_path)
    asked: list[Stage] = []

    def run(found: Sequence[Stage], context: Context, **options: Any) -> dict[str, Outcome]:
        asked.extend(found)
        return dict.fromkeys((stage.key for stage in found), "done")

    monkeypatch.setattr(job.local, "run", run)
    monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
    fail(STAGES[0], context, "failed", "no such file")
    write_json(context.folder(STAGES[1]) / "failed.json", {"status": "interrupted", "reason": "stopped"})
    outcomes = job.StageJob(context=context, source=records.ROOT)(STAGES[:3])
    assert asked == list(STAGES[3 - tried : 3])
    assert outcomes == ["done" if stage in asked else "failed" for stage in STAGES[:3]]


def launch(monkeypatch: pytest.MonkeyPatch, context: Context, jobs: Mapping[str, str]) -> list[Stage]:
    """Return what a launch of the first two stages submits.

    SLURM knows all of `jobs`. The launch is told to stop while it submits.
    """
    submitted: list[Stage] = []

    class Executor:
        def map_array(self, work: object, tasks: Sequence[tuple[Stage, ...]]) -> list[Any]:
            os.kill(os.getpid(), signal.SIGTERM)
            submitted.extend(stage for task in tasks for stage in task)
            return [SimpleNamespace(job_id="9") for _ in tasks]

    answers(monkeypatch)
    monkeypatch.setattr(queue, "states", lambda grid: dict.fromkeys(jobs.values(), "RUNNING"))
    monkeypatch.setattr(submit.Submitter, "_executor", lambda self, array: Executor())
    before = record.begin("mine", "slurm", STAGES, snapshot="", jobs=jobs)
    display = Display(View("mine", STAGES[:2], context), 2, console=Console(file=io.StringIO()))
    with pytest.raises(KeyboardInterrupt):
        slurm.run(STAGES[:2], context, display, before, options=Options(), source=context.results)
    return submitted


def test_a_launcher_that_is_told_to_stop_says_what_it_submitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    assert launch(monkeypatch, Context(results=tmp_path), {BASE.key: "1_0"}) == [STAGES[1]]
    after = record.read(tmp_path, "mine")
    assert after is not None
    assert after.jobs == {BASE.key: "1_0", STAGES[1].key: "9"}
    assert signal.getsignal(signal.SIGTERM) == handler


def test_what_failed_is_tried_again_while_its_job_is_still_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It completes, or does other stages as well."""
    context = Context(results=tmp_path)
    fail(BASE, context, "failed", "no such file")
    assert BASE in launch(monkeypatch, context, {BASE.key: "1_0"})


@pytest.mark.parametrize(("job", "kept"), [("", True), ("7", False)])
def test_what_a_person_sets_for_jobs_reaches_them(monkeypatch: pytest.MonkeyPatch, job: str, kept: bool) -> None:
    """In a job, its own options are not for others."""
    variables = {"SLURM_CONF": "/etc/slurm.conf", "SUBMITIT_PREEMPT_SIGNAL": "TERM", "SBATCH_ACCOUNT": "me"}
    for name, value in {**variables, "SLURM_JOB_ID": job, "SLURM_NTASKS": "2"}.items():
        monkeypatch.setenv(name, value)
    if not job:
        monkeypatch.delenv("SLURM_JOB_ID")
    with submit._outside_of_jobs():
        assert "SLURM_NTASKS" not in os.environ
        assert {name: os.environ.get(name) for name in variables} == {
            **variables,
            "SBATCH_ACCOUNT": variables["SBATCH_ACCOUNT"] if kept else None,
        }
    assert os.environ["SLURM_NTASKS"] == "2"


def test_tasks_that_cannot_meet_fail_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of waiting for each other; that is no failure of the stage."""
    where = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "7"}
    for name, value in {**where, "MASTER_ADDR": "no-such-host.invalid", "MASTER_PORT": "20000"}.items():
        monkeypatch.setenv(name, value)
    context = Context(results=tmp_path)
    for _ in range(3):
        assert job.StageJob(context=context, source=records.ROOT)([BASE]) == ["failed"]
    why = failure(BASE, context)
    assert why is not None
    assert why["reason"].startswith("the first node, no-such-host.invalid, has no address on ")
    assert why["reason"].endswith("; set MASTER_ADDR and MASTER_PORT to where the tasks can meet")
    assert given_up(BASE, context) is None


LIMIT = (
    "sbatch: error: AssocMaxSubmitJobLimit\nsbatch: error: Batch job submission failed: Job violates accounting/QOS policy "
    "(job submit limit, user's size and/or time limits)"
)


class Limited:
    """An executor of a cluster that takes `room` jobs."""

    room = 0

    def map_array(self, work: object, tasks: Sequence[tuple[Stage, ...]]) -> list[Any]:
        if len(tasks) > Limited.room:
            raise FailedJobError(LIMIT)
        Limited.room -= len(tasks)
        return [SimpleNamespace(job_id=f"{100 * (1 + Limited.room)}_{number}") for number in range(len(tasks))]


def submitter(monkeypatch: pytest.MonkeyPatch, context: Context) -> submit.Submitter:
    answers(monkeypatch)
    monkeypatch.setattr(submit, "ROOM_S", 0.0)
    monkeypatch.setattr(submit.Submitter, "_executor", lambda self, array: Limited())
    before = record.begin("mine", "slurm", STAGES, snapshot="", jobs={})
    return submit.Submitter(context, Options(), context.results, before, {})


def test_jobs_beyond_a_limit_are_kept_until_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = submitter(monkeypatch, Context(results=tmp_path))
    mine.add(STAGES)
    numbers = []
    for room in (2, 0, 3, 1, 100):
        Limited.room = room
        mine.submit()
        numbers.append(len(mine.jobs))
        after = record.read(tmp_path, "mine")
        assert after is not None
        assert after.jobs == mine.jobs, "a launcher that is killed now leaves no unknown job"
        assert mine.limit == ("AssocMaxSubmitJobLimit" if mine.kept else "")
    assert numbers == [2, 2, 5, 6, len(STAGES)]
    seen: set[str] = set()
    for key in mine.jobs:
        stage = next(stage for stage in STAGES if stage.key == key)
        assert {need.key for need in stage.needs} <= seen
        seen.add(key)


def test_a_limit_of_no_jobs_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = submitter(monkeypatch, Context(results=tmp_path))
    monkeypatch.setattr(queue, "states", lambda: {})
    Limited.room = 0
    mine.add(STAGES)
    with pytest.raises(ValueError, match=r"refuses even one job \(AssocMaxSubmitJobLimit\).*--slurm qos=NAME"):
        mine.submit()


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (LIMIT.replace("AssocMaxSubmitJobLimit", "QOSMaxWallDurationPerJobLimit"), "--slurm time=VALUE"),
        (LIMIT.replace("AssocMaxSubmitJobLimit", "QOSMaxGRESPerJob"), "--slurm qos=VALUE"),
        ("sbatch: error: invalid partition specified: gpu", "--slurm partition=VALUE"),
        ("sbatch: error: Invalid account or account/partition combination", "--slurm account=VALUE"),
    ],
)
def test_a_refusal_names_the_limit_and_what_helps(text: str, part: str) -> None:
    (array, *_) = arrays.arrays_of(STAGES, {}, side_by_side=1, most=9, chained=False)
    line = submit._refusal(array, text)
    assert part in line
    assert "\n" not in line


@pytest.mark.parametrize("kind", ["at once", "during the imports"])
def test_a_signal_before_the_job_listens_is_kept(tmp_path: Path, kind: str) -> None:
    """SLURM's signal may come while everything is imported: it neither kills the job nor is it lost."""
    program = tmp_path / "job.py"
    program.write_text(
        "import pathlib, signal, time\npathlib.Path('begun').touch()\ncame = []\n"
        "while not pathlib.Path('sent').exists():\n    time.sleep(0.01)\n"
        "signal.signal(signal.SIGUSR2, lambda number, frame: came.append(number))\n"
        "signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})\npathlib.Path('came').write_text(str(len(came)))\n"
    )
    process = subprocess.Popen(f"exec {submit.python_command()} {program}", shell=True, cwd=tmp_path)

    def ignored() -> bool:
        """Return True once the shell, or Python after it, ignores the signal."""
        status = Path(f"/proc/{process.pid}/status").read_text()
        return bool(int(re.search(r"SigIgn:\s*(\w+)", status)[1], 16) >> (signal.SIGUSR2 - 1) & 1)  # type: ignore[index]

    wait_for(ignored if kind == "at once" else (tmp_path / "begun").exists)
    process.send_signal(signal.SIGUSR2)
    (tmp_path / "sent").touch()
    assert process.wait(60) == 0
    if kind != "at once":
        assert (tmp_path / "came").read_text() == "1"


def test_a_silent_queue_submits_no_job_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an answer, the jobs of an earlier launch may still run."""
    earlier = record.begin("tiny", "slurm", STAGES, snapshot="", jobs={STAGES[0].key: "12_0"})
    answers = [None, {"12_0": "PENDING"}, None]
    monkeypatch.setattr(queue, "states", lambda grid: answers.pop(0))
    monkeypatch.setattr(slurm, "RETRY_S", 0.0)
    assert slurm._states(earlier) == {"12_0": "PENDING"}
    monkeypatch.setattr(slurm, "PATIENCE_S", 0.0)
    with pytest.raises(ValueError, match="SLURM does not answer squeue, and 1 stages of an earlier launch have jobs"):
        slurm._states(earlier)
    assert slurm._states(record.begin("tiny", "slurm", STAGES, snapshot="", jobs={})) == {}


def test_a_job_may_leave_its_cores_out() -> None:
    parameters = Options(sbatch={"cpus_per_task": 0}).parameters(gpu=False, timing=False)
    assert parameters["srun_args"] == []
    assert "cpus_per_task" not in parameters
