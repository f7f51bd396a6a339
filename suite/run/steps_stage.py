"""The stage that measures training steps: one run alone, several together, and the dense network's."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from suite import pack as packing
from suite import records
from suite.contract import Batch, Learner, Task
from suite.graph import Graph
from suite.measure import mps, steps
from suite.measure.latency import median_interval
from suite.measure.protocol import set_up_torch
from suite.run.context import Context
from suite.run.workspace import Workspace
from suite.schedule import Compute, Schedule
from suite.stages import TimedSteps
from suite.trainer import CapturedTrainer, Trainer, make_trainer

EPOCHS = 1000
"""Of the schedule, so that no measurement reaches its end."""


def do_timed_steps(work: Workspace[TimedSteps]) -> None:
    """Measure steps of the stage's training, and write the row.

    Raises ValueError if the device is missing, or if a process of the runs together ends.
    """
    stage, device, watch = work.stage, work.stage.timing.device, work.watch
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "training steps on cuda are to be measured, and torch finds no CUDA device here; run it where there is one"
        )
    watch.report("timing", share=0.0)
    threads = torch.get_num_threads()
    set_up_torch(threads)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    base, alone = _run(work, 0, base=True), _run(work, 0)
    advances = {"base": steps.together([base], device), "alone": steps.together([alone], device)}
    if stage.training == "base":
        del advances["base"]
    how: records.How | None = None
    served: bool | None = None
    with contextlib.ExitStack() as stack:
        if stage.processes:
            how, environment = "processes", stack.enter_context(mps.served(device))
            make = functools.partial(_member, stage, work.context)
            crew = steps.Crew(make, stage.together, max(1, threads // stage.together), environment)
            advances["together"] = stack.enter_context(crew)
            served = bool(environment)
        elif stage.together > 1:
            runs = [_run(work, index) for index in range(stage.together)]
            how = "graph" if all(isinstance(trainer, CapturedTrainer) for trainer, _ in runs) else "turns"
            advances["together"] = steps.together(runs, device)
        seconds = steps.alternate(
            advances, device, stage.timing.protocol, lambda share: watch.report("timing", share=share)
        )
    columns: dict[str, Any] = {
        "device": records.device_name(device),
        "how": how,
        "mps": served,
        "captured": isinstance(alone[0], CapturedTrainer),
        "loader": _loads(work),
        "threads": threads,
        "macs_x": _macs_x(work),
        "peak_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else None,
    }
    row = work.row("done", **columns, **_columns(stage, seconds))
    work.finish((), row=row)


def _columns(stage: TimedSteps, seconds: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return the measured columns of a `StepsRow`."""
    milliseconds = {name: 1e3 * float(np.median(values)) for name, values in seconds.items()}
    base_s = seconds.get("base", seconds["alone"])
    rate = stage.together * 1e3 / milliseconds.get("together", milliseconds["alone"])
    together = (
        median_interval(stage.together * seconds["alone"] / seconds["together"])
        if "together" in seconds
        else (None,) * 3
    )
    return {
        "blocks": len(base_s),
        "base_ms": 1e3 * float(np.median(base_s)),
        "alone_ms": milliseconds["alone"],
        "together_ms": milliseconds.get("together"),
        "steps_per_s": rate,
        "images_per_s": rate * stage.timing.batch,
        **dict(zip(("together_x", "together_low_x", "together_high_x"), together, strict=True)),
        **dict(
            zip(
                ("of_base_x", "of_base_low_x", "of_base_high_x"),
                median_interval(seconds["alone"] / base_s),
                strict=True,
            )
        ),
    }


def _member(stage: TimedSteps, context: Context, index: int) -> steps.Advance:
    """Return the steps of one process of the runs together."""
    return steps.together([_run(Workspace(stage, context), index)], stage.timing.device)


def _run(work: Workspace[TimedSteps], index: int, *, base: bool = False) -> steps.Run:
    """Return the trainer of one run and its batches.

    base   plain steps on the dense network
    """
    stage, timing = work.stage, work.stage.timing
    torch.manual_seed(index)
    training = "base" if base else stage.training
    learner: Learner | None = None
    model: nn.Module
    if training == "finetune":
        model = packing.load(work.context.folder(stage.pruned) / "packed.safetensors", timing.device)
    else:
        model = work.model("final", timing.device)
    if training == "learning":
        graph = Graph(model, work.dataset.input_shape)
        learner = stage.pruned.settings.learner(model, graph, _task(work, index))
    compute = Compute(precision=timing.precision, layout=timing.layout)
    schedule = Schedule(epochs=EPOCHS, lr=0.01, weight_decay=5e-4, batch=timing.batch, compute=compute)
    batches = work.dataset.train(work.base.split, batch=timing.batch, seed=index, device=timing.device)
    trainer = make_trainer(model.train(), batches, schedule, learner=learner)
    return trainer, _endless(work, trainer)


def _task(work: Workspace[TimedSteps], index: int) -> Task:
    batch = _random_batch(work)
    budget = work.stage.pruned.budget
    return Task(train_epoch=lambda epoch: iter([batch]), samples=lambda n: batch, seed=index, budget=budget)


def _loads(work: Workspace[TimedSteps]) -> bool:
    """Return True if the data set has a batch of training images."""
    return work.dataset.train_size(work.base.split) >= work.stage.timing.batch


def _endless(work: Workspace[TimedSteps], trainer: Trainer) -> Iterator[Batch]:
    """Yield the training batches of epoch after epoch.

    If the data set has less than a batch, one random batch is repeated.
    """
    if not _loads(work):
        yield from itertools.repeat(_random_batch(work))
    for epoch in itertools.count():
        yield from trainer.batches.epoch(epoch)


def _random_batch(work: Workspace[TimedSteps]) -> Batch:
    timing, dataset = work.stage.timing, work.dataset
    images = torch.randn(timing.batch, *dataset.input_shape, device=timing.device)
    return images, torch.randint(dataset.classes, (timing.batch,), device=timing.device)


def _macs_x(work: Workspace[TimedSteps]) -> float:
    """Return the MACs of the trained network as a share of the dense network's."""
    if work.stage.training != "finetune":
        return 1.0
    graph = Graph(work.model("final", "cpu"), work.dataset.input_shape)
    plan = packing.plan_of(work.context.folder(work.stage.pruned) / "packed.safetensors")
    return graph.macs(plan).total / graph.dense_macs.total
