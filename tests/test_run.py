"""Stages: what each leaves, what counts as done, and what becomes of anything that goes wrong."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import logging
import multiprocessing
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import tiny_grid
import torch
from safetensors.torch import load_file
from tiny_grid import call, results, run_of, stages
from torch import Tensor, nn
from torch.testing import assert_close

from baselines.l1_filter import L1Filter
from suite import data, grids, lease, models, pack, records
from suite.contract import Budget, Criterion, Learner, Planner, PruningPlan, State, Step, Task
from suite.graph import Graph
from suite.grids import cross
from suite.pack import modules
from suite.progress import Interrupted, Watch
from suite.run import Context, execute, failure, given_up, is_done, pruned_stage, repair
from suite.run.__main__ import main
from suite.run.execute import DECISIONS
from suite.run.workspace import Workspace
from suite.schedule import Compute, Schedule
from suite.stages import Pruned, Stage, Timed, Timing, in_order
from suite.train import top1_pct
from suite.trainer import Trainer

DIGITS = data.load("digits")


def do_all(found: list[Stage], context: Context) -> list[str]:
    return [execute(stage, context) for stage in found]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Context:
    """The whole tiny grid, done; tests copy it before they touch it."""
    torch.set_num_threads(1)
    context = Context(results=tmp_path_factory.mktemp("finished"), threads=1)
    assert do_all(stages(), context) == ["done"] * 9
    return context


@pytest.fixture
def copied(finished: Context, tmp_path: Path) -> Context:
    shutil.copytree(finished.results, tmp_path / "results")
    return dataclasses.replace(finished, results=tmp_path / "results")


def the(kind: str, method: str = "") -> Stage:
    return next(stage for stage in stages() if stage.kind == kind and method in stage.label)


def row_of(stage: Stage, context: Context) -> records.Row:
    row = records.read(records.rows_folder(context.results) / f"{stage.key}.json")
    assert row is not None
    return row


def log_of(stage: Stage, context: Context) -> str:
    return (context.folder(stage) / "log.txt").read_text()


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- what each stage leaves ------------------------------------------------------------------------------------------


def test_a_base_leaves_initial_and_final_weights(finished: Context) -> None:
    folder = finished.folder(the("base"))
    init, final = (load_file(folder / f"{name}.safetensors") for name in ("init", "final"))
    assert init.keys() == final.keys() == models.build("vgg6", 10).state_dict().keys()
    assert any(not torch.equal(init[name], final[name]) for name in init)
    result = json.loads((folder / "done.json").read_text())["result"]
    model = models.build("vgg6", 10)
    model.load_state_dict(final)
    assert result["top1_pct"] == top1_pct(model, DIGITS.test(250, "cpu"))
    assert result["data_sha256"] == DIGITS.checksum
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert [entry["epoch"] for entry in history] == [1, 2]


def test_learning_leaves_weights_and_the_learners_state(finished: Context) -> None:
    folder = finished.folder(the("learned", "dsp"))
    assert (folder / "final.safetensors").is_file()
    assert torch.load(folder / "state.pt", weights_only=True)


def test_a_stopped_run_goes_on_with_the_plan_that_it_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A method whose scores are others each time stands for a GPU whose sums are."""
    context, generator = Context(results=tmp_path, threads=1), torch.Generator().manual_seed(0)
    monkeypatch.setattr(
        L1Filter,
        "score",
        lambda self, model, graph, state, task: {
            name: torch.rand(conv.filters, generator=generator) for name, conv in graph.convs.items()
        },
    )
    stage = run_of("l1_filter", finetune=Schedule(epochs=2, **tiny_grid.SETTINGS))
    assert execute(stage.base, context) == "done"

    class Now(Watch):
        must_stop = True

    assert execute(stage, context, Now()) == "interrupted"
    (path,) = context.folder(stage).glob("plan*.safetensors")
    plan = load_file(path)
    assert execute(stage, context) == "done", failure(stage, context)
    assert pack.plan_of(context.folder(stage) / "packed.safetensors") == PruningPlan.from_tensors(plan)
    assert not path.exists()


