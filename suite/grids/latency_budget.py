"""Methods at equal measured time beside equal MACs, on a GPU.

Networks are ResNet-20 and -56 on CIFAR-10 and ResNet-50 on ImageNet. Each method has two budgets of time and two of MACs. `ms`
variants rank by importance per predicted millisecond. CIFAR-10 has a base network for each seed; ImageNet has one public base
network, so n counts fine-tunings there. Schedules are ours.
"""

from __future__ import annotations

from typing import Any

from suite.contract import Budget
from suite.grids import Grid, _released, cross, dense_control, paper_table2
from suite.schedule import Schedule
from suite.stages import Base, Pruned, Timing

SEEDS = (0, 1, 2, 3, 4)
SHARES = (0.2, 0.4)
"""Of the time."""
MACS = (0.5, 0.7)
TIMING = Timing(device="cuda", batch=128, precision="fp16", layout="channels_last", protocol="quick")
LEARN = Schedule(epochs=60, lr=0.05, weight_decay=5e-4)
FINETUNE = Schedule(epochs=120, lr=0.05, weight_decay=5e-4)
TOTAL = FINETUNE.epochs + 2.1 * LEARN.epochs
"""Plain-step equivalents of DSP's learning and fine-tuning, which every method gets."""
TRAIN_IMAGES = 50_000
STEP = 8
"""Filters that go at once in `ms` variants: the channels of a memory access in half precision."""


def budgets(shares: tuple[float, ...], macs: tuple[float, ...], timing: Timing) -> list[Budget]:
    """Return budgets of time and of MACs."""
    timed = [Budget(share=share, scope="latency", timing=timing) for share in shares]
    return timed + [Budget(share=share, refill=True) for share in macs]


def variants(dose: float, step: int) -> list[tuple[str, dict[str, Any]]]:
    """Return methods with settings; `ms` variants have budgets of time only."""
    per_ms: dict[str, Any] = {"per": "ms", "step": step}
    return [
        ("dsp", {"dose": dose}),
        ("dsp", {"dose": dose, **per_ms}),
        ("l1_filter", {}),
        ("l1_filter", {"ranking": "global", **per_ms}),
        ("fpgm", {}),
        ("slimming", {}),
        ("halp", {"step": step}),
        ("uniform_width", {}),
    ]


def runs() -> list[Pruned]:
    """Return all methods on the three networks, and the dense controls."""
    planned: list[Pruned] = []
    for model in ("resnet20", "resnet56"):
        bases = [Base(data="cifar10", model=model, schedule=_released.BASE, seed=seed) for seed in SEEDS]
        schedules: dict[str, Any] = {"finetune": FINETUNE, "learning": LEARN, "total": TOTAL}
        planned += block(bases, _released.DOSES[model], schedules, penalty_images=TRAIN_IMAGES)
    bases = [Base(data="imagenet", model="resnet50", schedule=None, weights="imagenet_resnet50", seed=0)]
    schedules = {"finetune": paper_table2.FINETUNE, "learning": paper_table2.LEARN, "total": paper_table2.TOTAL}
    return planned + block(bases, paper_table2.DOSE, {**schedules, "seeds": SEEDS}, scratch=paper_table2.SCRATCH)


def block(bases: list[Base], dose: float, schedules: dict[str, Any], **more: Any) -> list[Pruned]:
    """Return the dense control and all methods; `more` is for methods that learn."""
    planned = dense_control(bases=bases, **schedules)
    for method, changes in variants(dose, STEP):
        own = budgets(SHARES, () if "per" in changes else MACS, TIMING)
        planned += cross(bases=bases, method=method, budgets=own, **schedules, **more, **changes)
    return planned


GRID = Grid(title="Equal time beside equal MACs", about=__doc__ or "", runs=runs, timings=(TIMING,), family="dsp")
