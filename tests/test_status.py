"""State of a grid, read from its folder by any process, also after the launcher was killed."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_grid
from rich.console import Console
from tiny_grid import call, members, stages, start, wait_for

from suite import lease
from suite.files import write_json
from suite.launch import cancel, record, work
from suite.launch.__main__ import main
from suite.launch.display import Display, show
from suite.launch.picture import log_of, printable, tail
from suite.launch.record import Launch
from suite.launch.status import Observer, State, launcher_lives, stage_left_s, time_left_s
from suite.launch.view import PASSING, View
from suite.progress import Watch, began
from suite.run import Context, execute, fail, given_up
from suite.run.workspace import Workspace
from suite.stages import Base, Pruned, Stage

BASE = next(stage for stage in stages() if stage.kind == "base")
PRUNED = [stage for stage in stages() if stage.kind == "pruned"]
LAUNCH = Launch(
    grid="tiny_grid",
    cluster="slurm",
    commit="0" * 40,
    dirty=False,
    snapshot="",
    time=0.0,
    host="elsewhere",
    pid=1,
    stages={},
)


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context(results=tmp_path / "results")


def state_of(stage: Stage, context: Context, launch: Launch | None = None, jobs: dict[str, str] | None = None) -> State:
    return Observer([stage], context).states(launch, jobs)[0]


def report(stage: Stage, context: Context, **about: Any) -> None:
    """Write the report of a process that does the stage."""
    here = {"host": socket.gethostname(), "pid": os.getpid(), "job": "", "seconds": 10.0, "time": time.time()}
    write_json(context.folder(stage) / "progress.json", {"doing": "base", "share": 0.5, **here, **about})


def failed(stage: Stage, context: Context, status: str = "failed", **about: Any) -> None:
    reason = {"status": status, "reason": "the reason", "time": time.time()}
    write_json(context.folder(stage) / "failed.json", {**reason, **about})


@contextlib.contextmanager
def leased(stage: Stage, context: Context) -> Iterator[Path]:
    path = context.folder(stage) / ".lease"
    path.parent.mkdir(parents=True, exist_ok=True)
    with lease.held(path, waiting=lambda owner: None, lost=lambda: None):
        yield path


def dead_pid() -> int:
    """The number of a process that is gone."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_nothing_is_to_do(context: Context) -> None:
    assert state_of(BASE, context).name == "to do"
    assert not context.results.exists()


def test_done_means_that_the_files_are_there(context: Context) -> None:
    folder = context.folder(BASE)
    folder.mkdir(parents=True)
    (folder / "final.safetensors").write_bytes(b"weights")
    Workspace(BASE, context).finish(["final.safetensors"], {"seconds": 3.0})
    assert state_of(BASE, context) == State(stage=BASE, name="done", seconds=3.0)
    (folder / "final.safetensors").write_bytes(b"wei")
    assert state_of(BASE, context).name == "to do"
    assert (folder / "done.json").exists(), "looking changes nothing"


def test_running_is_who_holds_the_lease_and_lives(context: Context) -> None:
    report(BASE, context)
    assert state_of(BASE, context).name == "lost", "nobody holds the lease"
    with leased(BASE, context) as path:
        found = state_of(BASE, context)
        assert (found.name, found.about["share"]) == ("running", 0.5)
        report(BASE, context, pid=dead_pid())
        assert state_of(BASE, context).name == "lost"
        report(BASE, context, began=1)
        assert state_of(BASE, context).name == "lost", "this process began after that report: its number was used again"
        report(BASE, context, host="elsewhere")
        assert state_of(BASE, context).name == "running"
        os.utime(path, (1.0, 1.0))
        assert state_of(BASE, context).name == "lost", "its heartbeat stopped long ago"


@pytest.mark.parametrize(
    ("status", "name"), [("failed", "failed"), ("diverged", "failed"), ("interrupted", "interrupted")]
)
def test_what_ended_has_its_reason(context: Context, status: str, name: str) -> None:
    report(BASE, context)
    failed(BASE, context, status)
    with leased(BASE, context):  # the same process does another attempt at something else
        found = state_of(BASE, context)
    assert (found.name, found.about["reason"]) == (name, "the reason")
    with leased(BASE, context):
        report(BASE, context, time=time.time() + 1)
        assert state_of(BASE, context).name == "running", "a newer attempt"


