"""Options of the launcher; a mistake is one line before anything runs."""

from __future__ import annotations

import os
import re
import socket
import time
from pathlib import Path

import pytest
import tiny_grid
from test_launch import one_line, write_grid
from tiny_grid import call, stages

from suite import methods, weights
from suite.launch import local, options, slurm, work
from suite.launch.__main__ import main
from suite.report import __main__ as report
from suite.run import Context
from suite.run import __main__ as run_stage

# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (("--grid", "quikstart"), ("unknown grid 'quikstart'", "did you mean quickstart?", "paper_table1")),
        (("--grid", "no/such/file.py"), ("no/such/file.py does not exist", "quickstart")),
        (("--grid", "quickstart", "--only", "vgg99"), ("--only 'vgg99' fits none of the", "digits/")),
        (("--grid", "quickstart", "--jobs", 0), ("--jobs 0", "1 or more")),
        (("--grid", "quickstart", "--jobs", -3), ("--jobs -3",)),
        (
            ("--grid", "quickstart", "--jobs", 2, "--cluster", "debug"),
            ("--jobs is for --cluster local", "one stage at a time"),
        ),
        (
            ("--grid", "quickstart", "--jobs", 2, "--cluster", "slurm"),
            ("--jobs is for --cluster local", "--parallel limits"),
        ),
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
    assert time.monotonic() - began < 100
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