@pytest.mark.parametrize("later", [10.0, 90.0])
def test_a_cycle_starts_from_the_best_of_all_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, later: float
) -> None:
    """The first of three cycles reaches 50 %, the second `later`."""
    accuracies, planned_on = iter([50.0, later, 20.0]), []
    plan_of = L1Filter.planner

    def planner(self: L1Filter, model: nn.Module, *rest: Any) -> Planner:
        planned_on.append(model.get_parameter("features.1.weight").detach().clone())
        return plan_of(self, model, *rest)

    monkeypatch.setattr(L1Filter, "planner", planner)
    short = Schedule(epochs=3, cycles=3, replan_pp=5.0, keep="best_validation", **tiny_grid.SETTINGS)
    held_out = dataclasses.replace(tiny_grid.base(), split="held_out")
    stage, context = run_of("l1_filter", of=held_out, finetune=short), Context(results=tmp_path, threads=1)
    assert execute(stage.base, context) == "done"
    monkeypatch.setattr("suite.run.workspace.Workspace.judge", lambda *_: lambda: next(accuracies))
    assert execute(stage, context) == "done", failure(stage, context)
    base, first, second = planned_on
    assert not torch.equal(base, first)
    assert torch.equal(second, first) == (later < 50)


def test_wide_layers_train_by_groups_if_the_schedule_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results differ from training by the union of channels, but by rounding only."""
    trained: list[bool] = []
    by_group = modules.by_group

    def spied(conv: modules.PackedConv | modules.GroupedConv, inputs: Iterable[Tensor]) -> Tensor:
        trained.append(isinstance(conv, modules.PackedConv))
        return by_group(conv, inputs)

    monkeypatch.setattr(modules, "by_group", spied)
    context, weights = Context(results=tmp_path, threads=1), {}
    for compute in (Compute(), Compute(packed="groups")):
        finetune = dataclasses.replace(tiny_grid.SHORT, compute=compute)
        run = cross(bases=[tiny_grid.base()], method="random_groups", groups=2, budgets=[0.5], finetune=finetune)[0]
        assert do_all(list(in_order([run])), context)[-1] == "done", failure(run, context)
        weights[compute.packed] = load_file(context.folder(run) / "packed.safetensors")
        assert any(trained) == (compute.packed == "groups")
    assert_close(weights["groups"], weights["union"], rtol=0, atol=1e-3)
    assert any(not torch.equal(weights["groups"][name], tensor) for name, tensor in weights["union"].items())


def test_a_run_leaves_a_packed_network_and_a_row_that_tell_the_same(finished: Context) -> None:
    for method in tiny_grid.METHODS:
        stage = the("pruned", method)
        assert isinstance(stage, Pruned)
        row = row_of(stage, finished)
        assert isinstance(row, records.PrunedRow)
        assert (row.status, row.method, row.budget, row.smoke) == ("done", method, 0.5, False)
        assert row.macs is not None
        assert row.macs_cut_pct is not None
        assert row.base_top1_pct is not None
        assert row.pruned_top1_pct is not None
        assert row.drop_pp == pytest.approx(row.base_top1_pct - row.pruned_top1_pct)
        assert row.macs_cut_pct >= 50
        assert row.coarse is (row.macs_cut_pct > 51)
        packed = pack.load(finished.folder(stage) / "packed.safetensors")
        assert top1_pct(packed, DIGITS.test(250, "cpu")) == row.pruned_top1_pct
        assert packed.plan.sha256 == row.plan_sha256
        assert sum(p.numel() for p in packed.parameters()) == row.params
        base_epochs = 0 if stage.settings.start == "init" else 2
        assert (row.base_epochs, row.learning_epochs, row.finetune_epochs) == (
            base_epochs,
            2 if stage.learned else 0,
            2,
        )
        assert row.provenance["threads"] == 1
        assert row.provenance["base_sha256"] == row_of(the("pruned", "dsp"), finished).provenance["base_sha256"]


def test_timing_leaves_a_row_of_the_run(finished: Context) -> None:
    stage = the("timed", "dsp")
    row = row_of(stage, finished)
    assert isinstance(row, records.TimedRow)
    assert (row.pruned_key, row.batch, row.protocol) == (the("pruned", "dsp").key, 8, "quick")
    assert row.dense_ms is not None
    assert row.dense_ms > 0
    assert row.speedup_low_x is not None
    assert row.speedup_x is not None
    assert row.speedup_low_x <= row.speedup_x
    pruned = row_of(the("pruned", "dsp"), finished)
    assert isinstance(pruned, records.PrunedRow)
    assert row.theoretical_x == pytest.approx(pruned.dense_macs / pruned.macs)  # type: ignore[operator]


def test_nothing_that_only_a_continuation_needs_is_left(finished: Context) -> None:
    names = {path.name for path in finished.results.rglob("*") if path.is_file()}
    assert not {name for name in names if name.startswith("train") or name.endswith(".part")}
    assert not names & {"progress.json", "failed.json"}


def test_it_is_the_same_in_another_place(finished: Context, tmp_path: Path) -> None:
    other = Context(results=tmp_path / "deeper" / "results with spaces", threads=1)
    chosen = in_order([run_of("slimming")])
    assert do_all(chosen, other) == ["done"] * 3
    mine = results(other, chosen)
    assert mine
    assert mine == {name: value for name, value in results(finished, chosen).items() if name in mine}


# ---- done, and not done any more -------------------------------------------------------------------------------------


def test_what_is_done_is_not_done_again(copied: Context) -> None:
    before = {path: path.stat().st_mtime_ns for path in copied.results.rglob("*.*")}
    assert do_all(stages(), copied) == ["done"] * 9
    assert {path: path.stat().st_mtime_ns for path in copied.results.rglob("*.*")} == before


@pytest.mark.parametrize("damage", ["truncated", "gone", "no json", "a list", "no files", "empty"])
def test_a_damaged_output_is_set_aside_and_done_again(
    copied: Context, finished: Context, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    stage = the("pruned", "l1_filter")
    folder = copied.folder(stage)
    packed, done = folder / "packed.safetensors", folder / "done.json"
    if damage == "truncated":
        packed.write_bytes(packed.read_bytes()[:-1])
    elif damage == "gone":
        packed.unlink()
    else:
        done.write_text({"no json": "{", "a list": "[1]", "no files": "{}", "empty": ""}[damage])
    before = contents(copied.results)
    assert not is_done(stage, copied)
    assert contents(copied.results) == before, "is_done reads only"
    with caplog.at_level(logging.WARNING):
        repair(stage, copied)
    assert "packed.safetensors" in caplog.text if damage in ("truncated", "gone") else "done.json" in caplog.text
    assert (folder / "done.json.damaged").exists()
    assert execute(stage, copied) == "done"
    assert results(copied, [stage]) == results(finished, [stage])
    assert is_done(the("timed", "l1_filter"), copied), "what was made of it stays"


def test_a_missing_or_damaged_row_is_restored(copied: Context) -> None:
    stage = the("pruned", "dsp")
    path = records.rows_folder(copied.results) / f"{stage.key}.json"
    whole = path.read_bytes()
    for content in (None, b"{"):
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)
        before = contents(copied.results)
        assert is_done(stage, copied)
        assert contents(copied.results) == before, "is_done reads only"
        repair(stage, copied)
        assert is_done(stage, copied)
        assert path.read_bytes() == whole


def test_a_row_that_can_not_be_restored_is_done_again(copied: Context) -> None:
    stage = the("pruned", "dsp")
    path = records.rows_folder(copied.results) / f"{stage.key}.json"
    path.unlink()
    done = copied.folder(stage) / "done.json"
    about = json.loads(done.read_text())
    done.write_text(json.dumps({**about, "row": {**about["row"], "schema": 0}}))
    repair(stage, copied)
    assert not is_done(stage, copied)
    assert execute(stage, copied) == "done"
    assert path.exists()


@pytest.mark.parametrize(
    ("kind", "file", "reader"),
    [
        ("learned", "state.pt", "pruned"),
        ("learned", "final.safetensors", "pruned"),
        ("base", "final.safetensors", "pruned"),
        ("pruned", "packed.safetensors", "timed"),
    ],
)
def test_a_file_that_rotted_is_noticed_when_it_is_used(
    copied: Context, finished: Context, kind: str, file: str, reader: str
) -> None:
    """Its size is right: only its checksum tells."""
    damaged, user = the(kind, "dsp" if kind != "base" else ""), the(reader, "dsp")
    shutil.rmtree(copied.folder(user))
    path = copied.folder(damaged) / file
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert is_done(damaged, copied), "nobody has read it yet"
    assert execute(user, copied) == "failed"
    reason = f"{file} of {damaged.key} is damaged; run the same command again to redo that stage"
    assert row_of(user, copied).reason == reason
    assert not is_done(damaged, copied)
    assert do_all(in_order([user]), copied)[-1] == "done"
    assert results(copied, in_order([user])) == results(finished, in_order([user]))


# ---- what goes wrong -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Exploding(Criterion):
    """Raises whatever the test puts into `error`."""

    granularity = "filter"
    source = "test"
    error: ClassVar[BaseException] = RuntimeError("boom")

    def score(self, model: nn.Module, graph: Graph, state: State, task: Task) -> Mapping[str, Tensor]:
        raise self.error


class _Wild(Learner):
    def before_step(self, step: Step) -> None:
        for parameter in step.model.parameters():
            if parameter.grad is not None:
                parameter.grad.fill_(torch.nan)


@dataclass(frozen=True, kw_only=True)
class Wild(Exploding):
    """Learns to death."""

    learns = True

    def learner(self, model: nn.Module, graph: Graph, task: Task) -> Learner:
        return _Wild()


def with_method(settings: Criterion) -> Pruned:
    return dataclasses.replace(run_of("slimming"), settings=settings)


HOSTILE = "no [/red] closing, no {} format, %s\n\n  a second line 'quoted' \u00fc\U0001f600 \x1b[31m"


def test_an_exception_becomes_a_row_with_one_line(copied: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Exploding, "error", RuntimeError(HOSTILE))
    stage = with_method(Exploding())
    timed = Timed(pruned=stage, timing=Timing(protocol="quick"))
    assert execute(stage, copied) == "failed"
    row = row_of(stage, copied)
    assert row.status == "failed"
    assert row.reason.startswith("RuntimeError: " + " ".join(HOSTILE.split()) + " (tests/test_run.py:")
    assert row.reason.endswith("; all of it in the stage's log.txt)")
    assert isinstance(row, records.PrunedRow)
    assert all(getattr(row, name) is None for name in row.result_fields)
    assert row.provenance["base_sha256"]
    log = log_of(stage, copied)
    assert "Traceback (most recent call last)" in log
    assert "raise self.error" in log
    assert not is_done(stage, copied)

    assert execute(timed, copied) == "failed"
    after = row_of(timed, copied)
    assert stage.key in after.reason
    assert stage.label in after.reason
    assert "RuntimeError: no [/red] closing" in after.reason
    assert "\n" not in after.reason

    assert execute(the("pruned", "dsp"), copied) == "done", "the others go on"


def test_the_terminal_gets_the_reason_and_no_traceback(
    copied: Context,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("baselines.l1_filter.L1Filter.score", Exploding.score)
    monkeypatch.setattr("baselines.l1_filter.L1Filter.error", RuntimeError(HOSTILE), raising=False)
    stage = the("pruned", "l1_filter")
    shutil.rmtree(copied.folder(stage))
    arguments = ("--grid", tiny_grid.FILE, "--stage", stage.key, "--results", copied.results, "--threads", 1)
    assert call(main, *arguments) == 1
    shown = capsys.readouterr()
    assert "RuntimeError: no [/red] closing, no {} format, %s a second line" in shown.out
    assert "Traceback" not in shown.out + shown.err + caplog.text
    assert "Traceback" in log_of(stage, copied)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("groups = 0 must be at least 1"), "groups = 0 must be at least 1"),
        (KeyError("stage_1"), "KeyError: 'stage_1'"),
        (AssertionError(), "AssertionError: no message"),
        (MemoryError(), "MemoryError: no message"),
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), "no room on the disk for /x/y; make room"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "/x/y"), "no room on the disk for /x/y; make room"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_reasons_are_for_people(
    copied: Context, monkeypatch: pytest.MonkeyPatch, error: BaseException, reason: str
) -> None:
    monkeypatch.setattr(Exploding, "error", error)
    assert execute(with_method(Exploding()), copied) == "failed"
    assert row_of(with_method(Exploding()), copied).reason.startswith(reason)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_no_failure_of_the_stage(copied: Context, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(Exploding, "error", OSError(number, "No space left on device", "/x/y"))
    for _ in range(4):
        assert execute(with_method(Exploding()), copied) == "failed"
    assert given_up(with_method(Exploding()), copied) is None
    monkeypatch.setattr(Exploding, "error", OSError(errno.EIO, "Input/output error", "/x/y"))
    for _ in range(3):
        assert execute(with_method(Exploding()), copied) == "failed"
    assert given_up(with_method(Exploding()), copied) is not None


def test_logits_that_are_not_finite_have_no_accuracy(copied: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    def reconstruct(self: L1Filter, model: nn.Module, *rest: object) -> None:
        next(module for module in model.modules() if isinstance(module, nn.Linear)).weight.data.fill_(torch.nan)

    monkeypatch.setattr(L1Filter, "reconstruct", reconstruct)
    stage = run_of("l1_filter", finetune=Schedule(epochs=0, lr=0.1, weight_decay=0.0))
    assert execute(stage, copied) == "diverged"
    row = row_of(stage, copied)
    assert isinstance(row, records.PrunedRow)
    assert row.pruned_top1_pct is None
    assert "images are not finite, so there is no accuracy" in row.reason


def test_a_reconstruction_draws_the_same_where_the_plan_is_read(
    copied: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that was stopped after planning leaves the plan."""
    stage, drawn = run_of("l1_filter", finetune=Schedule(epochs=0, lr=0.1, weight_decay=0.0)), []
    errors: list[Exception] = []

    def reconstruct(*arguments: object) -> None:
        if errors:
            raise errors.pop()
        drawn.append(float(torch.rand(())))

    monkeypatch.setattr(L1Filter, "reconstruct", reconstruct)
    assert execute(stage, copied) == "done"
    shutil.rmtree(copied.folder(stage))
    errors.append(RuntimeError("stopped"))
    assert execute(stage, copied) == "failed"
    assert (copied.folder(stage) / "plan0.safetensors").exists()
    assert execute(stage, copied) == "done"
    assert drawn == drawn[:1] * 2


