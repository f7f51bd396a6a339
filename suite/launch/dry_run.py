"""Dry run: the stages that a launch would do, and their cost."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from rich.console import Console

from suite import cli, models
from suite.graph import Graph
from suite.launch.picture import minutes
from suite.launch.status import TIMED_S
from suite.launch.work import Work, missing_data
from suite.run import Context, failure
from suite.stages import Base, Learned, Stage, Timed

WARM_STEPS, TIMED_STEPS = 3, 4


def show(work: Work, context: Context, console: Console, *, jobs: int, fetch: str) -> int:
    """Print stages, counts and cost; return 2 if data are missing, else 0.

    Nothing is downloaded or written.

    fetch  the command that downloads missing data
    """
    keys = {stage.key for stage in work.todo}
    for stage in work.stages:
        failed = failure(stage, context) if stage.key in keys else None
        state = (
            work.left_alone.get(stage.key) or work.again.get(stage.key) or ("to do" if stage.key in keys else "done")
        )
        if failed:
            state = f"{failed['status']} before: {failed['reason']}"
        console.print(f"{stage.key:22} {stage.label}  [{state}]", markup=False, highlight=False)
    kinds = Counter(stage.kind for stage in work.todo)
    alone = f", {len(work.left_alone)} left alone" if work.left_alone else ""
    console.print(
        f"\n{len(work.stages)} stages, {work.done} done, {len(work.todo)} to do "
        f"({', '.join(f'{n} {kind}' for kind, n in kinds.items()) or 'none'}){alone}",
        highlight=False,
    )
    if missing := missing_data(work.todo, context):
        for message in missing:
            console.print(f"missing: {message}", markup=False, highlight=False)
        console.print(f"cost: not known without it; to fetch: {fetch}", markup=False)
        return 2
    cost = estimate(work.todo, context)
    console.print(
        f"cost: {cost.training_macs / 1e15:.3g} PetaMACs of training, about {minutes(cost.seconds)} on this {context.device} one "
        f"after the other, were every network as slow as its dense one ({jobs} at a time)",
        highlight=False,
    )
    return 0


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Training MACs and seconds of stages, one after the other.

    A training step has three times the MACs of a dense forward pass.
    """

    training_macs: float
    seconds: float


def estimate(stages: Iterable[Stage], context: Context) -> Cost:
    """Estimate the cost; each dense model is timed for a moment.

    A packed network is taken to cost as much as its dense one.
    """
    torch.set_num_threads(context.threads or cli.cores())
    speeds: dict[tuple[str, str], tuple[int, float]] = {}
    macs = seconds = 0.0
    for stage in stages:
        if isinstance(stage, Timed):
            seconds += TIMED_S[stage.timing.protocol]
            continue
        base = stage if isinstance(stage, Base) else stage.base
        schedule = stage.schedule if isinstance(stage, Base | Learned) else stage.finetune
        if schedule is None:
            continue
        name = base.data, base.model
        if name not in speeds:
            speeds[name] = _speed(base, context)
        images = min(context.dataset(base).train_size(base.split), schedule.epoch_images or 10**9) * schedule.epochs
        factor = stage.settings.step_cost if isinstance(stage, Learned) else 1.0
        macs += 3 * speeds[name][0] * images * factor
        seconds += speeds[name][1] * images * factor
    return Cost(training_macs=macs, seconds=seconds)


def _speed(base: Base, context: Context) -> tuple[int, float]:
    """Return forward MACs of an image, and seconds of a training step for an image."""
    data = context.dataset(base)
    device = context.device if torch.cuda.is_available() else "cpu"
    model = models.build(base.model, data.classes).to(device).train()
    batch = 64 if data.input_shape[1] <= 64 else 4
    images = torch.randn(batch, *data.input_shape, device=device)
    labels = torch.zeros(batch, dtype=torch.int64, device=device)
    times = []
    for _ in range(WARM_STEPS + TIMED_STEPS):
        began = time.perf_counter()
        F.cross_entropy(model(images), labels).backward()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return Graph(model, data.input_shape).dense_macs.total, min(times[WARM_STEPS:]) / batch
