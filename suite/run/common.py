"""What several kinds of stages do: load data and weights, evaluate, keep the log, write the row."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import load_file
from safetensors.torch import save as serialise
from torch import nn

from suite import data as datasets
from suite import distributed, models, records, weights
from suite import pack as packing
from suite.contract import Batch, Task
from suite.files import write_bytes, write_text
from suite.run.folder import Context, is_done, result_of
from suite.schedule import Schedule
from suite.stages import Base, Learned, Pruned, Timed, describe, identity
from suite.train import History, top1_pct

EVAL_BATCH = 250
BASE, LEARNED, FINETUNE, SAMPLES = range(4)
"""Which batches a stage sees: they follow from the run's seed and one of these, so methods are paired by seed."""


@functools.lru_cache(maxsize=4)
def _dataset(name: str, public: str, folder: Path | None) -> datasets.Dataset:
    found = datasets.load(name, folder)
    if public:
        entry = weights.public(public)
        found = found.with_normalization(entry.mean, entry.std)
    return found


def dataset_of(base: Base, context: Context) -> datasets.Dataset:
    """The data set of a run, normalised as its base weights expect."""
    return _dataset(base.data, base.weights, context.data)


def batches_of(base: Base, schedule: Schedule, seed: int, context: Context) -> datasets.Loader:
    """The training batches of a stage: this task's part of each, when several do it together."""
    batches = epochs_of(base, schedule, seed, context, distributed.mine())
    images, tasks = batches.images_per_epoch // len(batches), distributed.tasks()
    if images % tasks:
        raise ValueError(
            f"a batch of {images} images cannot be shared evenly by {tasks} tasks; take a number that divides it"
        )
    return batches


def epochs_of(base: Base, schedule: Schedule, seed: int, context: Context, mine: slice) -> datasets.Loader:
    """The training batches of a schedule, or the images `mine` of each."""
    return dataset_of(base, context).train(
        base.split, batch=schedule.batch, seed=seed, device=context.device, limit=schedule.epoch_images, mine=mine
    )


def stream_seed(seed: int, use: int) -> int:
    """The loader's seed for one use of a run's seed."""
    return 4 * seed + use


def held_out_top1_pct(model: nn.Module, base: Base, context: Context) -> float:
    """Accuracy on the test set, or on the validation part when the run is for tuning: then no test image is read."""
    data = dataset_of(base, context)
    read = data.validation if base.split == "tuning" else data.test
    return top1_pct(model, read(EVAL_BATCH, context.device, distributed.mine()))


def judge_of(schedule: Schedule, model: nn.Module, base: Base, context: Context) -> Callable[[], float] | None:
    """What picks the epoch to keep, or None when that is the last."""
    if schedule.keep == "last":
        return None
    data = dataset_of(base, context)
    read = data.validation if schedule.keep == "best_validation" else data.test
    return lambda: top1_pct(model, read(EVAL_BATCH, context.device, distributed.mine()))


def load_model(base: Base, context: Context, file: Literal["init", "final"]) -> nn.Module:
    """The base network with its initial or its trained weights."""
    model = models.build(base.model, dataset_of(base, context).classes)
    model.load_state_dict(load_file(context.folder(base) / f"{file}.safetensors"))
    return model.to(context.device)


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the model's state to `path` (safetensors), atomically."""
    write_bytes(path, serialise({k: v.contiguous().cpu() for k, v in model.state_dict().items()}))


def save_history(folder: Path, history: History) -> None:
    """Write the training log, one line an epoch."""
    write_text(folder / "history.jsonl", "".join(json.dumps(entry) + "\n" for entry in history))


def task_of(stage: Learned | Pruned, context: Context) -> Task:
    """What the method of this stage may look at."""
    schedule = stage.schedule if isinstance(stage, Learned) else stage.finetune

    def train_epoch(epoch: int) -> Iterator[Batch]:
        return epochs_of(stage.base, schedule, stream_seed(stage.seed, SAMPLES), context, slice(None)).epoch(epoch)

    def samples(n: int) -> Batch:
        data, split = dataset_of(stage.base, context), stage.base.split
        return data.samples(min(n, data.train_size(split)), split=split, device=context.device)

    reference = stage.reference if isinstance(stage, Pruned) else None
    plan = None if reference is None else packing.plan_of(context.folder(reference) / "packed.safetensors")
    return Task(train_epoch=train_epoch, samples=samples, seed=stage.seed, budget=stage.budget, reference=plan)


def make_row(stage: Pruned | Timed, context: Context, *, status: records.Status, **columns: Any) -> records.Row:
    """The stage's row: what it is, where it was made, and the measured `columns`."""
    pruned = stage if isinstance(stage, Pruned) else stage.pruned
    base, settings = pruned.base, pruned.settings
    device = stage.timing.device if isinstance(stage, Timed) else context.device
    together = {"tasks": distributed.tasks()} if distributed.tasks() > 1 else {}
    provenance = {**records.provenance(device), **together, "finished": time.strftime("%FT%TZ", time.gmtime())}
    if is_done(base, context):
        done = result_of(base, context)
        provenance |= {name: done[name] for name in ("data_sha256", "base_sha256")}
    about: dict[str, Any] = {
        "key": stage.key,
        "label": stage.label,
        "status": status,
        "stage": identity(stage),
        "data": base.data,
        "model": base.model,
        "method": pruned.method,
        "settings": describe(settings),
        "granularity": settings.granularity,
        "groups": settings.groups,
        "budget": pruned.budget.share,
        "budget_scope": pruned.budget.scope,
        "seed": pruned.seed,
        "split": base.split,
        "smoke": pruned.smoke,
        "provenance": provenance,
    }
    if isinstance(stage, Timed):
        timing = {name: getattr(stage.timing, name) for name in ("device", "batch", "precision", "layout", "protocol")}
        return records.TimedRow(**{**about, "pruned_key": pruned.key, **timing, **columns})
    epochs = {
        "base_epochs": 0 if settings.start == "init" else base.schedule.epochs if base.schedule else None,
        "learning_epochs": pruned.learned.schedule.epochs if pruned.learned else 0,
        "finetune_epochs": pruned.finetune.epochs,
    }
    return records.PrunedRow(**{**about, "selection": _selection(pruned), **epochs, **columns})


def _selection(run: Pruned) -> str:
    """How the kept epochs were picked: "best_test" when any stage of the run was."""
    schedules = (run.base.schedule, run.learned.schedule if run.learned else None, run.finetune)
    kept = {schedule.keep for schedule in schedules if schedule}
    return next((keep for keep in ("best_test", "best_validation") if keep in kept), "last")
