"""What becomes of anything that goes wrong in a stage."""

from __future__ import annotations

import dataclasses
import errno
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import tiny_grid
import torch
from safetensors.torch import load_file
from tiny_grid import call, do_all, log_of, row_of, run_of, the
from torch import Tensor, nn

from baselines.l1_filter import L1Filter
from suite import data, grids, models, pack, records
from suite.contract import Budget, Criterion, Learner, State, Step, Task
from suite.graph import Graph
from suite.progress import Watch
from suite.run import Context, execute, failure, given_up, is_done, pruned_stage
from suite.run.__main__ import main
from suite.schedule import Schedule
from suite.stages import Pruned, Timed, Timing, in_order
from suite.trainer import Trainer


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
    assert row.reason.startswith("RuntimeError: " + " ".join(HOSTILE.split()) + " (tests/test_run_failures.py:")
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
    expected = pack.pack(initial, Graph(initial, data.load("digits").input_shape), plan).body.state_dict()
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
