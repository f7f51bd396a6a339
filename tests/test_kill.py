"""SIGKILL at random moments in every kind of stage.

A run that is started again until it is done ends with the same bits.

Most kills hit forked processes, which need no time to start; a slow test kills the command line.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import tiny_grid
import torch
from tiny_grid import call, results, run_of, start, wait_for

from suite.progress import read
from suite.run import Context, execute, is_done
from suite.run.__main__ import main
from suite.schedule import Schedule
from suite.stages import Pruned, Stage, Timed, Timing, in_order

SEED = 20240917
"""Of the moments."""
LONG: dict[str, Any] = {**tiny_grid.SETTINGS, "batch": 32, "epoch_images": 320}
RUN: Pruned = run_of(
    "dsp",
    of=tiny_grid.base(schedule=Schedule(epochs=6, **LONG)),
    learning=Schedule(epochs=4, **LONG),
    finetune=Schedule(epochs=6, cycles=2, replan_pp=10.0, **LONG),
)
STAGES: list[Stage] = in_order([Timed(pruned=RUN, timing=Timing(batch=8, protocol="quick"))])
"""One of each kind; the fine-tuning plans anew after half of it."""


def attempt(stage: Stage, results_folder: Path) -> None:
    """In a process that may be killed: do the stage. The exit status is 0 when it is done."""
    torch.set_num_threads(1)
    raise SystemExit(execute(stage, Context(results=results_folder, threads=1)) != "done")


FORK = multiprocessing.get_context("fork")
"""Everything is imported and loaded in the process that is forked; otherwise most kills would hit an import."""


class Attempt:
    """One process that does one stage, forked or from the command line."""

    def __init__(self, stage: Stage, context: Context, grid: Path | None = None) -> None:
        self.process: Any
        if grid is None:
            self.process = FORK.Process(target=attempt, args=(stage, context.results))
            self.process.start()
        else:
            options = ("--results", context.results, "--threads", 1, "--device", "cpu", "--stage", stage.key)
            self.process = start("suite.run", "--grid", grid, *options, log=context.results / "out.txt")

    def ended(self, seconds: float) -> bool:
        """Has it ended within this time?"""
        if isinstance(self.process, subprocess.Popen):
            try:
                self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                return False
            return True
        self.process.join(seconds)
        return self.process.exitcode is not None

    @property
    def status(self) -> int | None:
        return self.process.returncode if isinstance(self.process, subprocess.Popen) else self.process.exitcode

    def kill(self) -> None:
        self.process.kill()
        assert self.ended(30)


def undisturbed(folder: Path) -> tuple[Context, dict[str, float]]:
    """All stages without a kill, in this process, and the CPU seconds of each once everything is imported."""
    execute(STAGES[0], Context(results=folder / "warm", threads=1))
    context, seconds = Context(results=folder, threads=1), {}
    for stage in STAGES:
        began = time.process_time()
        assert execute(stage, context) == "done"
        seconds[stage.key] = time.process_time() - began
    return context, seconds


def disturbed(stage: Stage, context: Context, delays_s: list[float], grid: Path | None = None) -> tuple[int, bool]:
    """Do the stage, killing it after each delay, every other time counted from its first checkpoint, however fast the machine
    is; how many kills hit it, and whether one hit after the first checkpoint."""
    hits, in_the_middle = 0, False
    folder = context.folder(stage)
    for number, delay_s in enumerate(delays_s):
        one = Attempt(stage, context, grid)
        begun = "train*.pt" if number % 2 and stage.kind != "timed" else "log.txt"
        wait_for(lambda: any(folder.glob(begun)) or one.ended(0.0))  # noqa: B023 (used at once)
        if one.ended(delay_s):
            break
        one.kill()
        hits += 1
        in_the_middle |= any(folder.glob("train*.pt"))
    last = Attempt(stage, context, grid)
    assert last.ended(120)
    assert last.status == 0
    return hits, in_the_middle


def assert_same(context: Context, reference: Context) -> None:
    found, wanted = results(context, STAGES), results(reference, STAGES)
    assert len(wanted) == 6, "a row's result fields, and five files"
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name] == value, name
    assert all(is_done(stage, context) for stage in STAGES)
    leftovers = list((context.results / "work").rglob("*.part"))
    assert not leftovers, "what a kill left half-written"


def kill_all_kinds(tmp_path: Path, kills: dict[str, int]) -> int:
    """The number of kills that hit a running stage."""
    moments = random.Random(SEED)
    reference, seconds = undisturbed(tmp_path / "undisturbed")
    context = Context(results=tmp_path / "killed", threads=1)
    total, middles = 0, {}
    for stage in STAGES:
        delays_s = [moments.uniform(0.02, 0.2) * seconds[stage.key] for _ in range(kills[stage.kind])]
        hits, middles[stage.kind] = disturbed(stage, context, delays_s)
        total += hits
    assert_same(context, reference)
    if total > 12:
        assert middles["base"]
        assert middles["learned"]
        assert middles["pruned"]
    return total


def test_killed_a_few_times_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    kills = kill_all_kinds(tmp_path, {"base": 1, "learned": 1, "pruned": 2, "timed": 1})
    assert kills >= 3


@pytest.mark.slow
def test_killed_many_times_it_ends_with_the_same_bits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kills = kill_all_kinds(tmp_path, {"base": 8, "learned": 8, "pruned": 10, "timed": 4})
    with capsys.disabled():
        print(f" [{kills} kills hit a running stage]", end="")
    assert kills >= 12, "of 30; on a machine that got faster since the undisturbed run, a stage ends before many kills"


GRID_TEXT = """
import sys
sys.path.insert(0, {tests!r})
from suite.grids import Grid
from suite.stages import Timing
import test_kill
GRID = Grid(title="Killed", about="", runs=lambda: [test_kill.RUN], timings=(Timing(batch=8, protocol="quick"),))
"""


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    """The grid of this file's run."""
    path = tmp_path / "killed.py"
    path.write_text(GRID_TEXT.format(tests=str(tiny_grid.FILE.parent)))
    return path


