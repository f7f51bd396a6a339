"""A launch from the dry run to the report; stopped, killed or damaged, the same command makes it whole."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_grid
import torch
from tiny_grid import call, members, results, stages, start, the, wait_for

from suite import grids, records
from suite.launch.__main__ import _context, main, parser
from suite.progress import read
from suite.report import __main__ as report
from suite.run import Context, execute, failure, is_done
from suite.run.folder import TRIES

HEAD = """
from suite.contract import Budget
from suite.grids import Grid, cross
from suite.schedule import Schedule
from suite.stages import Base, Timing

def schedule(epochs=1, images=128, **changes):
    return Schedule(**{"epochs": epochs, "epoch_images": images, "lr": 0.05, "weight_decay": 5e-4, "batch": 64, **changes})

def bases(data="digits", model="vgg6", **changes):
    return [Base(data=data, model=model, schedule=schedule(**changes), seed=0)]
"""


def write_grid(folder: Path, runs: str, timings: str = "Timing(protocol='quick'),") -> Path:
    """A grid file of one's own; `runs` is the expression that lists its runs."""
    path = folder / "mine.py"
    path.write_text(f"{HEAD}\nGRID = Grid(title='Mine', about='', runs=lambda: {runs}, timings=({timings}))\n")
    return path


def one_line(capsys: pytest.CaptureFixture[str], program: str = "suite.launch") -> str:
    """The one line that was written, to stderr."""
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1, shown.err
    assert shown.err.startswith(f"{program}: ")
    return shown.err