@pytest.mark.parametrize(
    ("job_state", "ended", "name"),
    [
        ("PENDING", None, "queued"),
        ("PENDING", "interrupted", "queued"),
        ("RUNNING", None, "running"),
        ("COMPLETING", None, "running"),
        ("RUNNING", "interrupted", "queued"),
        ("RUNNING", "failed", "failed"),
        (None, None, "lost"),
        (None, "failed", "failed"),
    ],
)
def test_slurm_says_whether_a_job_waits_or_runs(
    context: Context, job_state: str | None, ended: str | None, name: str
) -> None:
    launch = dataclasses.replace(LAUNCH, jobs={BASE.key: "7_1"})
    if ended:
        failed(BASE, context, ended)
    queue = {"7_1": job_state} if job_state else {}
    found = state_of(BASE, context, launch, queue)
    assert (found.name, found.job) == (name, "7_1")
    assert state_of(PRUNED[0], context, launch, queue).name == "to do"


def test_slurm_that_is_silent_loses_nothing(context: Context) -> None:
    launch = dataclasses.replace(LAUNCH, jobs={BASE.key: "7"})
    assert state_of(BASE, context, launch, None).name == "to do"


def test_stages_that_share_a_job_run_when_they_say_so(context: Context) -> None:
    launch = dataclasses.replace(LAUNCH, jobs={stage.key: "7" for stage in PRUNED})
    report(PRUNED[1], context, host="node7")
    with leased(PRUNED[1], context):
        names = [state.name for state in Observer(PRUNED, context).states(launch, {"7": "RUNNING"})]
    assert names == ["queued", "running", "queued"]


def test_the_time_left_comes_from_stages_alike(context: Context) -> None:
    done, running, waiting = (State(stage=stage, name="done", seconds=40.0) for stage in PRUNED)
    assert time_left_s([done, done, done]) is None
    running = dataclasses.replace(running, name="running", seconds=None, about={"share": 0.75, "seconds": 30.0})
    waiting = dataclasses.replace(waiting, name="to do", seconds=None)
    assert time_left_s([done, running, waiting]) == pytest.approx(10 + 40)
    assert time_left_s([running, running]) == pytest.approx((10 + 10) / 2), "from what it has done itself"
    other = State(stage=BASE, name="to do")
    assert isinstance(PRUNED[0], Pruned)
    epoch_s = (40 + 30) / (1.75 * (1 + PRUNED[0].finetune.epochs))
    assert isinstance(BASE, Base)
    assert BASE.schedule is not None
    expected = 10 + epoch_s * (1 + BASE.schedule.epochs)
    assert time_left_s([done, running, other]) == pytest.approx(expected), "from the epochs of other stages"
    assert time_left_s([other, dataclasses.replace(running, about={})]) is None, "nothing was reported yet"
    assert time_left_s([done, other]) is None
    assert time_left_s([done, other], at_least=1) is not None


def test_the_first_seconds_of_a_stage_are_not_extrapolated() -> None:
    """Loading takes 9 s, in which a thousandth is done: 40 stages would take days."""
    stages = [State(stage=stage, name="to do") for stage in PRUNED]
    running = dataclasses.replace(stages[0], name="running", about={"share": 0.001, "seconds": 9.0})
    expected = {stage.key: 30.0 for stage in PRUNED}
    left_s = time_left_s([running, *stages[1:]], expected=expected)
    assert left_s is not None
    assert 30 * len(PRUNED) < left_s < 40 * len(PRUNED)
    assert time_left_s([running, *stages[1:]]) is None, "nothing is expected, and too little is done"


def test_a_stage_that_failed_or_was_interrupted_gives_no_pace() -> None:
    stopped = State(stage=PRUNED[0], name="interrupted", about={"share": 0.01, "seconds": 3000.0, "reason": "a signal"})
    failed = dataclasses.replace(stopped, name="failed")
    waiting = State(stage=PRUNED[1], name="to do")
    expected = {stage.key: 30.0 for stage in PRUNED}
    assert time_left_s([stopped, waiting], at_least=1, expected=expected) == pytest.approx(60)
    assert time_left_s([failed, waiting], at_least=1, expected=expected) == pytest.approx(30)
    assert time_left_s([stopped, waiting], at_least=1) is None


