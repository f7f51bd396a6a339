"""What a grid will cost: training MACs, and hours at the speed that this machine shows on the models concerned."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from suite import models
from suite.graph import Graph
from suite.run import Context, cores
from suite.stages import Base, Learned, Stage, Timed

WARM_STEPS, TIMED_STEPS = 3, 4
TIMED_S = {"quick": 2.0, "full": 60.0}


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Dense training MACs (three times those of a forward pass) and seconds, one stage after the other."""

    training_macs: float
    seconds: float


def estimate(stages: Iterable[Stage], context: Context) -> Cost:
    """An estimate: each model is timed for a moment; a packed network is taken to cost what the dense one does."""
    torch.set_num_threads(context.threads or cores())
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
    """Forward MACs of an image, and seconds of a training step for an image."""
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