def files(folder: Path) -> dict[str, int]:
    """All files and when they were written."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


# ---- looking, without running ----------------------------------------------------------------------------------------


def launch(folder: Path, *more: object, grid: Path = tiny_grid.FILE) -> int:
    """The launcher in this process, one stage after the other."""
    options = ("--device", "cpu", "--threads", 1, "--cluster", "debug")
    return call(main, "--grid", grid, "--results", folder, *options, *more)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), (4, 1)),
        (("--jobs", "2"), (2, 2)),
        (("--jobs", "1"), (1, 0)),
        (("--threads", "3"), (1, 3)),
        (("--cluster", "slurm"), (1, 0)),
    ],
)
def test_a_cpu_gets_one_stage_per_core_by_default(
    monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], expected: tuple[int, int]
) -> None:
    monkeypatch.setattr("suite.cli.cores", lambda: 4)
    arguments = parser().parse_args(["--grid", "quickstart", "--device", "cpu", *options])
    context = _context(arguments)
    assert (arguments.jobs, context.threads) == expected


def test_little_memory_means_fewer_stages_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("suite.cli.cores", lambda: 64)
    arguments = parser().parse_args(["--grid", "quickstart", "--device", "cpu"])
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=2**50))
    assert (_context(arguments).threads, arguments.jobs) == (8, 8)
    arguments.jobs = None
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=5 * 2**30))
    assert (_context(arguments).threads, arguments.jobs) == (32, 2)


def test_a_dry_run_lists_everything_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch(tmp_path / "results", "--dry-run") == 0
    summary = capsys.readouterr().out
    assert "[to do]" not in summary
    assert "l1_filter" in summary
    assert "GPU-hours on one NVIDIA A100" in summary
    assert re.search(r"rows +h/row +here/row +GPU-h +GB", summary)
    assert re.search(r"l1_filter .* 1  +\d\S+  +\d+ s  ", summary)
    assert launch(tmp_path / "results", "--dry-run", "--stages") == 0
    shown = capsys.readouterr().out
    for stage in stages():
        assert f"{stage.key} " in shown
        assert stage.label in shown
    assert shown.count("[to do]") == 9
    assert "9 stages, 0 done, 9 to do (1 base, 2 learned, 3 pruned, 3 timed)" in shown
    assert "PetaMACs of training" in shown
    assert list(tmp_path.iterdir()) == []


def test_a_report_of_nothing_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(report.main, "--grid", tiny_grid.FILE, "--results", tmp_path) == 0
    assert "no row of" in capsys.readouterr().out
    assert call(report.main, "--grid", tiny_grid.FILE, "--results", tmp_path / "absent") == 2
    assert "there is no folder" in one_line(capsys, "suite.report")


# ---- the whole way ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Launched:
    """A finished launch with two workers."""

    context: Context
    output: str


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Launched:
    folder = tmp_path_factory.mktemp("launched")
    options = ("--device", "cpu", "--threads", 1, "--jobs", 2, "--results", folder / "results")
    process = start("suite.launch", "--grid", tiny_grid.FILE, *options, log=folder / "out.txt")
    try:
        status = process.wait(300)
    finally:
        process.kill()
    output = (folder / "out.txt").read_text()
    assert status == 0, output
    return Launched(context=Context(results=folder / "results", threads=1), output=output)


@pytest.fixture
def copied(launched: Launched, tmp_path: Path) -> Context:
    shutil.copytree(launched.context.results, tmp_path / "results")
    return dataclasses.replace(launched.context, results=tmp_path / "results")


def test_a_grid_leaves_rows_a_table_and_figures(launched: Launched) -> None:
    folder = launched.context.results
    rows = records.read_all(folder, [stage.key for stage in stages()])
    assert [row.status for row in rows] == ["done"] * 6
    assert all(is_done(stage, launched.context) for stage in stages())
    made = {path.name for path in (folder / "tiny_grid").iterdir()}
    assert made >= {"table.csv", "table.md", "latency.csv"}
    assert {Path(name).suffix for name in made if name.startswith("intervals")} == {".png", ".pdf"}
    assert "9 of 9 stages to do, 2 at a time on cpu" in launched.output
    assert "Traceback" not in launched.output
    assert [line.split()[2] for line in launched.output.splitlines() if "/9] done" in line][-3:] == ["timed"] * 3
    made -= {"index.html", "grid.json"}
    assert launched.output.rstrip().endswith(f"tiny_grid/index.html ({len(made)} tables and figures are beside it)")


def test_again_does_nothing(copied: Context, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(copied.results / "work") | files(copied.results / "rows")
    assert launch(copied.results) == 0
    assert "9 of 9 stages are done; nothing to do" in capsys.readouterr().out
    assert files(copied.results / "work") | files(copied.results / "rows") == before
    everything = files(copied.results)
    assert launch(copied.results, "--dry-run", "--stages") == 0
    assert capsys.readouterr().out.count("[done]") == 9
    assert files(copied.results) == everything


def test_a_dry_run_leaves_damage_where_it_is(copied: Context, capsys: pytest.CaptureFixture[str]) -> None:
    (copied.folder(the("pruned", "dsp")) / "packed.safetensors").write_bytes(b"half")
    next(records.rows_folder(copied.results).glob("pruned-*.json")).unlink()
    before = files(copied.results)
    assert launch(copied.results, "--dry-run", "--stages") == 0
    assert capsys.readouterr().out.count("[done]") == 8
    assert files(copied.results) == before


def test_only_what_is_missing_is_done(copied: Context, launched: Launched, capsys: pytest.CaptureFixture[str]) -> None:
    (copied.folder(the("learned", "slimming")) / "state.pt").unlink()
    (copied.folder(the("pruned", "dsp")) / "packed.safetensors").unlink()
    shutil.rmtree(copied.folder(the("timed", "l1_filter")))
    (copied.results / "rows" / f"{the('pruned', 'l1_filter').key}.json").unlink()
    before = files(copied.results / "work")
    assert launch(copied.results) == 0
    shown = capsys.readouterr().out
    assert "3 of 9 stages to do" in shown
    after = files(copied.results / "work")
    touched = {Path(name).parts[0] for name in after if after[name] != before.get(name)}
    assert touched == {the("learned", "slimming").key, the("pruned", "dsp").key, the("timed", "l1_filter").key}
    assert results(copied, stages()) == results(launched.context, stages())


def test_only_does_the_runs_that_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch(tmp_path, "--only", "L1_Filter") == 0
    assert "3 of 3 stages to do" in capsys.readouterr().out
    assert {path.stem for path in (tmp_path / "rows").glob("*.json")} == {
        the("pruned", "l1_filter").key,
        the("timed", "l1_filter").key,
    }


def test_smoke_is_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A large grid on the embedded data, with one seed and one budget."""
    grid = write_grid(
        tmp_path,
        "cross(bases=bases(data='cifar10', epochs=160, images=None), method='slimming', budgets=[0.3, 0.6], seeds=[3, 4], "
        "finetune=schedule(400, None, cycles=5), learning=schedule(99))",
    )
    assert launch(tmp_path / "results", "--smoke", grid=grid) == 0
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == ["smoke"]
    smoke = tmp_path / "results" / "smoke"
    rows = [records.read(path) for path in (smoke / "rows").glob("*.json")]
    assert len(rows) == 2
    for row in rows:
        assert row is not None
        assert (row.smoke, row.status, row.data, row.seed, row.budget) == (True, "done", "digits", 0, 0.3)
    assert (smoke / "mine" / "table.md").is_file()
    assert call(report.main, "--grid", grid, "--results", tmp_path / "results", "--smoke") == 0