def test_a_stage_that_goes_on_from_a_checkpoint_has_the_pace_of_its_present_process() -> None:
    about = {"share": 0.75, "share_before": 0.5, "seconds": 10.0}
    running = State(stage=PRUNED[0], name="running", about=about)
    assert time_left_s([running]) == pytest.approx(10)
    assert stage_left_s(running) == pytest.approx(10)


def test_measured_stages_outweigh_the_expectation() -> None:
    """Expected are 1 s, measured 100 s."""
    done = State(stage=BASE, name="done", seconds=100.0)
    waiting = State(stage=PRUNED[0], name="to do")
    left_s = time_left_s([done, waiting], at_least=1, expected={BASE.key: 1.0, PRUNED[0].key: 1.0})
    assert left_s == pytest.approx(160 / 61)


def test_the_log_of_a_lost_job_is_what_it_wrote_to_stderr(context: Context) -> None:
    state = State(stage=BASE, name="lost", job="7_1")
    assert log_of(state, context) is None
    path = record.log_of(context.results, "7_1")
    path.parent.mkdir(parents=True)
    path.write_text("".join(f"line {number}\n" for number in range(10_000)) + "\n\n")
    assert log_of(state, context) == path
    assert tail(path) == [f"line {number}" for number in range(9996, 10_000)]


def shown(context: Context, capsys: pytest.CaptureFixture[str], option: str = "--status", status: int = 75) -> str:
    assert call(main, "--grid", tiny_grid.FILE, "--results", context.results, option) == status
    return capsys.readouterr().out


def test_the_picture_names_reasons_and_logs(context: Context, capsys: pytest.CaptureFixture[str]) -> None:
    for stage in PRUNED[:2]:
        failed(stage, context)
        (context.folder(stage) / "log.txt").write_text("Traceback\n  somewhere\nValueError: the reason\n")
    report(PRUNED[2], context, job="99")
    text = shown(context, capsys, status=1)
    assert "9 stages: 2 failed, 1 lost, 6 to do" in text
    assert "there is no launch of it" in text
    assert text.count("the reason") == 3, "of each failure, and once from the log"
    for stage in PRUNED[:2]:
        assert str(context.folder(stage) / "log.txt") in text.replace("\n", "")
    assert f"{PRUNED[2].key} {PRUNED[2].label}" in text
    assert "no report since" in text


SHAPES: tuple[Any, ...] = (
    None,
    True,
    3,
    "text",
    [],
    [{}],
    {"status": 3, "reason": [], "share": "half", "time": 1e300, "pid": "p", "host": {}, "epoch": None, "seconds": [1]},
    {"status": "failed", "reason": None, "share": -1, "time": float("nan"), "seconds": float("inf"), "doing": {}},
    {"files": {"../../../escape": {"bytes": 0, "sha256": ""}}, "result": {}, "row": None},
    {"files": {"a": []}, "result": {}, "row": None},
    {"files": {}, "result": [], "row": None},
    {"files": {}, "result": {"seconds": "long"}, "row": {"seconds": []}},
    {"kind": {"times": "many", "reason": "text"}},
    {"kind": 3},
    {"grid": "tiny_grid", "jobs": {"key": "7; rm"}, "stages": [], "todo": 3, "time": "now", "pid": None},
)


@pytest.mark.parametrize(
    "shape", [*(json.dumps(shape) for shape in SHAPES), "[" * 100_000, "", "{", "\0"], ids=range(19)
)
def test_files_of_a_wrong_shape_stop_no_look_and_no_attempt(
    context: Context, capsys: pytest.CaptureFixture[str], shape: str
) -> None:
    """They count as absent: the picture is drawn, and the next attempt or launch writes them anew."""
    for stage in (BASE, *PRUNED):
        context.folder(stage).mkdir(parents=True)
        for name in ("failed.json", "failures.json", "progress.json", "done.json"):
            (context.folder(stage) / name).write_text(shape)
    path = record.folder(context.results) / "tiny_grid.json"
    path.parent.mkdir()
    path.write_text(shape)
    code = call(main, "--grid", tiny_grid.FILE, "--results", context.results, "--status")
    assert code in (1, 75)
    text = capsys.readouterr().out
    assert "9 stages: " in text
    assert "there is no launch of it" in text
    assert call(main, "--grid", tiny_grid.FILE, "--results", context.results, "--cancel") == 2
    found = work.find([BASE, *PRUNED], context, retry_failed=False, only_timing=False)
    assert len(found.todo) == 1 + len(PRUNED), "none is done, none is given up"
    assert not (context.folder(BASE) / "done.json").exists(), "set aside"
    for times in (1, 2, 3):
        fail(BASE, context, "failed", "a reason")
        assert (given_up(BASE, context) is not None) is (times == 3)
    assert record.read_or_set_aside(context.results, "tiny_grid") is None
    assert not path.exists()
    assert path.with_name("tiny_grid.json.damaged").read_text() == shape