@pytest.mark.parametrize("reading", ["planning", "training"])
def test_images_skipped_before_a_stop_are_counted(
    copied: Context, monkeypatch: pytest.MonkeyPatch, reading: str
) -> None:
    """The process that goes on does not read them again: it has the plan, or the end of the training."""
    stage, names = run_of("l1_filter"), copied.dataset(run_of("l1_filter").base).skipped
    shutil.rmtree(copied.folder(stage))
    where: Any
    where, what = (L1Filter, "score") if reading == "planning" else (Trainer, "advance")
    original = getattr(where, what)

    def skipping(*arguments: Any) -> Any:
        names.add("b/2.png")
        return original(*arguments)

    def stopping(*arguments: object) -> None:
        raise RuntimeError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(where, what, skipping)
        if reading == "planning":
            patch.setattr(L1Filter, "reconstruct", stopping)
        else:
            patch.setattr(pruned_stage, "_save", stopping)
        assert execute(stage, copied) == "failed"
    assert execute(stage, copied) == "done"
    assert row_of(stage, copied).provenance["skipped_images"] == 1


def test_a_finished_stage_loses_what_a_kill_left(copied: Context) -> None:
    """Between done.json and the end of the cleaning."""
    stage = the("pruned", "dsp")
    left = [copied.folder(stage) / name for name in ("train1.pt", "plan1.safetensors", "x.json.part", "progress.json")]
    for path in left:
        path.touch()
    assert execute(stage, copied) == "done"
    assert not any(path.exists() for path in left)