def test_names_that_look_like_markup_are_shown_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*arguments: object) -> None:
        raise RuntimeError("[/tmp/x] [red] {0}\nsecond line")

    monkeypatch.setattr("baselines.l1_filter.L1Filter.score", explode)
    folder = tmp_path / "res[/bold]ults [red] \u00fc"
    assert launch(folder, "--only", "l1_filter") == 1
    shown = capsys.readouterr()
    assert shown.out.count("RuntimeError: [/tmp/x] [red] {0} second line") >= 2
    assert "res[/bold]ults [red] \u00fc/tiny_grid/index.html" in shown.out
    assert "1 failed, 1 wait for a failed one, 0 not reached; run the same command again to do just these" in shown.out
    assert "Traceback" not in shown.out + shown.err


def test_a_failure_takes_only_its_dependents_along(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = write_grid(
        tmp_path,
        "[run for method, changes, budget in (('dsp', {'groups': 99}, 0.5), ('l1_filter', {}, 0.9999), ('l1_filter', {}, 0.5))"
        " for run in cross(bases=bases(), method=method, budgets=[budget], learning=schedule(), finetune=schedule(), **changes)]",
        timings="",
    )
    results_folder = tmp_path / "results"
    assert launch(results_folder, grid=grid) == 1
    shown = capsys.readouterr().out
    assert "2 failed, 1 wait for a failed one, 0 not reached" in shown
    found = grids.load(str(grid))
    context = Context(results=results_folder)
    statuses = {}
    for run in found.runs():
        row = records.read(results_folder / "rows" / f"{run.key}.json")
        assert row is not None
        statuses[run.label] = row.status
        if run.learned:
            why = failure(run.learned, context)
            assert why is not None
            assert why["reason"] in row.reason
    assert list(statuses.values()) == ["failed", "failed", "done"]
    assert launch(results_folder, "--dry-run", "--stages", grid=grid) == 0
    shown = capsys.readouterr().out
    assert shown.count("[failed before: ") == 3
    assert "cannot be met" in shown
    assert (results_folder / "mine" / "table.md").is_file()


def test_the_reason_of_a_base_is_printed_once_with_the_number_of_stages_behind_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*arguments: object) -> None:
        raise ValueError("the reason")

    monkeypatch.setattr(sys.modules["suite.run.execute"], "do_base", explode)
    for _ in range(TRIES):
        assert launch(tmp_path) == 1
        shown = capsys.readouterr().out
        assert shown.count("the reason") == 2, "as the stage ends, and in the summary"
        assert "\n          8 stages wait for it\n" in shown
        assert ": the reason (8 stages wait for it)\n" in shown
        assert "1 failed, 8 wait for a failed one, 0 not reached" in shown
    rows = [records.read(path) for path in (tmp_path / "rows").iterdir()]
    base = the("base")
    assert {row.reason for row in rows if row} == {f"needs {base.key} ({base.label}), failed: the reason"}
    assert launch(tmp_path, "--status") == 1
    shown = capsys.readouterr().out
    assert shown.count(f"failed      {base.key}") == shown.count("failed      ") == 1
    assert "8 stages wait for it" in shown
    assert launch(tmp_path) == 1
    shown = capsys.readouterr().out
    assert shown.count("left alone: ") == shown.count("the reason; --retry-failed tries it again (8 stages wait") == 1


