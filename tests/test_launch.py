"""The launcher names a mistake in one line before anything runs.

Stopped, killed or damaged, a launch is made whole by the same command.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_grid
import torch
from tiny_grid import call, members, results, stages, start, wait_for

from suite import grids, methods, records, weights
from suite.launch import local, options, slurm, work
from suite.launch.__main__ import _context, main, parser
from suite.progress import read
from suite.report import __main__ as report
from suite.run import Context, execute, failure, is_done
from suite.run import __main__ as run_stage
from suite.run.folder import TRIES
from suite.stages import Stage

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


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """The launcher listens to signals; put back what was there."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


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


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (("--grid", "quikstart"), ("unknown grid 'quikstart'", "did you mean quickstart?", "paper_table1")),
        (("--grid", "no/such/file.py"), ("no/such/file.py does not exist", "quickstart")),
        (("--grid", "quickstart", "--only", "vgg99"), ("--only 'vgg99' fits none of the", "digits/")),
        (("--grid", "quickstart", "--jobs", 0), ("--jobs 0", "1 or more")),
        (("--grid", "quickstart", "--jobs", -3), ("--jobs -3",)),
        (("--grid", "quickstart", "--threads", 0), ("--threads 0: it takes 1 or more; leave it out",)),
        (("--grid", "quickstart", "--max-minutes", "nan"), ("--max-minutes nan",)),
        (("--grid", "quickstart", "--device", "cuda"), ("no CUDA device", "choose cpu or auto")),
    ],
    ids=str,
)
def test_bad_arguments(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[object, ...],
    texts: tuple[str, ...],
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert call(main, *arguments, "--results", tmp_path / "results") == 2
    message = one_line(capsys)
    for text in texts:
        assert text in message
    assert not (tmp_path / "results").exists()


def test_options_that_do_not_exist_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(main, "--grid", "quickstart", "--cluster", "pbs") == 2
    assert "invalid choice: 'pbs'" in capsys.readouterr().err


L1 = "cross(bases=bases(), method='l1_filter', budgets=[0.5], finetune=schedule())"
BROKEN_GRIDS = {
    "budget too large": (L1.replace("0.5", "1.0"), "budget 1.0 is outside [0, 1)"),
    "budget negative": (L1.replace("0.5", "-0.1"), "budget -0.1 is outside [0, 1)"),
    "budget in percent": (L1.replace("0.5", "60"), "budget 60 is outside [0, 1)"),
    "budget nan": (L1.replace("0.5", "float('nan')"), "budget nan is outside [0, 1)"),
    "unknown method": (L1.replace("l1_filter", "l1_filer"), "unknown method 'l1_filer' (did you mean l1_filter?)"),
    "unknown model": (L1.replace("bases()", "bases(model='vgg61')"), "unknown model 'vgg61' (did you mean vgg6?)"),
    "unknown data set": (
        L1.replace("bases()", "bases(data='digit')"),
        "unknown data set 'digit' (did you mean digits?)",
    ),
    "unknown setting": (L1.replace("finetune", "norm=3, finetune"), "L1Filter has no setting 'norm'; it has: ranking"),
    "impossible schedule": (L1.replace("schedule()", "schedule(cycles=3)"), "cycles that divide the epochs"),
    "no runs": ("[]", "has no runs"),
    "an error": ("[1 / 0]", "ZeroDivisionError: division by zero"),
    "an exit": ("[exit(0)]", "SystemExit: 0"),
    "an error of many lines": ("[].index('a\\nb')", "ValueError"),
}


@pytest.mark.parametrize("kind", BROKEN_GRIDS)
def test_a_broken_grid_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    runs, said = BROKEN_GRIDS[kind]
    grid = write_grid(tmp_path, runs)
    assert call(main, "--grid", grid, "--results", tmp_path / "results") == 2
    message = one_line(capsys)
    assert said in message or kind == "an error of many lines"
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("def runs(:\n", "SyntaxError"),
        ("import nothing_like_this\n", "No module named 'nothing_like_this'"),
        ("x = 1\n", "must define GRID = Grid(...)"),
        ("GRID = 3\n", "must define GRID = Grid(...)"),
        ("from suite.grids import Grid\nGRID = Grid(title='t')\n", "missing 2 required keyword-only arguments"),
        ("", "must define GRID = Grid(...)"),
        ("\0\0\0", "SyntaxError"),
        ("raise RuntimeError('two\\nlines')\n", "RuntimeError: two lines"),
        ("import sys\nsys.exit(0)\n", "SystemExit: 0"),
    ],
)
def test_a_file_that_is_no_grid(tmp_path: Path, capsys: pytest.CaptureFixture[str], body: str, said: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(body)
    assert call(main, "--grid", path, "--results", tmp_path / "results") == 2
    message = one_line(capsys)
    assert said in message
    assert str(path) in message


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every connection is refused at once."""

    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.usefixtures("no_network")
def test_missing_data_is_said_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = write_grid(tmp_path, L1.replace("bases()", "bases(data='cifar10')"))
    began = time.monotonic()
    assert call(main, "--grid", grid, "--data", tmp_path / "data", "--results", tmp_path / "results") == 2
    assert time.monotonic() - began < 20
    message = capsys.readouterr().err.splitlines()[-1]
    assert f"cifar10 is not at {tmp_path / 'data' / 'cifar10.npz'}" in message
    assert "--data or SUITE_DATA" in message
    assert not (tmp_path / "results").exists()


def test_missing_public_weights_are_said_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*arguments: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(weights, "_download", no_network)
    monkeypatch.setenv("SUITE_WEIGHTS", str(tmp_path / "weights"))
    base = "[Base(data='digits', model='resnet20_a', schedule=None, seed=0, weights='cifar10_resnet20_a')]"
    grid = write_grid(tmp_path, L1.replace("bases()", base))
    assert call(main, "--grid", grid, "--results", tmp_path / "results") == 2
    message = one_line(capsys)
    assert str(tmp_path / "weights" / "cifar10_resnet20_optionA.th") in message
    assert "cannot be fetched (no network)" in message


def test_an_unknown_layer_to_ignore_ends_a_launch_before_base_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = write_grid(tmp_path, L1.replace("finetune", "ignored_layers='conv_9', finetune"))
    assert call(main, "--grid", grid, "--results", tmp_path / "results") == 2
    assert "there is no layer 'conv_9' to ignore; choose from: " in one_line(capsys)
    assert not (tmp_path / "results").exists()


def test_without_slurm_the_slurm_option_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    arguments = ("--grid", tiny_grid.FILE, "--results", tmp_path / "results", "--device", "cpu", "--cluster", "slurm")
    assert call(main, *arguments) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("suite.launch: --cluster slurm: there is no SLURM here")
    assert "use --cluster local" in shown.err
    assert shown.err.count("\n") == 1


def test_two_launches_of_a_grid_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--grid", tiny_grid.FILE, "--results", tmp_path, "--device", "cpu")
    with work.alone(tmp_path, "tiny_grid"):
        assert call(main, *arguments) == 2
    message = one_line(capsys)
    assert f"tiny_grid is being launched already, by process {os.getpid()} on {socket.gethostname()}" in message
    assert not (tmp_path / "work").exists()


def test_results_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    arguments = ("--grid", tiny_grid.FILE, "--results", tmp_path / "file" / "results", "--device", "cpu")
    assert call(main, *arguments) == 2
    assert "results cannot be written to (Not a directory); name another folder" in one_line(capsys)


# ---- options of SLURM ------------------------------------------------------------------------------------------------


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder and a home without site files, on a machine whose sbatch is known."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        options, "_sbatch_options", lambda: frozenset({"licenses", "partition", "account", "reservation"})
    )
    return tmp_path


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize("option", ["gpu", "=gpu", ""])
def test_slurm_options_are_pairs(option: str) -> None:
    with pytest.raises(ValueError, match="is not KEY=VALUE, such as partition=gpu"):
        options.load([option])


@pytest.mark.usefixtures("site")
def test_slurm_options_are_passed_on() -> None:
    words = ["partition=gpu", "time=60", "gpus-per-node=2", "licenses=a=b"]
    found = options.load(words).parameters(gpu=True, timing=False)
    assert (found["time"], found["gpus_per_node"]) == (60, 2)
    assert found["partition"] == "gpu"
    assert found["additional_parameters"] == {"requeue": True, "licenses": "a=b"}
    assert options.load([]).parameters(gpu=True, timing=False)["gpus_per_node"] == 1
    without = options.load([]).parameters(gpu=False, timing=True)
    assert "gpus_per_node" not in without, "a partition without GPUs refuses even 0"


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize("key", ["job-name", "setup", "array_parallelism", "dependency", "srun_args", "signal"])
def test_what_the_launcher_sets_itself_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match=f"--slurm: {key} is set by the launcher itself; leave it out"):
        options.load([f"{key}=x"])


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize("several", ["nodes=2", "ntasks_per_node=4"])
def test_tasks_of_a_job_share_one_stage(several: str) -> None:
    with pytest.raises(ValueError, match=f"--runs-per-gpu 2 with {several}: .* add --runs-per-gpu 1"):
        options.load([several], runs_per_gpu=2)
    assert options.load([several], runs_per_gpu=1).sbatch
    assert options.load(["nodes=1"], runs_per_gpu=2).runs_per_gpu == 2


@pytest.mark.usefixtures("site")
def test_latency_has_a_node_and_a_kind_of_gpu_of_its_own() -> None:
    found = options.load(["gpus_per_node=4", "nodes=2", "ntasks_per_node=4"], timing_gpu="a100")
    assert "exclusive" not in found.parameters(gpu=True, timing=False)
    timing = found.parameters(gpu=True, timing=True)
    assert (timing["exclusive"], timing["gpus_per_node"]) == (True, "a100:1")
    assert (timing["nodes"], timing["ntasks_per_node"]) == (1, 1)


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize(
    ("words", "number"),
    [
        (["time=1"], 3),
        (["time=2"], 3),
        (["time=90:00", "signal_delay_s=6000"], 102),
        (["time=0-0:2"], 3),
        (["time=00:01:30"], 3),
    ],
)
def test_a_time_limit_must_be_longer_than_the_lead_of_the_signal(words: list[str], number: int) -> None:
    with pytest.raises(ValueError, match=rf"--slurm time=.* take time={number} or more \(minutes\)"):
        options.load(words)
    assert options.load([*words, f"time={number}"]).sbatch["time"] == number


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize("limit", ["60", "0", "UNLIMITED", "1-0", "12:00:00", "INFINITE"])
def test_other_time_limits_are_passed_on(limit: str) -> None:
    assert str(options.load([f"time={limit}"]).sbatch["time"]) == limit


@pytest.mark.parametrize("name", ["100%", "a\\b", 'a"b', "a'b", "a\nb", "a:b", "\x1b[2J"])
def test_results_folders_that_slurm_would_misread_are_refused(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda command: command)
    monkeypatch.setattr("suite.launch.queue.unconfigured", lambda: "")
    with pytest.raises(ValueError, match=r"SLURM cannot write logs to a folder with .*; name another folder"):
        slurm.check(tmp_path / name)
    slurm.check(tmp_path / "a=b c, d")


def test_no_more_workers_than_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []

    class Workers(local._Workers):
        def __init__(self, count: int, *_: object) -> None:
            started.append(count)
            raise KeyboardInterrupt

    monkeypatch.setattr(local, "_Workers", Workers)
    for jobs in (40, 2):
        with pytest.raises(KeyboardInterrupt):
            local.run(stages(), Context(results=tmp_path), jobs=jobs)
    assert started == [9, 2]


def test_a_verb_is_the_same_as_its_flag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--grid", tiny_grid.FILE, "--results", tmp_path / "results")
    shown = []
    for words in (("status", *arguments), (*arguments, "--status")):
        assert call(main, *words) == 75
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]
    assert "9 stages: 9 to do" in shown[0]
    assert call(main, "status", *arguments, "--cancel") == 2
    assert "status and --cancel: give one of them" in one_line(capsys)


def test_the_command_line_wins_over_the_folder_and_that_over_the_home(site: Path) -> None:
    (site / "home" / "pruning-suite").mkdir(parents=True)
    (site / "home" / "pruning-suite" / "slurm.toml").write_text(
        "partition = 'home'\naccount = 'home'\nreservation = 'home'\nparallel = 2\ntiming_gpu = 'home'\n"
    )
    (site / "slurm.toml").write_text("partition = 'folder'\naccount = 'folder'\nruns-per-gpu = 3\nparallel = 3\n")
    found = options.load(["partition=line"], parallel=4, runs_per_gpu=None)
    assert dict(found.sbatch) == {"partition": "line", "account": "folder", "reservation": "home"}
    assert (found.parallel, found.runs_per_gpu, found.timing_gpu) == (4, 3, "home")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("partitoin = 'gpu'", "unknown key 'partitoin' (did you mean partition?)"),
        ("runs_per_gpu = 'two'", "runs_per_gpu = 'two' is not what it takes"),
        ("[gpu]\npartition = 'gpu'", "gpu = {'partition': 'gpu'} is not what it takes"),
        ("partition = gpu", "cannot be read"),
        ("runs_per_gpu = 0", "--runs-per-gpu 0: it takes 1 or more"),
        ("parallel = -1", "--parallel -1: it takes"),
    ],
)
def test_a_site_file_that_is_wrong(site: Path, text: str, said: str) -> None:
    (site / "slurm.toml").write_text(text)
    with pytest.raises(ValueError, match=re.escape(said)):
        options.load([])


@pytest.mark.parametrize("option", ["--parallel=3", "--runs-per-gpu=2", "--timing-gpu=a100", "--slurm=time=60"])
def test_options_of_slurm_do_nothing_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str) -> None:
    assert call(main, "--grid", tiny_grid.FILE, "--results", tmp_path / "results", "--device", "cpu", option) == 2
    assert f"{option.partition('=')[0]} is for --cluster slurm" in one_line(capsys)


# ---- help ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "main_of", [main, run_stage.main, report.main, methods.main], ids=["launch", "run", "report", "methods"]
)
def test_every_help_page_ends_well(capsys: pytest.CaptureFixture[str], main_of: object) -> None:
    assert callable(main_of)
    assert call(main_of, "--help") == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("usage: python -m suite.")
    assert shown.err == ""


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


def the(kind: str, method: str = "") -> Stage:
    return next(stage for stage in stages() if stage.kind == kind and method in stage.label)


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
"""Two base networks that take some seconds each, and a run of each."""


class Launcher:
    """A launcher of its own, with two workers, on the long grid."""

    def __init__(self, folder: Path, *more: object, epochs: int = 40) -> None:
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

    def pid(self, stage: Stage) -> int:
        """The process that does the stage now; 0 while none does."""
        return int(read(self.context.folder(stage) / "progress.json").get("pid", 0))

    def wait_until_busy(self, count: int = 2) -> None:
        """Until so many base networks are being trained and have a checkpoint."""

        def busy() -> bool:
            assert self.process.poll() is None, self.output
            return sum((self.context.folder(s) / "train.pt").exists() and self.pid(s) > 0 for s in self.bases) >= count

        wait_for(busy, 240)

    def close(self) -> None:
        """End what is left of it."""
        for pid in members(self.process.pid):
            os.kill(pid, signal.SIGKILL)
        self.process.wait(30)


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[Launcher]:
    found = Launcher(tmp_path)
    yield found
    found.close()


@pytest.fixture
def short(tmp_path: Path) -> Iterator[Launcher]:
    """Its base networks take less time."""
    found = Launcher(tmp_path, epochs=20)
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
    launcher.wait_until_busy(1)
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
    assert any(0 < step < 80 for step in steps)
    finish(launcher, tmp_path)


@pytest.mark.slow
def test_a_signal_to_the_launcher_alone(launcher: Launcher) -> None:
    launcher.wait_until_busy()
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
    launcher.wait_until_busy()
    for base in launcher.bases:
        os.kill(launcher.pid(base), signal.SIGSTOP)
    launcher.process.send_signal(signal.SIGINT)
    time.sleep(1)
    assert launcher.process.poll() is None
    launcher.process.send_signal(signal.SIGINT)
    assert launcher.process.wait(20) == 130
    assert "Traceback" not in launcher.output
    for base in launcher.bases:
        os.kill(launcher.pid(base), signal.SIGCONT)
    wait_for(lambda: not members(launcher.process.pid), 20)


@pytest.mark.slow
def test_a_killed_launcher_takes_its_workers_along(launcher: Launcher) -> None:
    launcher.wait_until_busy()
    launcher.process.kill()
    wait_for(lambda: not members(launcher.process.pid), 60)


@pytest.mark.slow
def test_a_killed_worker_fails_its_own_stage_only(launcher: Launcher, tmp_path: Path) -> None:
    launcher.wait_until_busy()
    killed, other = launcher.bases
    os.kill(launcher.pid(killed), signal.SIGKILL)
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
        assert time.monotonic() - began < 60
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
