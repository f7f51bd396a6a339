"""What each stage leaves: weights, packed networks, rows."""

from __future__ import annotations

import dataclasses
import errno
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import tiny_grid
import torch
from safetensors.torch import load_file
from tiny_grid import do_all, results, row_of, run_of, the
from torch import Tensor, nn
from torch.testing import assert_close

from baselines.l1_filter import L1Filter
from suite import data, grids, models, pack, records
from suite.contract import Planner, PruningPlan
from suite.grids import cross
from suite.pack import modules
from suite.progress import Watch
from suite.run import Context, execute, failure, pruned_stage
from suite.schedule import Compute, Schedule
from suite.stages import Pruned, in_order
from suite.train import top1_pct

DIGITS = data.load("digits")


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
    with pytest.raises(ValueError, match="fpgm chooses its filters while it learns, and cannot leave layers alone"):
        dataclasses.replace(run_of("fpgm"), ignored_layers=("features.1",))
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
        pruned_stage._selected(tmp_path / "plan0.safetensors", lambda: pytest.fail("chosen again"), set(), Watch())