def test_at_its_time_limit_the_launcher_stops_and_goes_on(
    tmp_path: Path, launched: Launched, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock moves by a second whenever it is read.

    So the launcher stops in the middle on any machine.
    """
    context = Context(results=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("suite.progress.time", SimpleNamespace(monotonic=itertools.count().__next__, time=time.time))
        for stops in range(2):
            assert launch(tmp_path, "--max-minutes", 0, "--only", "slimming") == 75
            assert not (tmp_path / "rows").exists(), stops
            assert launch(tmp_path, "--max-minutes", 0.13, "--only", "slimming") == 75
    capsys.readouterr()
    assert launch(tmp_path, "--dry-run", "--stages", "--only", "slimming") == 0
    shown = capsys.readouterr().out
    assert shown.count("interrupted before: stopped in epoch") == 1
    assert "failed" not in shown
    assert launch(tmp_path, "--only", "slimming") == 0
    found = results(context, stages())
    wanted = results(launched.context, stages())
    assert len(found) == 6
    assert found == {name: wanted[name] for name in found}


# ---- signals and kills -----------------------------------------------------------------------------------------------


LONG = (
    "cross(bases=[*bases(epochs={0}, images=256), *bases(epochs={0} + 1, images=256)], method='l1_filter', budgets=[0.5], "
    "finetune=schedule())"
)
"""Two base networks and a run of each."""


class Launcher:
    """A launcher of its own, with two workers, on the long grid."""

    def __init__(self, folder: Path, *more: object, epochs: int) -> None:
        self.folder = folder
        self.grid = folder / "mine.py" if (folder / "mine.py").exists() else write_grid(folder, LONG.format(epochs))
        self.context = Context(results=folder / "results", threads=1)
        grid = grids.load(str(self.grid))
        self.stages = grids.stages_of(grid, grids.runs_of(grid))
        self.bases = [stage for stage in self.stages if stage.kind == "base"]
        options = ("--device", "cpu", "--threads", 1, "--jobs", 2, "--results", folder / "results")
        self.process = start("suite.launch", "--grid", self.grid, *options, *more, log=folder / "out.txt")

    @property
    def output(self) -> str:
        return (self.folder / "out.txt").read_text()

    def busy(self, count: int) -> dict[str, int]:
        """Wait until so many base networks are being trained and have a checkpoint; return their processes by key."""
        found: dict[str, int] = {}

        def enough() -> bool:
            assert self.process.poll() is None, self.output
            folders = [self.context.folder(base) for base in self.bases if not is_done(base, self.context)]
            begun = {
                folder.name: read(folder / "progress.json") for folder in folders if (folder / "train.pt").exists()
            }
            found.clear()
            found.update({key: int(report["pid"]) for key, report in begun.items() if "pid" in report})
            return len(found) >= count

        wait_for(enough, 240)
        return found

    def close(self) -> None:
        """End what is left of it."""
        for pid in members(self.process.pid):
            os.kill(pid, signal.SIGKILL)
        self.process.wait(30)


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[Launcher]:
    """Its base networks train until they are stopped."""
    found = Launcher(tmp_path, epochs=2000)
    yield found
    found.close()


@pytest.fixture
def short(tmp_path: Path) -> Iterator[Launcher]:
    """Its base networks take some seconds each."""
    found = Launcher(tmp_path, epochs=40)
    yield found
    found.close()


def finish(launcher: Launcher, tmp_path: Path) -> None:
    """The same command again makes it whole, with the bits of stages that nothing disturbed."""
    assert launch(launcher.context.results, grid=launcher.grid) == 0
    undisturbed = Context(results=tmp_path / "undisturbed", threads=1)
    for stage in launcher.stages:
        assert stage.kind == "timed" or execute(stage, undisturbed) == "done"
    wanted = results(undisturbed, launcher.stages)
    assert results(launcher.context, launcher.stages) == wanted


def test_ctrl_c_stops_at_a_checkpoint(short: Launcher, tmp_path: Path) -> None:
    """A terminal sends it to the launcher and to the workers."""
    launcher = short
    launcher.busy(1)
    os.killpg(launcher.process.pid, signal.SIGINT)
    assert launcher.process.wait(180) == 75, launcher.output
    wait_for(lambda: not members(launcher.process.pid), 60)
    assert "Traceback" not in launcher.output
    assert "KeyboardInterrupt" not in launcher.output
    assert "interrupted" in launcher.output
    assert "0 failed, 6 not reached; run the same command again" in launcher.output
    whys = [failure(stage, launcher.context) for stage in launcher.stages]
    assert {why["status"] for why in whys if why} == {"interrupted"}
    assert not (launcher.context.results / "rows").exists()
    steps = [
        torch.load(path, weights_only=True)["step"]
        for path in (launcher.context.results / "work").glob("base-*/train.pt")
    ]
    assert any(0 < step < 160 for step in steps)
    finish(launcher, tmp_path)


@pytest.mark.slow
def test_a_signal_to_the_launcher_alone(launcher: Launcher) -> None:
    launcher.busy(2)
    launcher.process.send_signal(signal.SIGINT)
    assert launcher.process.wait(60) == 75, launcher.output
    wait_for(lambda: not members(launcher.process.pid), 60)
    assert launcher.output.count("interrupted") == 2
    assert "Traceback" not in launcher.output


@pytest.mark.slow
@pytest.mark.parametrize("delay_s", [0.3, 4.0])
def test_ctrl_c_while_everything_starts(launcher: Launcher, delay_s: float) -> None:
    """Workers that still import something must not die of it, and no stage fails by it."""
    wait_for(lambda: "stages to do" in launcher.output, 120)
    time.sleep(delay_s)
    os.killpg(launcher.process.pid, signal.SIGINT)
    assert launcher.process.wait(90) == 75, launcher.output
    wait_for(lambda: not members(launcher.process.pid), 60)
    assert "Traceback" not in launcher.output, launcher.output
    assert "failed" not in launcher.output.replace("0 failed", "")


@pytest.mark.slow
def test_ctrl_c_twice_ends_at_once(launcher: Launcher) -> None:
    pids = launcher.busy(2).values()
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    launcher.process.send_signal(signal.SIGINT)
    time.sleep(1)
    assert launcher.process.poll() is None
    launcher.process.send_signal(signal.SIGINT)
    assert launcher.process.wait(60) == 130
    assert "Traceback" not in launcher.output
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    wait_for(lambda: not members(launcher.process.pid), 60)


@pytest.mark.slow
def test_a_killed_launcher_takes_its_workers_along(launcher: Launcher) -> None:
    launcher.busy(2)
    launcher.process.kill()
    wait_for(lambda: not members(launcher.process.pid), 60)


@pytest.mark.slow
def test_a_killed_worker_fails_its_own_stage_only(short: Launcher, tmp_path: Path) -> None:
    launcher = short
    key, pid = next(iter(launcher.busy(1).items()))
    os.kill(pid, signal.SIGKILL)
    killed, other = sorted(launcher.bases, key=lambda base: base.key != key)
    assert launcher.process.wait(240) == 1
    why = failure(killed, launcher.context)
    assert why is not None
    assert "its process was killed; out of memory is the usual reason" in why["reason"]
    assert "1 failed, 2 wait for a failed one, 0 not reached" in launcher.output
    assert is_done(other, launcher.context)
    for stage in launcher.stages:
        behind = [stage, *stage.needs, *(n for need in stage.needs for n in need.needs)]
        assert is_done(stage, launcher.context) is (killed not in behind)
        if killed in stage.needs:
            row = records.read(launcher.context.results / "rows" / f"{stage.key}.json")
            assert row is not None
            assert "its process was killed" in row.reason
    finish(launcher, tmp_path)


@pytest.mark.slow
def test_the_time_limit_is_that_of_the_whole_launch(tmp_path: Path) -> None:
    launcher = Launcher(tmp_path, "--max-minutes", 0.1, epochs=2000)
    try:
        began = time.monotonic()
        assert launcher.process.wait(120) == 75, launcher.output
        assert time.monotonic() - began < 100
        assert "0 failed, " in launcher.output
        assert not (tmp_path / "results" / "rows").exists() or all(
            json.loads(path.read_text())["status"] == "done" for path in (tmp_path / "results" / "rows").glob("*.json")
        )
    finally:
        launcher.close()


@pytest.mark.slow
@pytest.mark.parametrize("module", ["suite.report", "suite.methods"])
def test_a_process_of_its_own_says_what_is_wrong(module: str) -> None:
    code = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, timeout=120)
    assert code.returncode == 0
    assert code.stdout.startswith(f"usage: python -m {module}")
