"""A study of several machines: which part is next, and what comes back into the record."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from test_report import pruned_row

from suite import grids, records, study, zoo
from suite.contract import Budget
from suite.files import write_json
from suite.schedule import Schedule
from suite.stages import Base, Pruned

HERE, ELSEWHERE = "cpu: ours, 2 cores", "cpu: theirs, 2 cores"
SHORT = Schedule(epochs=1, lr=0.05, weight_decay=5e-4, epoch_images=64, batch=32)
LONG_S = 600


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Pruned]:
    """DSP and L1 at two budgets on three base networks, budget by budget."""
    monkeypatch.setattr(study, "RECORD", tmp_path)
    monkeypatch.setattr(zoo, "FOLDER", tmp_path / "networks")
    bases = [Base(data="digits", model="resnet8", schedule=SHORT, seed=seed) for seed in range(3)]
    planned: list[Pruned] = []
    for share in (0.6, 0.3):
        for base in bases:
            for method in ("dsp", "l1_filter"):
                planned += grids.cross(
                    bases=[base], method=method, budgets=[Budget(share=share)], finetune=SHORT, learning=SHORT
                )
    return planned


def finish(run: Pruned, device: str) -> None:
    records.write(pruned_row(run, 90.0, made={"device": device}), study.RECORD)


def test_a_machine_takes_the_next_block_that_no_other_kind_has_begun(runs: list[Pruned]) -> None:
    assert study.next_part(runs, HERE) == " 60.00% seed 0"
    finish(runs[0], ELSEWHERE)
    assert study.next_part(runs, HERE) == " 60.00% seed 1"
    assert study.next_part(runs, ELSEWHERE) == " 60.00% seed 0"
    for run in runs[2:4]:
        finish(run, HERE)
    assert study.next_part(runs, HERE) == " 60.00% seed 2"
    for run in runs[4:6]:
        finish(run, HERE)
    assert study.next_part(runs, HERE) == " 30.00% seed 1"


def test_the_control_of_a_block_goes_with_its_first_budget(runs: list[Pruned]) -> None:
    control = grids.dense_control(bases=[runs[0].base], finetune=SHORT, learning=SHORT)
    planned = [*control, *runs]
    part = study.next_part(planned, HERE)
    assert part == " 0.00% seed 0| 60.00% seed 0"
    chosen = grids.runs_of(grids.Grid(title="", about="", runs=lambda: planned, timings=()), only=part)
    assert chosen == [*control, *runs[:2]]
    finish(runs[0], HERE)
    finish(runs[1], HERE)
    assert study.next_part(planned, HERE) == " 0.00% seed 0", "the next budget of this block comes after all blocks"


def test_learned_groups_hold_a_block_too(runs: list[Pruned]) -> None:
    learned = runs[0].learned
    assert learned is not None
    origin = {"device": ELSEWHERE, "emulated": ["bf16"]}
    about = {"stage": {}, "label": "", "files": {}, "result": {"provenance": origin}, "row": None}
    write_json(zoo.FOLDER / learned.key / "done.json", about)
    assert study.held_by(runs[:2]) == {f"{ELSEWHERE}, bf16 emulated"}
    assert study.next_part(runs, HERE) == " 60.00% seed 1"


def test_the_end_of_a_study_and_blocks_of_others(runs: list[Pruned]) -> None:
    for run in runs[:-1]:
        finish(run, ELSEWHERE)
    with pytest.raises(ValueError, match="other kinds of device"):
        study.next_part(runs, HERE)
    finish(runs[-1], ELSEWHERE)
    assert study.next_part(runs, HERE) == ""


def test_tables_of_other_grids_with_the_same_runs_are_written_again(runs: list[Pruned]) -> None:
    shared = {run.key for run in grids.runs_of(grids.load("cifar10_study"))}
    assert study.sharing("cifar10_study", shared) == []
    for name in ("cifar10_study", "cifar10_study_length", "quickstart"):
        (study.RECORD / name).mkdir()
        (study.RECORD / name / "table.md").touch()
    assert study.sharing("cifar10_study", shared) == ["cifar10_study_length"]
    assert study.sharing("cifar10_study", {"pruned-none"}) == []


def test_a_grid_without_commit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"launch it with python -m suite.launch --grid quickstart"):
        study.run("quickstart", "", "cpu", None)  # type: ignore[arg-type]


def test_a_record_that_cannot_be_written_does_not_end_a_launch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It lasts until the record was written for the third time."""
    launched = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    taken: list[object] = []

    def take(*arguments: Any) -> None:
        taken.append(arguments)
        if len(taken) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        if len(taken) == 3:
            launched.communicate(b"\n")

    monkeypatch.setattr(study, "BETWEEN_S", 0.1)
    monkeypatch.setattr(study, "take", take)
    monkeypatch.setattr(study.subprocess, "Popen", lambda command, **options: launched)
    assert study.launch("small", "", "cpu", grids.load("quickstart"), Console()) == 0
    assert len(taken) == 4, "and at its end"
    assert capsys.readouterr().out.count("No space left on device") == 1