def test_diverged_is_a_status(copied: Context) -> None:
    run = with_method(Wild())
    assert run.learned is not None
    assert execute(run.learned, copied) == "diverged"
    assert execute(run, copied) == "diverged"
    assert row_of(run, copied).status == "diverged"
    assert f"needs {run.learned.key}" in row_of(run, copied).reason
    assert "diverged: the loss became nan in epoch 1" in row_of(run, copied).reason

    wild = Schedule(**{**tiny_grid.SETTINGS, "lr": 1e30}, epochs=2)
    stage = run_of("l1_filter", finetune=wild)
    assert execute(stage, copied) == "diverged"
    row = row_of(stage, copied)
    assert row.status == "diverged"
    assert row.reason.startswith("the loss became ")
    assert execute(the("pruned", "dsp"), copied) == "done"


def test_a_budget_that_can_not_be_met_is_said(copied: Context) -> None:
    stage = dataclasses.replace(run_of("l1_filter"), budget=Budget(share=0.9999))
    assert execute(stage, copied) == "failed"
    assert "99.99% cannot be met" in row_of(stage, copied).reason


def test_a_need_that_failed_or_is_missing_is_named(tmp_path: Path) -> None:
    context = Context(results=tmp_path, threads=1)
    run = run_of("l1_filter")
    assert execute(run, context) == "failed"
    assert (
        row_of(run, context).reason == f"needs {run.base.key} ({run.base.label}), missing: it is not done; run it first"
    )
    bad = dataclasses.replace(run, base=dataclasses.replace(run.base, model="vgg7"))
    assert do_all([bad.base, bad], context) == ["failed", "failed"]
    assert "failed: unknown model 'vgg7' (did you mean vgg6?); choose from: " in row_of(bad, context).reason
    assert do_all([run.base, run], context) == ["done", "done"]
    assert row_of(run, context).status == "done"
    assert failure(run, context) is None