def test_looking_costs_one_call_of_squeue(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Counter[str]()

    def jobs(grid: str) -> dict[str, tuple[str, str]]:
        asked["squeue"] += 1
        return {}

    def ended(numbers: set[str]) -> dict[str, str]:
        asked["sacct"] += 1
        return {}

    monkeypatch.setattr("suite.launch.queue.jobs", jobs)
    monkeypatch.setattr("suite.launch.queue.ended", ended)
    record.write(
        dataclasses.replace(LAUNCH, jobs={stage.key: str(number) for number, stage in enumerate(stages())}),
        context.results,
    )
    seen = View("tiny_grid", stages(), context)
    for _ in range(3):
        show(seen, Console(quiet=True))
    assert asked == {"squeue": 3, "sacct": 1}, "one look at the queue each; an accounting that knows nothing is let be"
    assert {state.name for state in seen.states} == {"lost"}


def test_a_silent_slurm_does_not_end_following(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: Iterator[str | None] = iter(["7|N/A|RUNNING|None", None, ""])
    monkeypatch.setattr("suite.launch.queue._ask", lambda *command: next(answers) if command[0] == "squeue" else None)
    record.write(dataclasses.replace(LAUNCH, jobs={BASE.key: "7"}), context.results)
    seen = View("tiny_grid", stages(), context)
    goes_on = []
    for _ in range(3):
        seen.look()
        goes_on.append(seen.goes_on)
    assert goes_on == [True, True, False]


def test_why_jobs_wait_is_counted(
    context: Context, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    limit, usual = "QOSMaxJobsPerUserLimit", (*PASSING, "None")
    lines = [f"7|{number}|PENDING|{reason}" for number, reason in enumerate((limit, limit, *usual))]
    monkeypatch.setattr("suite.launch.queue._ask", lambda *command: "\n".join([*lines, "8|N/A|RUNNING|None"]))
    jobs = {stage.key: f"7_{number}" for number, stage in enumerate(stages()[:6])}
    record.write(dataclasses.replace(LAUNCH, jobs=jobs), context.results)
    text = shown(context, capsys)
    assert f"SLURM lets 2 jobs wait: {limit}" in text
    assert text.count("jobs wait") == 1
    assert "6 queued" in text


@pytest.mark.parametrize("step_s", [-30.0, 30.0])
def test_a_step_of_the_clock_hides_no_living_process(
    context: Context, monkeypatch: pytest.MonkeyPatch, step_s: float
) -> None:
    report(BASE, context, began=began(os.getpid()))
    launch = record.begin("tiny_grid", "local", stages(), snapshot="", jobs={}, todo=[BASE, PRUNED[0]])
    with (
        leased(BASE, context),
        lease.held(record.folder(context.results) / "tiny_grid.lease", waiting=lambda owner: None, lost=lambda: None),
    ):
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() + step_s)
        names = [state.name for state in Observer([BASE, PRUNED[0]], context).states(launch, {})]
        assert names == ["running", "queued"]
        assert launcher_lives(launch, context.results)
        assert not launcher_lives(dataclasses.replace(launch, began=1), context.results), "its number was used again"
        assert not launcher_lives(dataclasses.replace(launch, pid=dead_pid()), context.results)


def test_whom_a_job_waits_for_is_shown_and_logged(context: Context, caplog: pytest.LogCaptureFixture) -> None:
    launch = dataclasses.replace(LAUNCH, jobs={BASE.key: "7"})
    with leased(BASE, context):
        state = state_of(BASE, context, launch, {"7": "RUNNING"})
        watch = Watch(max_minutes=0)
        assert execute(BASE, context, watch) == "interrupted"
    assert re.search(rf"waiting since \S+ \S+ for process {os.getpid()} on \S+, which holds its lease", caplog.text)
    assert state.name == "running"
    assert re.fullmatch(
        rf"no report yet; process {os.getpid()} on \S+ holds its lease, last heartbeat \d\d:\d\d:\d\d",
        state.about["doing"],
    )


def test_what_a_local_launch_leaves_out_is_not_queued(context: Context) -> None:
    here = dataclasses.replace(LAUNCH, cluster="local", host=socket.gethostname(), pid=os.getpid(), time=time.time())
    launch = dataclasses.replace(here, todo=[BASE.key])
    with lease.held(record.folder(context.results) / "tiny_grid.lease", waiting=lambda owner: None, lost=lambda: None):
        names = [state.name for state in Observer([BASE, PRUNED[0]], context).states(launch, {})]
    assert names == ["queued", "to do"]


def test_the_launcher_shows_what_status_shows(context: Context, capsys: pytest.CaptureFixture[str]) -> None:
    """One reader for both: the launcher's look gives the states, and its running stages have the same words."""
    failed(PRUNED[0], context)
    report(BASE, context, doing="\x1b[2Jbase", epoch=1, epochs=3, train_top1_pct=12.5)
    console = Console(file=io.StringIO(), width=400)
    with leased(BASE, context):
        display = Display(View("tiny_grid", stages(), context, ask_every_s=None), 9, console=console)
        display._due_at = 0.0
        display.refresh()
        text = shown(context, capsys, status=1)
    seen = View("tiny_grid", stages(), context)
    seen.look()
    names = {state.stage.key: state.name for state in display.view.states}
    assert names[BASE.key] == "running"
    assert {key: name for key, name in names.items() if key != BASE.key} == {
        state.stage.key: state.name for state in seen.states if state.stage.key != BASE.key
    }
    line = console.file.getvalue()  # type: ignore[attr-defined]
    assert r"\x1b[2Jbase, epoch 1/3, train 12.5 %" in line
    assert all(word in text for word in (r"\x1b[2Jbase", "1/3", "12.5 %"))
    assert "\x1b[2J" not in line + text


def test_control_characters_are_escaped(tmp_path: Path) -> None:
    assert printable("a\x1b]0;title\x07b\r\té") == r"a\x1b]0;title\x07b\r" + "\té"
    path = tmp_path / "log"
    path.write_text("\x1b[31mred\n")
    assert tail(path) == [r"\x1b[31mred"]


def test_there_must_be_something_to_cancel(context: Context, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(main, "--grid", tiny_grid.FILE, "--results", context.results, "--cancel") == 2
    assert "there is no launch of tiny_grid" in capsys.readouterr().err
    record.write(dataclasses.replace(LAUNCH, cluster="local"), context.results)
    assert "is no longer there; nothing to cancel" in shown(context, capsys, "--cancel", 0)


def test_only_recorded_jobs_are_cancelled(
    context: Context, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the last launch was; a job that a stage reported itself may have shared its name with another grid's."""
    asked: list[list[str]] = []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        return subprocess.CompletedProcess(command, 0, "", "")

    runs = ("RUNNING", "None")
    monkeypatch.setattr("suite.launch.queue.jobs", lambda grid: {"7_0": runs, "8": ("PENDING", "Priority"), "99": runs})
    monkeypatch.setattr("suite.launch.queue.ended", lambda jobs: {})
    monkeypatch.setattr(cancel.subprocess, "run", run)
    jobs = {BASE.key: "7_0", "pruned-of-a-run-that-left": "8", PRUNED[1].key: "6"}
    record.write(dataclasses.replace(LAUNCH, cluster="local", jobs=jobs), context.results)
    for stage in (BASE, PRUNED[0]):
        report(stage, context, job="99", host="node7")
    assert call(main, "--grid", tiny_grid.FILE, "--results", context.results, "--cancel", "--only", "dsp") == 2
    assert "leave --only out" in capsys.readouterr().err
    assert "cancelled 2 jobs, of which 1 ran" in shown(context, capsys, "--cancel", 0)
    assert asked == [["scancel", "7_0", "8"]]
    for later_s, host, seen in ((5, "node7", "interrupted"), (5, "node8", "running")):
        with leased(BASE, context):  # until it is killed, the process goes on; another one is another attempt
            report(BASE, context, job="99", host=host, time=time.time() + later_s)
            (state,) = Observer([BASE], context).states(record.read(context.results, "tiny_grid"), {})
        assert state.name == seen
    assert not (context.folder(PRUNED[0]) / "failed.json").exists()
    left = record.read(context.results, "tiny_grid")
    assert left is not None
    assert left.jobs == {PRUNED[1].key: "6"}


def test_a_launcher_is_stopped_before_its_jobs(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs that the launcher submits while it stops are cancelled, too."""
    asked: list[str] = []

    def scancel(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        asked.extend(command[1:])
        return subprocess.CompletedProcess(command, 0, "", "")

    here = dataclasses.replace(LAUNCH, host=socket.gethostname(), time=time.time())
    record.write(here, context.results)
    lives = iter([True, False])
    monkeypatch.setattr(cancel, "launcher_lives", lambda launch, results: next(lives))
    monkeypatch.setattr("suite.launch.queue.jobs", lambda grid: {"7": ("PENDING", "Priority")})

    def stop(launch: Launch, results: Path) -> str:
        record.write(dataclasses.replace(launch, jobs={BASE.key: "7"}), results)
        return "told its launcher"

    monkeypatch.setattr(cancel, "_stop", stop)
    monkeypatch.setattr(cancel.subprocess, "run", scancel)
    assert cancel.cancel(View("tiny_grid", stages(), context)).endswith(
        "told its launcher; cancelled 1 jobs, of which 0 ran"
    )
    assert asked == ["7"]


def test_another_process_is_left_alone(context: Context, capsys: pytest.CaptureFixture[str]) -> None:
    """The launcher's number, host and lease fit, but it is something else."""
    here = dataclasses.replace(LAUNCH, cluster="local", host=socket.gethostname(), pid=os.getpid(), time=time.time())
    record.write(here, context.results)
    with lease.held(record.folder(context.results) / "tiny_grid.lease", waiting=lambda owner: None, lost=lambda: None):
        assert "is no launcher of yours; it was left alone" in shown(context, capsys, "--cancel", 0)
    elsewhere = dataclasses.replace(here, host="elsewhere")
    record.write(elsewhere, context.results)
    with lease.held(record.folder(context.results) / "tiny_grid.lease", waiting=lambda owner: None, lost=lambda: None):
        assert "on elsewhere: run --cancel there" in shown(context, capsys, "--cancel", 0)


def test_a_launch_is_seen_cancelled_and_killed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its one stage, a base network of 500 epochs, never ends by itself."""
    grid, results, log = tmp_path / "long.py", tmp_path / "results", tmp_path / "log"
    long = "run_of('l1_filter', of=base(schedule=dataclasses.replace(SHORT, epochs=500)))"
    head = f"import dataclasses, sys\nsys.path.insert(0, {str(tiny_grid.FILE.parent)!r})\nfrom tiny_grid import *\n"
    grid.write_text(f"{head}GRID = Grid(title='Long', about='', runs=lambda: [{long}])\n")
    options = ("--grid", grid, "--results", results)
    launch = ("suite.launch", *options, "--device", "cpu", "--threads", 1)

    def status(option: str = "--status") -> tuple[int, str]:
        return call(main, *options, option), capsys.readouterr().out

    launcher = start(*launch, log=log)
    try:
        wait_for(lambda: "epoch" in "".join(path.read_text() for path in results.glob("work/*/progress.json")))
        code, text = status()
        assert (code, "3 stages: 1 running, 2 queued" in text, "still at work" in text) == (75, True, True), text
        assert re.search(r"digits/vgg6 seed 0 +base +\d+/500", text)
        assert f"told its launcher (process {launcher.pid}) to stop" in status("--cancel")[1]
        assert launcher.wait(60) == 75, log.read_text()
    finally:
        launcher.kill()
    code, text = status()
    assert (code, "3 stages: 1 interrupted, 2 to do" in text, "no longer there" in text) == (75, True, True), text
    assert re.search(r"stopped (in|after) epoch \d+ of 500", text)

    launcher = start(*launch, log=log)
    try:
        wait_for(lambda: "1 running, 2 queued" in status()[1])
    finally:
        os.killpg(launcher.pid, signal.SIGKILL)
        launcher.wait()
    wait_for(lambda: not members(launcher.pid))
    code, text = status("--follow")
    assert (code, "3 stages: 1 lost, 2 to do" in text) == (1, True), text
