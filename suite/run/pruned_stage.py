"""The pruned stage: plan, pack, fine-tune and measure one run."""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as serialise
from torch import Tensor, nn

from suite import data as datasets
from suite import distributed, jsonfile
from suite import pack as packing
from suite.contract import Budget, Planner, PruningPlan, State, Task
from suite.files import write_bytes
from suite.graph import Graph
from suite.measure import latency_budget
from suite.measure.counting import count_macs, count_params
from suite.progress import Watch
from suite.run.folder import base_result
from suite.run.workspace import FINETUNE, Workspace
from suite.select import Selection, ignoring
from suite.stages import Pruned
from suite.train import load_checkpoint, seed_everything
from suite.trainer import History, make_trainer


class Numbers(TypedDict):
    """Numbers of a selection that are stored beside its plan."""

    knob: float
    cut: float
    coarse: bool
    measured_cut: NotRequired[float | None]
    corrections: NotRequired[int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _FineTuned:
    """The last cycle's packed network and selection, with the history and seconds of all cycles."""

    packed: packing.PackedNetwork
    selection: Selection
    history: History
    seconds: float


def do_pruned(work: Workspace[Pruned]) -> None:
    """Prune to the budget, fine-tune the packed network, measure it, and write the row."""
    work.watch.report("planning", share=0.0)
    model, state = _start(work)
    graph = Graph(model, work.dataset.input_shape)
    packing.check_dense(model, graph)
    if work.stage.finetune.epochs:
        graph.check_gradient()
    work.add_layer_times(model, graph)
    tuned = _fine_tuned(work, model, graph, state)
    work.save_history(tuned.history)
    work.watch.report("measuring", share=1.0)
    _save(work, tuned.packed)
    columns = _measure(work, tuned.packed, graph, tuned.selection)
    row = work.row("done", seconds=tuned.seconds, **columns)
    facts = work.stage.settings.facts(state)
    learned = {"learned": facts} if facts else {}
    skipped = work.skipped()
    notes = {**learned, **work.dataset.notes, **({"skipped_images": len(skipped)} if skipped else {})}
    row = dataclasses.replace(row, provenance={**row.provenance, **notes})
    work.finish(("packed.safetensors",), {"skipped": skipped}, row=row)


def _fine_tuned(work: Workspace[Pruned], model: nn.Module, graph: Graph, state: State) -> _FineTuned:
    """Plan, pack and train, cycle after cycle.

    Each cycle plans again on the current weights. Removed filters and kernels stay removed. If the best epoch is kept, the
    current weights are those of the best earlier cycle, with its plan. `model` changes in place.
    """
    stage, task, cycles = work.stage, work.task(), work.stage.finetune.cycles
    batches = work.batches(stage.finetune, FINETUNE)
    history: History = []
    seconds, plan, best_top1_pct = 0.0, PruningPlan({}), -1.0
    for cycle in range(cycles):
        with distributed.rank_0_first():
            select = functools.partial(_select, stage, cycle, model, graph, state, task, plan)
            selection = _selected(work.folder / f"plan{cycle}.safetensors", select, work.dataset.skipped, work.watch)
        plan = selection.plan
        if cycle == 0:
            seed_everything(stage.seed)  # also where a stored plan is read
            stage.settings.reconstruct(model, graph, plan, task)
            distributed.broadcast_in_place(model.state_dict().values())
        packed = packing.pack(model, graph, plan)
        if stage.finetune.compute.packed == "groups":
            packed.split()
        judge, first_epoch = work.judge(stage.finetune, packed), cycle * stage.finetune.cycle_epochs
        trainer = make_trainer(packed, batches, stage.finetune, judge=judge, first_epoch=first_epoch)
        doing = "fine-tuning" + (f" {cycle + 1}/{cycles}" if cycles > 1 else "")
        history += work.fit(trainer, f"train{cycle}.pt", seed=stage.seed + cycle, doing=doing)
        packing.unpack(packed, model)
        seconds += trainer.seconds
        top1_pct = trainer.best.get("top1_pct", math.inf)  # without a judge the last cycle is the best
        if top1_pct >= best_top1_pct:
            best_top1_pct, best = top1_pct, (copy.deepcopy(model.state_dict()), plan)
        else:
            model.load_state_dict(best[0])
            plan = best[1]
    return _FineTuned(packed=packed, selection=selection, history=history, seconds=seconds)


def _save(work: Workspace[Pruned], packed: packing.PackedNetwork) -> None:
    """Write the packed network to the stage's folder. A no-op on all ranks but 0."""
    if not distributed.is_first():
        return
    work.watch.check_holder()
    stage, data = work.stage, work.dataset
    packing.save(
        packed,
        work.folder / "packed.safetensors",
        model=stage.base.model,
        classes=data.classes,
        input_shape=data.input_shape,
        about={
            "data": stage.base.data,
            "label": stage.label,
            "mean": data.mean,
            "std": data.std,
            "labels": datasets.class_names(data),
        },
    )


def _start(work: Workspace[Pruned]) -> tuple[nn.Module, State]:
    """Return the network to plan on, in eval mode, and the learned state.

    Raises ValueError if the learned state is damaged; the learned stage then runs again.
    """
    stage = work.stage
    if stage.learned is None:
        return work.model("final" if stage.settings.start == "base" else "init").eval(), {}
    folder = work.context.folder(stage.learned)
    model = work.model("init")
    model.load_state_dict(load_file(folder / "final.safetensors"))
    state = load_checkpoint(folder / "state.pt")
    if state is None:
        (folder / "done.json").unlink(missing_ok=True)
        raise ValueError(f"{folder / 'state.pt'} was damaged; run the same command again to redo {stage.learned.key}")
    return model.eval(), state


def _select(
    stage: Pruned, cycle: int, model: nn.Module, graph: Graph, state: State, task: Task, before: PruningPlan
) -> Selection:
    """Return the plan of a fine-tuning cycle. All that `before` removed stays removed."""
    seed_everything(stage.seed)
    planner = ignoring(stage.settings.planner(model, graph, state, task), graph, stage.ignored_layers)
    return latency_budget.meet(_within(planner, before), model, graph, _cycle_budget(stage, cycle))


def _selected(path: Path, select: Callable[[], Selection], skipped: set[str], watch: Watch) -> Selection:
    """Return the selection stored at `path`, or call `select` and store its selection.

    A second call could return another plan, on a GPU or with other threads, and the weights in the checkpoint belong to the
    first plan.

    skipped  names of images that were left out; stored and restored with the selection
    Raises Superseded if another process has taken the stage over.
    """
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            notes = file.metadata() or {}
        about = jsonfile.parse(notes.get("selection", ""), Numbers)
        skipped.update(jsonfile.parse(notes.get("skipped", "[]"), list[str]))
        return Selection(plan=PruningPlan.from_tensors(tensors), **about)
    except (FileNotFoundError, ValueError, SafetensorError):  # missing or damaged
        selection = select()
        numbers = {name: value for name, value in vars(selection).items() if name != "plan"}
        notes = {"selection": json.dumps(numbers), "skipped": json.dumps(sorted(skipped))}
        if distributed.is_first():
            watch.check_holder()
            write_bytes(path, serialise(selection.plan.to_tensors(), notes))
        return selection


def _within(planner: Planner, before: PruningPlan) -> Planner:
    """Return the planner restricted to the kernels that the plan `before` kept."""
    return lambda knob: planner(knob) & before


def _cycle_budget(stage: Pruned, cycle: int) -> Budget:
    """Return the budget of a fine-tuning cycle. The last cycle has the run's budget."""
    missing = stage.finetune.replan_pp / 100 * (stage.finetune.cycles - 1 - cycle)
    return dataclasses.replace(stage.budget, share=max(0.0, stage.budget.share - missing))


def _measure(
    work: Workspace[Pruned], packed: packing.PackedNetwork, graph: Graph, selection: Selection
) -> dict[str, Any]:
    """Return all result fields of a `PrunedRow`. The test set is read here, once.

    Raises ValueError if the packed network and its plan differ in MACs.
    """
    accuracy = work.held_out_top1_pct(packed)
    executed = count_macs(packed, graph.input_shape)
    counted = count_macs(packing.per_group(packed, fold=False), graph.input_shape)
    left, dense = graph.macs(selection.plan), graph.dense_macs
    if counted.macs != left.total:
        raise ValueError(
            f"the packed network has {counted.macs} MACs and its plan {left.total}: packing or counting is wrong"
        )
    base, params = base_result(work.base, work.context), count_params(packed)
    return {
        "base_top1_pct": base["top1_pct"],
        "pruned_top1_pct": accuracy,
        "drop_pp": base["top1_pct"] - accuracy,
        "dense_macs": dense.total,
        "macs": counted.macs,
        "executed_macs": executed.macs,
        "macs_cut_pct": 100 * (1 - left.total / dense.total),
        "prunable_macs_cut_pct": 100 * (1 - left.prunable / dense.prunable),
        "dense_params": base["params"],
        "params": params,
        "params_cut_pct": 100 * (1 - params / base["params"]),
        "coarse": selection.coarse,
        **selection.time_cuts(),
        "time_corrections": None if selection.measured_cut is None else selection.corrections,
        "unsupported_ops": counted.unsupported_ops,
        "plan_sha256": selection.plan.sha256,
        "weights_sha256": _digest(packed.body.state_dict()),
    }


def _digest(state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