def test_a_run_follows_another_and_is_not_reached_without_it(tmp_path: Path) -> None:
    """Scratch training of no epoch leaves the initial weights in the shape of the run that it follows."""
    context = Context(results=tmp_path, threads=1)
    still = Schedule(epochs=0, lr=0.1, weight_decay=0.0)
    followed = run_of("l1_filter", finetune=still)
    (scratch,) = grids.follow([followed], "scratch")
    assert execute(scratch.base, context) == "done"
    assert execute(scratch, context) == "failed"
    assert (
        row_of(scratch, context).reason
        == f"needs {followed.key} ({followed.label}), missing: it is not done; run it first"
    )
    assert do_all(in_order([scratch]), context) == ["done"] * 3
    folders = [context.folder(run) / "packed.safetensors" for run in (followed, scratch)]
    plan = pack.plan_of(folders[0])
    assert pack.plan_of(folders[1]) == plan
    initial = models.build("vgg6", 10)
    initial.load_state_dict(load_file(context.folder(scratch.base) / "init.safetensors"))
    expected = pack.pack(initial, Graph(initial, DIGITS.input_shape), plan).body.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in pack.load(folders[1]).body.state_dict().items())


def test_what_needs_a_stage_that_was_stopped_is_not_reached(tmp_path: Path) -> None:
    class Now(Watch):
        must_stop = True

    context = Context(results=tmp_path, threads=1)
    run = run_of("l1_filter")
    assert execute(run.base, context, Now()) == "interrupted"
    assert execute(run, context) == "interrupted"
    assert not (tmp_path / "rows").exists(), "nothing failed"
    assert do_all([run.base, run], context) == ["done", "done"]


