"""Training steps are measured alone and together, by a grid, into rows; on a CPU as far as it goes."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tiny_grid
import torch
from tiny_grid import base, run_of

from suite import grids, records
from suite.grids import Grid
from suite.launch import local
from suite.measure import mps, steps
from suite.report import content, frames
from suite.report.tables import documents
from suite.run import Context, Outcome, execute, failure
from suite.run.steps_stage import _columns
from suite.schedule import Schedule
from suite.stages import Stage, TimedSteps, Timing, in_order

UNTRAINED = Schedule(epochs=0, lr=0.1, weight_decay=0.0)
BASE = base(schedule=UNTRAINED, model="resnet8")
FINE = run_of("random_filter", of=BASE, finetune=UNTRAINED)
LEARN = run_of("dsp", of=BASE, finetune=UNTRAINED, learning=UNTRAINED)
TIMING = Timing(batch=8, protocol="quick")
TURNS = TimedSteps(pruned=LEARN, timing=TIMING, training="learning", together=2)
STAGES = [
    TURNS,
    TimedSteps(
        pruned=FINE, timing=dataclasses.replace(TIMING, precision="bf16", layout="channels_last"), training="finetune"
    ),
]
GPU = grids.load("gpu_training")


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "SECONDS", {"quick": 0.1})
    monkeypatch.setattr(steps, "BLOCKS", {"quick": 2})


def rows_of(stages: Sequence[TimedSteps], context: Context) -> list[records.StepsRow]:
    """Execute the stages and their needs; return the rows."""
    for stage in in_order(stages):
        assert execute(stage, context) == "done", failure(stage, context)
    rows = [records.read(records.rows_folder(context.results) / f"{stage.key}.json") for stage in stages]
    return [row for row in rows if isinstance(row, records.StepsRow)]


def check_together(row: records.StepsRow) -> None:
    low, middle, high = (getattr(row, f"together{end}_x") for end in ("_low", "", "_high"))
    assert 0 < low <= middle <= high
    assert row.steps_per_s == pytest.approx(2e3 / (row.together_ms or 0))


def test_steps_alone_and_in_turns_become_rows_and_a_table(tmp_path: Path) -> None:
    turns, alone = rows_of(STAGES, Context(results=tmp_path, threads=1))
    assert (turns.how, turns.training, alone.how, alone.training) == ("turns", "learning", None, "finetune")
    assert (alone.together_x, alone.together_ms, alone.mps, alone.captured, alone.loader) == (
        None,
        None,
        None,
        False,
        True,
    )
    check_together(turns)
    assert (turns.of_base_x or 0) > 1, "a learning step takes a second pass"
    assert turns.macs_x == 1
    assert 0 < (alone.macs_x or 0) <= 0.5
    grid = Grid(title="Steps", about="", runs=lambda: [FINE], timings=(), steps=lambda runs: STAGES)
    loaded = frames.load(grid, tmp_path, smoke=False)
    assert len(loaded.runs) == 1
    assert loaded.timings.empty, "steps are no latency"
    texts = documents.texts(content.collect("example", grid, loaded, smoke=False), [])
    assert "## Training steps" in texts["table.md"]
    assert len(texts["steps.csv"].splitlines()) == 1 + len(STAGES)


@pytest.mark.slow
def test_steps_of_processes_become_a_row(tmp_path: Path) -> None:
    stage = TimedSteps(pruned=FINE, timing=TIMING, training="base", together=2, processes=True)
    (row,) = rows_of([stage], Context(results=tmp_path, threads=1))
    assert (row.how, row.mps, row.of_base_x) == ("processes", False, 1)
    check_together(row)


def test_throughput_counts_the_steps_of_all_runs() -> None:
    seconds = {"base": np.full(6, 0.1), "alone": np.full(6, 0.2), "together": np.full(6, 0.4)}
    columns = _columns(dataclasses.replace(TURNS, together=4), seconds)
    assert columns["steps_per_s"] == pytest.approx(10)
    assert columns["images_per_s"] == pytest.approx(80)
    assert columns["together_x"] == pytest.approx(2)
    assert columns["of_base_x"] == pytest.approx(2)


def test_a_process_that_ends_is_named_and_hangs_nothing() -> None:
    with steps.Crew(_ending, 1, 1, {}) as crew, pytest.raises(ValueError, match="one of 1 training processes ended"):
        crew(1)
    assert not any(process.is_alive() for process in crew.processes)


@pytest.mark.slow
def test_no_process_outlives_a_killed_parent() -> None:
    context = multiprocessing.get_context("spawn")
    reader, writer = context.Pipe(duplex=False)
    parent = context.Process(target=_parent, args=(writer,))
    parent.start()
    member = psutil.Process(reader.recv())
    parent.kill()
    tiny_grid.wait_for(lambda: not member.is_running() or member.status() == psutil.STATUS_ZOMBIE, 30)


def _parent(writer: Connection) -> None:
    with steps.Crew(_idle, 1, 1, {}) as crew:
        crew(1)
        writer.send(crew.processes[0].pid)
        time.sleep(60)


def _idle(index: int) -> steps.Advance:
    return lambda count: None


def _ending(index: int) -> steps.Advance:
    os._exit(3)


def test_steps_on_a_missing_gpu_are_refused(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    stage = dataclasses.replace(TURNS, timing=dataclasses.replace(TIMING, device="cuda"))
    context = Context(results=tmp_path, threads=1)
    for needed in in_order([stage])[:-1]:
        execute(needed, context)
    assert execute(stage, context) == "failed"
    assert "torch finds no CUDA device here" in (failure(stage, context) or {})["reason"]


def test_the_grid_measures_each_network_alone_and_together() -> None:
    stages = [stage for stage in grids.stages_of(GPU, grids.runs_of(GPU)) if isinstance(stage, TimedSteps)]
    models = {stage.base.model for stage in stages}
    assert models == {"resnet20", "resnet56", "vgg16", "resnet50"}
    for model in models:
        own = [stage for stage in stages if stage.base.model == model]
        assert {stage.training for stage in own} == {"base", "learning", "finetune"}
        assert {stage.together for stage in own} == ({1} if model == "resnet50" else {8})
    assert {(stage.timing.device, stage.timing.precision) for stage in stages} == {("cuda", "bf16")}
    assert any(stage.processes for stage in stages)
    small = grids.stages_of(GPU, grids.runs_of(GPU, smoke=True), smoke=True)
    assert {stage.timing.device for stage in small if isinstance(stage, TimedSteps)} == {"cpu"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"together": 0}, "take 1 run"),
        ({"together": 1, "processes": True}, "2 or more in processes"),
        ({"training": "packed"}, "choose from: base, learning, finetune"),
        ({"pruned": FINE}, "random_filter does not learn"),
    ],
)
def test_bad_conditions_are_named(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TURNS, **changes)


def control(folder: Path, monkeypatch: pytest.MonkeyPatch, status: int) -> Path:
    """Put a program of the name of MPS's control on the path; return its log of calls."""
    program, log = folder / mps.CONTROL, folder / "calls"
    program.write_text(f'#!/bin/sh\necho "$1$(cat) in $CUDA_MPS_PIPE_DIRECTORY" >> {log}\nexit {status}\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.delenv(mps.PIPE, raising=False)
    return log


def test_mps_is_started_for_the_block_and_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = control(tmp_path, monkeypatch, 0)
    with mps.served("cuda") as variables:
        folder = variables[mps.PIPE]
    assert log.read_text().splitlines() == [f"-d in {folder}", f"quit in {folder}"]
    with mps.served("cpu") as variables:
        assert variables == {}
    monkeypatch.setenv(mps.PIPE, "/own")
    with mps.served("cuda") as variables:
        assert variables == {mps.PIPE: "/own"}
    assert len(log.read_text().splitlines()) == 2


def test_mps_that_does_not_start_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    control(tmp_path, monkeypatch, 1)
    with mps.served("cuda") as variables:
        assert variables == {}
    assert "take turns" in caplog.text


def test_stages_side_by_side_on_a_gpu_are_clients_and_a_timed_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = control(tmp_path, monkeypatch, 0)
    clients: dict[str, bool] = {}

    class Worker:
        def __init__(self, environment: Mapping[str, str]) -> None:
            self.environment, self.pool = environment, self

        def submit(self, work: Callable[..., Outcome], stage: Stage, *_: object) -> Future[Outcome]:
            clients[stage.key] = mps.PIPE in self.environment
            future: Future[Outcome] = Future()
            future.set_result("done")
            return future

        def shutdown(self, **_: object) -> None:
            pass

    monkeypatch.setattr(local, "_Worker", Worker)
    stages = in_order([TURNS, *(base(seed, UNTRAINED) for seed in (1, 2))])
    local.run(stages, Context(results=tmp_path, device="cuda"), jobs=2)
    assert clients == {stage.key: not isinstance(stage, TimedSteps) for stage in stages}
    assert [line.split()[0] for line in log.read_text().splitlines()] == ["-d", "quit"]
    local.run(stages, Context(results=tmp_path, device="cuda"), jobs=1)
    local.run(stages, Context(results=tmp_path, device="cpu"), jobs=2)
    assert len(log.read_text().splitlines()) == 2, "one process at a time, or a CPU, needs no MPS"


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("training", "processes"), [("learning", False), ("learning", True), ("finetune", False)])
def test_steps_on_a_gpu_are_captured(tmp_path: Path, training: Any, processes: bool) -> None:
    timing = Timing(device="cuda", batch=32, precision="bf16", layout="channels_last", protocol="quick")
    stage = TimedSteps(pruned=LEARN, timing=timing, training=training, together=2, processes=processes)
    (row,) = rows_of([stage], Context(results=tmp_path, device="cuda"))
    assert (row.captured, row.how) == (True, "processes" if processes else "graph")
