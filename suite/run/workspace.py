"""Workspace: the one object with everything a stage needs to run."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from safetensors.torch import load_file
from safetensors.torch import save as serialise
from torch import nn

from suite import data as datasets
from suite import distributed, models, records
from suite import pack as packing
from suite.contract import Batch, Task
from suite.files import sha256, write_bytes, write_json, write_text
from suite.graph import Graph
from suite.measure import latency_budget
from suite.progress import Watch
from suite.run import code
from suite.run.context import Context
from suite.run.folder import base_result, is_done, result_of, skipped_by
from suite.schedule import Schedule
from suite.stages import Base, Learned, Pruned, Stage, Timed, TimedSteps, identity
from suite.train import fit, top1_pct
from suite.trainer import History, Trainer

EVAL_BATCH = 250
BASE, LEARNED, FINETUNE, SAMPLES = range(4)
"""Uses of a run's seed. The batches follow from seed and use, so methods are paired by seed."""

S = TypeVar("S", bound=Stage, covariant=True)
Run = TypeVar("Run", Learned, Pruned)


@dataclass(frozen=True)
class Workspace(Generic[S]):
    """A stage with its folder, data set, networks, batches and row.

    stage    the stage to run
    context  folders and device
    watch    progress report and stop requests
    """

    stage: S
    context: Context
    watch: Watch = field(default_factory=Watch)

    @property
    def folder(self) -> Path:
        """The stage's folder."""
        return self.context.folder(self.stage)

    @property
    def base(self) -> Base:
        """The base stage of the run."""
        stage: Stage = self.stage
        return stage.base

    @property
    def dataset(self) -> datasets.Dataset:
        """The data set, with the normalisation that the base weights were trained with."""
        return self.context.dataset(self.base)

    def batches(self, schedule: Schedule, use: int) -> datasets.Loader:
        """Return this task's share of each training batch, for one use of the stage's seed.

        Raises ValueError if the tasks cannot share a batch evenly.
        """
        batches = self._epochs(schedule, use, distributed.share())
        images, tasks = batches.images_per_epoch // len(batches), distributed.tasks()
        if images % tasks:
            raise ValueError(
                f"a batch of {images} images cannot be shared evenly by {tasks} tasks; take a number that divides it"
            )
        return batches

    def _epochs(self, schedule: Schedule, use: int, share: slice) -> datasets.Loader:
        """Return the images `share` of each training batch."""
        stage: Stage = self.stage
        assert not isinstance(stage, Timed), "a timed stage trains nothing"
        return self.dataset.train(
            self.base.split,
            batch=schedule.batch,
            seed=4 * stage.seed + use,
            device=self.context.device,
            limit=schedule.epoch_images,
            share=share,
        )

    def fit(self, trainer: Trainer, name: str, *, seed: int, doing: str) -> History:
        """Train to the end, with the checkpoint `name` in the stage's folder; see `suite.train.fit`."""
        return fit(trainer, self.folder / name, self.watch, seed=seed, doing=doing, skipped=self.dataset.skipped)

    def held_out_top1_pct(self, model: nn.Module) -> float:
        """Return the accuracy on the held-out images.

        These are the test set; in a tuning run the validation part, and no test image is read.
        """
        return self._top1_pct(model, on_test=self.base.split != "tuning")

    def judge(self, schedule: Schedule, model: nn.Module) -> Callable[[], float] | None:
        """Return the accuracy function that picks the epoch to keep.

        Return None if the schedule keeps the last epoch.
        """
        if schedule.keep == "last":
            return None
        return lambda: self._top1_pct(model, on_test=schedule.keep == "best_test")

    def _top1_pct(self, model: nn.Module, *, on_test: bool) -> float:
        read = self.dataset.test if on_test else self.dataset.validation
        return top1_pct(model, read(EVAL_BATCH, self.context.device, distributed.share()))

    def model(self, file: Literal["init", "final"], device: str | None = None) -> nn.Module:
        """Return the base network with its initial or final weights.

        device  default: the context's
        """
        model = models.build(self.base.model, self.dataset.classes)
        model.load_state_dict(load_file(self.context.folder(self.base) / f"{file}.safetensors"))
        return model.to(device or self.context.device)

    def save_weights(self, model: nn.Module, name: str) -> None:
        """Write the model's state to the file `name` (safetensors), atomically.

        A no-op on all ranks but 0.
        """
        if distributed.is_first():
            self.watch.check_holder()
            state = {key: tensor.contiguous().cpu() for key, tensor in model.state_dict().items()}
            write_bytes(self.folder / name, serialise(state))

    def save_history(self, history: History) -> None:
        """Write the training log, one line per epoch. A no-op on all ranks but 0."""
        if distributed.is_first():
            self.watch.check_holder()
            write_text(self.folder / "history.jsonl", "".join(json.dumps(entry) + "\n" for entry in history))

    def task(self: Workspace[Run]) -> Task:
        """Return the data, seed, budget and reference plan that the stage's method may use."""
        stage = self.stage
        schedule = stage.schedule

        def train_epoch(epoch: int) -> Iterator[Batch]:
            return self._epochs(schedule, SAMPLES, slice(None)).epoch(epoch)

        def samples(n: int) -> Batch:
            split = self.base.split
            return self.dataset.samples(min(n, self.dataset.train_size(split)), split=split, device=self.context.device)

        reference = stage.reference if isinstance(stage, Pruned) else None
        plan = None if reference is None else packing.plan_of(self.context.folder(reference) / "packed.safetensors")
        return Task(
            train_epoch=train_epoch,
            samples=samples,
            seed=stage.seed,
            budget=stage.budget,
            reference=plan,
            rates=lambda: schedule.rates(len(self._epochs(schedule, SAMPLES, slice(None)))),
        )

    def add_layer_times(self: Workspace[Run], model: nn.Module, graph: Graph) -> None:
        """Add the layer times of a latency budget to the graph.

        A no-op for a budget of MACs.
        Raises ValueError if the device of the budget is missing, or if the stored table is of another device.
        """
        budget = self.stage.budget
        if budget is not None and budget.timing is not None:
            self.watch.report("timing layers", share=0.0)
            with distributed.rank_0_first():
                folder = self.context.results / latency_budget.FOLDER
                graph.times = latency_budget.table_for(model, graph, budget.timing, folder)

    def row(self, status: records.Status, **columns: Any) -> records.Row:
        """Return the row of a pruned or timed stage: identity, provenance and the measured `columns`."""
        stage: Stage = self.stage
        assert isinstance(stage, Pruned | Timed), "no other stage has a row"
        pruned = stage if isinstance(stage, Pruned) else stage.pruned
        base, settings = stage.base, pruned.settings
        about: dict[str, Any] = {
            "key": stage.key,
            "label": stage.label,
            "status": status,
            "stage": identity(stage),
            "data": base.data,
            "model": base.model,
            "method": pruned.method,
            "settings": pruned.described,
            "granularity": settings.granularity,
            "groups": settings.groups,
            "budget": pruned.budget.share,
            "budget_scope": pruned.budget.scope,
            "seed": pruned.seed,
            "split": base.split,
            "smoke": pruned.smoke,
            "provenance": self._provenance(pruned),
        }
        if isinstance(stage, Timed):
            names = ("device", "batch", "precision", "layout", "protocol")
            timing = {name: getattr(stage.timing, name) for name in names}
            measured = {**about, "pruned_key": pruned.key, **timing, **columns}
            if isinstance(stage, TimedSteps):
                return records.StepsRow(**{"training": stage.training, "together": stage.together, **measured})
            return records.TimedRow(**measured)
        epochs = {
            "base_epochs": 0 if settings.start == "init" else base.schedule.epochs if base.schedule else None,
            "learning_epochs": pruned.learned.schedule.epochs if pruned.learned else 0,
            "finetune_epochs": pruned.finetune.epochs,
        }
        return records.PrunedRow(**{**about, "selection": _selection(pruned), **epochs, **columns})

    def _provenance(self, run: Pruned) -> dict[str, Any]:
        stage: Stage = self.stage
        device = stage.timing.device if isinstance(stage, Timed) else self.context.device
        provenance = records.provenance(device, code.modules(run))
        provenance["code"] = code.short(run)
        if distributed.tasks() > 1:
            provenance["tasks"] = distributed.tasks()
        provenance["finished"] = time.strftime("%FT%TZ", time.gmtime())
        if is_done(self.base, self.context):
            result = base_result(self.base, self.context)
            provenance |= {"data_sha256": result["data_sha256"], "base_sha256": result["base_sha256"]}
        if stage is run and run.learned and is_done(run.learned, self.context):
            learned_on = records.kind_of_device(result_of(run.learned, self.context).get("provenance", {}))
            if learned_on not in ("", records.kind_of_device(provenance)):
                provenance["learned_device"] = learned_on
        return provenance

    def skipped(self) -> list[str]:
        """Return the names of images that all tasks skipped in this stage and its needs."""
        needed = (skipped_by(stage, self.context) for stage in self.stage.needs)
        return sorted(distributed.union(self.dataset.skipped).union(*needed))

    def finish(
        self, files: Iterable[str], result: Mapping[str, Any] | None = None, row: records.Row | None = None
    ) -> None:
        """Write the row, then `done.json`; delete files for continuation.

        A no-op on all ranks but 0.
        files   the stage's output, in its folder
        result  numbers that later stages read
        """
        if not distributed.is_first():
            return
        self.watch.check_holder()
        if row is not None:
            records.write(row, self.context.results)
        folder = self.folder
        sizes = {name: {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)} for name in files}
        about = {"stage": identity(self.stage), "label": self.stage.label, "files": sizes, "result": dict(result or {})}
        about["code"] = code.fingerprint(self.stage)
        write_json(folder / "done.json", {**about, "row": records.to_dict(row) if row else None})
        self.clear()

    def clear(self) -> None:
        """Delete what a finished stage no longer needs: files for continuation, and status files."""
        names = ("train*.pt", "plan*.safetensors", "*.part", "failed.json", "failures.json", "progress.json")
        for leftover in itertools.chain.from_iterable(map(self.folder.glob, names)):
            leftover.unlink(missing_ok=True)


def _selection(run: Pruned) -> str:
    """Return the selection of the kept epochs: "last" or a kind of "best".

    The result is "best_test" if any stage of the run selected on the test set.
    """
    schedules = (run.base.schedule, run.learned.schedule if run.learned else None, run.finetune)
    kept = {schedule.keep for schedule in schedules if schedule}
    return next((keep for keep in ("best_test", "best_validation") if keep in kept), "last")