GRID = '''
"""Two base networks, a control and a method."""
from suite.contract import Budget
from suite.grids import Grid, cross, dense_control
from suite.schedule import Schedule
from suite.stages import Base

SHORT = Schedule(epochs=1, lr=0.05, weight_decay=5e-4, epoch_images=64, batch=32)


def runs():
    bases = [Base(data="digits", model="resnet8", schedule=SHORT, seed=seed) for seed in (0, 1)]
    planned = []
    for base in bases:
        planned += dense_control(bases=[base], finetune=SHORT, learning=SHORT)
        planned += cross(bases=[base], method="l1_filter", budgets=[Budget(share=0.5)], finetune=SHORT)
    return planned


GRID = Grid(title="Small", about="A small study.", runs=runs, timings=(), commit="COMMIT")
'''


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the source and a small study at its first commit."""
    folder = tmp_path_factory.mktemp("study") / "checkout"
    for name in ("suite", "dsp", "baselines"):
        shutil.copytree(records.ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("requirements.txt", "pyproject.toml", ".gitignore"):
        shutil.copy(records.ROOT / name, folder)
    grid = folder / "suite" / "grids" / "small_study.py"
    grid.write_text(GRID)
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run([*git[:3], "init", "--quiet"], check=True)
    for message in ("first", "second"):
        subprocess.run([*git, "add", "--all"], check=True)
        subprocess.run([*git, "commit", "--quiet", "--message", message], check=True)
        grid.write_text(GRID.replace("COMMIT", first_commit(folder)))
    return folder


def first_commit(folder: Path) -> str:
    command = ["git", "-C", str(folder), "rev-list", "--max-parents=0", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@contextlib.contextmanager
def begun(folder: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """A study as a process that ends with the block."""
    command = [sys.executable, "-m", "suite.study", "--grid", "small_study", "--device", "cpu", *options]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    process = subprocess.Popen(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.communicate(timeout=LONG_S)


@pytest.mark.slow
def test_an_interrupted_study_keeps_what_is_finished_and_goes_on(checkout: Path) -> None:
    record = checkout / "results" / "reference"
    with begun(checkout) as process:
        deadline = time.monotonic() + LONG_S
        while not list((checkout / "results" / "study").glob("rows/*.json")):
            assert time.monotonic() < deadline
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        text = process.communicate(timeout=LONG_S)[0]
    assert process.returncode != 0, text
    kept = len(list(record.glob("rows/*.json")))
    assert 1 <= kept < 4, text
    assert len(json.loads((record / "networks" / "index.json").read_text())) >= 2

    shutil.rmtree(checkout / "results" / "study")  # another machine, which has the record alone
    with begun(checkout) as process:
        text = process.communicate(timeout=LONG_S)[0]
    assert process.returncode == 0, text
    assert "all 4 runs are done" in text
    assert "50.00% seed 1\n" in text
    assert "left out" not in text
    rows = [json.loads(path.read_text()) for path in record.glob("rows/*.json")]
    assert len(rows) == 4
    assert {(row["provenance"]["commit"], row["provenance"]["dirty"]) for row in rows} == {
        (first_commit(checkout), False)
    }
    assert "4 runs: 4 done" in (record / "small_study" / "table.md").read_text()
    assert {"resnet8/base", "resnet8/base_seed1"} < json.loads((record / "networks" / "index.json").read_text()).keys()

    with begun(checkout, "--check") as process:
        text = process.communicate(timeout=LONG_S)[0]
    assert (process.returncode, "equal in every bit" in text) == (0, True), text