def test_timing_on_a_gpu_without_one_is_a_failed_row(copied: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    run = the("pruned", "dsp")
    assert isinstance(run, Pruned)
    stage = Timed(pruned=run, timing=Timing(device="cuda", protocol="quick"))
    assert execute(stage, copied) == "failed"
    assert "torch finds no CUDA device here" in row_of(stage, copied).reason


def test_what_was_done_is_not_failed_afterwards(copied: Context) -> None:
    """A job that is called lost may just have ended well."""
    from suite.run import fail

    stage = the("pruned", "dsp")
    assert fail(stage, copied, "failed", "its job was lost") == "done"
    assert row_of(stage, copied).status == "done"
    assert is_done(stage, copied)


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 KB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs the right to mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("left", [0, 40_000, 200_000])
def test_a_full_disk_is_said_and_nothing_half_written_is_left(
    full_disk: Path, caplog: pytest.LogCaptureFixture, left: int
) -> None:
    """`left`: so many bytes are free, so that another file is the one that fails."""
    context = Context(results=full_disk, threads=1)
    stage = tiny_grid.base()
    free = shutil.disk_usage(full_disk).free
    (full_disk / "ballast").write_bytes(bytes(max(0, free - left)))
    assert execute(stage, context) == "failed"
    why = failure(stage, context)
    said = why["reason"] if why else caplog.text
    assert "no room on the disk for " in said or "No space left on device" in said
    assert not is_done(stage, context)
    assert not list(full_disk.rglob("*.part"))
    assert not list(full_disk.rglob("final.safetensors"))
    (full_disk / "ballast").unlink()
    subprocess.run(["mount", "-o", "remount,size=20m", str(full_disk)], check=True)
    assert execute(stage, context) == "done"


# ---- several at once -------------------------------------------------------------------------------------------------


def do(stage: Stage, context: Context, queue: Any) -> None:
    """In another process."""
    torch.set_num_threads(1)
    began = is_done(stage, context)
    queue.put((began, execute(stage, context)))


def test_two_processes_with_one_stage_leave_one_good_output(copied: Context, finished: Context) -> None:
    stage = the("pruned", "dsp")
    shutil.rmtree(copied.folder(stage))
    fork = multiprocessing.get_context("fork")
    queue = fork.Queue()
    processes = [fork.Process(target=do, args=(stage, copied, queue)) for _ in range(2)]
    for process in processes:
        process.start()
    found = [queue.get(timeout=100) for _ in processes]
    for process in processes:
        process.join(20)
        assert process.exitcode == 0
    assert [outcome for _, outcome in found] == ["done", "done"], failure(stage, copied)
    assert results(copied, [stage]) == results(finished, [stage])
    assert len(log_of(stage, copied)) == 0, "nothing went wrong in either"


def test_who_waits_for_another_process_can_be_stopped(copied: Context) -> None:
    stage = the("pruned", "dsp")
    (copied.folder(stage) / "done.json").unlink()

    class Now(Watch):
        must_stop = True

    with held(copied.folder(stage)):
        began = time.monotonic()
        assert execute(stage, copied, Now()) == "interrupted"
        assert time.monotonic() - began < lease.LEASE_S
    assert execute(stage, copied) == "done"


def test_rank_0_broadcasts_its_decision_while_another_process_has_the_lease(
    copied: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broadcast comes twice a second, so that no rank reaches its time-out; the other ranks follow the decision."""
    stage = the("pruned", "dsp")
    (copied.folder(stage) / "done.json").unlink()
    broadcast: list[int] = []

    def told(value: int) -> int:
        broadcast.append(value)
        return value

    monkeypatch.setattr("suite.distributed.broadcast", told)

    class Later(Watch):
        @property
        def must_stop(self) -> bool:
            return len(broadcast) >= 2

    with held(copied.folder(stage)):
        assert execute(stage, copied, Later()) == "interrupted"
    assert [DECISIONS[number] for number in broadcast] == ["wait", "wait", "interrupted"]
    monkeypatch.setattr("suite.distributed.is_first", lambda: False)
    for decision, outcome in (("interrupted", "interrupted"), ("done", "done")):
        numbers = iter([DECISIONS.index("wait"), DECISIONS.index("wait"), DECISIONS.index(decision)])
        monkeypatch.setattr("suite.distributed.broadcast", lambda value, numbers=numbers: next(numbers))
        assert execute(stage, copied) == outcome
        assert next(numbers, None) is None


@pytest.mark.parametrize("kind", ["base", "learned", "pruned"])
def test_only_rank_0_writes(copied: Context, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    stage = the(kind, "" if kind == "base" else "dsp")
    shutil.rmtree(copied.folder(stage))
    before = contents(copied.results)
    monkeypatch.setattr("suite.distributed.is_first", lambda: False)
    monkeypatch.setattr("suite.distributed.broadcast", lambda value: DECISIONS.index("begin"))
    assert execute(stage, copied) == "done"
    assert contents(copied.results) == before


def test_what_goes_wrong_before_the_attempt_is_a_status(copied: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as a device that is gone, or a task."""
    stage = the("pruned", "dsp")
    (copied.folder(stage) / "done.json").unlink()

    def broken(value: object) -> None:
        raise RuntimeError("Connection closed by peer")

    for name in ("suite.distributed.broadcast", "suite.records.provenance"):
        with monkeypatch.context() as patched:
            patched.setattr(name, broken)
            assert execute(stage, copied) == "failed", name
        why = failure(stage, copied)
        assert why is not None
        assert why["reason"].startswith("RuntimeError: Connection closed by peer"), name


def held(folder: Path) -> AbstractContextManager[Any]:
    """The lease of the stage, held by this thread."""
    return lease.held(folder / ".lease", waiting=lambda owner: pytest.fail(owner), lost=lambda: None)


def hold_and_wait(folder: Path, queue: Any) -> None:
    """In another process: hold the lease until it is killed."""
    with held(folder):
        queue.put(lease.owner(folder / ".lease"))
        time.sleep(600)


def test_the_lease_of_a_killed_process_is_taken_over_at_once(copied: Context) -> None:
    stage = the("pruned", "dsp")
    (copied.folder(stage) / "done.json").unlink()
    fork = multiprocessing.get_context("fork")
    queue = fork.Queue()
    process = fork.Process(target=hold_and_wait, args=(copied.folder(stage), queue))
    process.start()
    assert queue.get(timeout=60) == f"process {process.pid} on {socket.gethostname()}"
    process.kill()
    process.join(20)
    began = time.monotonic()
    assert execute(stage, copied) == "done"
    assert time.monotonic() - began < lease.LEASE_S
    assert not (copied.folder(stage) / ".lease").exists()


@pytest.mark.parametrize("alive", [False, True])
def test_an_owner_on_another_host_is_given_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alive: bool) -> None:
    """An owner keeps its lease while it touches the file; afterwards another process takes it."""
    monkeypatch.setattr(lease, "LEASE_S", 5.0)
    monkeypatch.setattr(lease, "HEARTBEAT_S", 0.2)
    path, lost = tmp_path / ".lease", threading.Event()
    with lease.held(path, waiting=pytest.fail, lost=lost.set):
        text = path.read_text().replace(f"host={socket.gethostname()}", "host=elsewhere")
        if not alive:
            os.utime(path)
            path.unlink()
        path.write_text(text)
        waits: list[str] = []

        def waiting(owner: str) -> None:
            waits.append(owner)
            if alive and len(waits) > 14:  # longer than the lease
                raise TimeoutError

        with contextlib.suppress(TimeoutError), lease.held(path, waiting=waiting, lost=lambda: None):
            assert not alive
    assert len(waits) >= 3
    assert "on elsewhere" in waits[0]
    assert lost.is_set() is not alive


@pytest.mark.parametrize("end", ["finishes", "fails", "saves", "stops"])
def test_a_process_that_wakes_after_a_takeover_writes_nothing(
    copied: Context, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """Between two of its steps another process has taken the lease over, and done the stage."""
    stage = the("pruned", "dsp")
    folder = copied.folder(stage)
    (folder / "done.json").unlink()
    before = {path.name for path in folder.iterdir()}

    def suspended(work: Workspace[Any]) -> None:
        text = (folder / ".lease").read_text()
        token = re.search(r"token=(\w+)", text)
        assert token is not None
        (folder / ".lease").write_text(text.replace(token[1], "0" * len(token[1])))
        work.watch.report("fine-tuning", share=0.5)
        if end == "finishes":
            work.finish(("packed.safetensors",))
        elif end == "fails":
            raise RuntimeError("too late")
        elif end == "stops":
            raise Interrupted("stopped")
        else:
            work.save_history([])

    monkeypatch.setattr(sys.modules["suite.run.execute"], "do_pruned", suspended)
    assert execute(stage, copied) == "interrupted"
    assert {path.name for path in folder.iterdir()} - {".lease", "log.txt"} <= before
    assert not (folder / "failed.json").exists()
    assert not (folder / "done.json").exists()


@pytest.mark.parametrize("content", [b"", b"half a"])
def test_a_lease_file_without_an_owner_expires(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    """A crash may leave such a file between its creation and its first write."""
    monkeypatch.setattr(lease, "LEASE_S", 1.0)
    monkeypatch.setattr(lease, "HEARTBEAT_S", 0.2)
    (tmp_path / ".lease").write_bytes(content)
    waits: list[str] = []

    def waiting(owner: str) -> None:
        waits.append(owner)
        assert len(waits) < 20, "never taken over"

    with lease.held(tmp_path / ".lease", waiting=waiting, lost=lambda: None):
        assert lease.owner(tmp_path / ".lease")


# ---- layers that a grid ignores --------------------------------------------------------------------------------------


def test_ignored_layers_of_a_grid_keep_all_filters_and_have_a_name(tmp_path: Path) -> None:
    runs = [
        *grids.cross(bases=[tiny_grid.base()], method="l1_filter", budgets=[0.4], finetune=tiny_grid.SHORT),
        *grids.cross(
            bases=[tiny_grid.base()],
            method="l1_filter",
            budgets=[0.4],
            finetune=tiny_grid.SHORT,
            ignored_layers=["features.1"],
        ),
    ]
    assert runs[0].key != runs[1].key
    assert runs[1].described == "l1_filter(without=features.1)"
    context = Context(results=tmp_path, threads=1)
    assert do_all(in_order(runs), context) == ["done"] * 3
    plans = [pack.load(context.folder(run) / "packed.safetensors").plan for run in runs]
    assert ["features.1" in plan for plan in plans] == [True, False]


def test_a_stored_plan_that_cannot_be_read_for_now_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new choice could be another plan than that of the weights in the checkpoint."""

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(pruned_stage, "safe_open", fail)
    with pytest.raises(OSError, match="Input/output error"):
        pruned_stage._selected(tmp_path / "plan0.safetensors", lambda: pytest.fail("chosen again"), set())