@pytest.mark.slow
def test_the_command_line_killed_ends_with_the_same_bits(
    tmp_path: Path, grid: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moments = random.Random(SEED + 1)
    reference, seconds = undisturbed(tmp_path / "undisturbed")
    context = Context(results=tmp_path / "results", threads=1)
    context.results.mkdir()
    kills = 0
    for stage in STAGES:
        delays_s = [moments.uniform(0.0, 0.8) * seconds[stage.key] for _ in range(2)]
        kills += disturbed(stage, context, delays_s, grid)[0]
    assert_same(context, reference)
    with capsys.disabled():
        print(f" [{kills} kills hit the command line]", end="")
    assert kills >= 3


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGUSR2, marks=pytest.mark.slow)])
def test_a_signal_stops_at_a_checkpoint(tmp_path: Path, grid: Path, number: signal.Signals) -> None:
    """In the middle of an epoch; the exit status says that it is to be run again."""
    long = dataclasses.replace(RUN.base, schedule=Schedule(epochs=500, **LONG))
    grid.write_text(
        grid.read_text()
        .replace("[test_kill.RUN]", "[dataclasses.replace(test_kill.RUN, base=test_kill.long_base())]")
        .replace("import sys", "import dataclasses, sys")
    )
    assert long == long_base()
    context = Context(results=tmp_path, threads=1)
    folder = context.folder(long)
    options = ("--results", tmp_path, "--threads", 1, "--device", "cpu", "--stage", long.key)
    process = start("suite.run", "--grid", grid, *options, log=tmp_path / "out.txt")
    try:
        wait_for(lambda: (folder / "train.pt").exists() or process.poll() is not None)
        wait_for(lambda: read(folder / "progress.json").get("doing") == "base" or process.poll() is not None)
        process.send_signal(number)
        assert process.wait(60) == 75
    finally:
        process.kill()
        process.wait()
    shown = (tmp_path / "out.txt").read_text()
    assert "interrupted" in shown
    assert "Traceback" not in shown
    saved = torch.load(folder / "train.pt", weights_only=True)["step"]
    assert 0 < saved < 5000
    assert call(main, "--grid", grid, *options, "--max-minutes", 0) == 75, "it goes on"
    assert torch.load(folder / "train.pt", weights_only=True)["step"] == saved + 1


def long_base() -> Any:
    """The base of a training that does not end by itself in a test."""
    return dataclasses.replace(RUN.base, schedule=Schedule(epochs=500, **LONG))
