"""Methods at equal measured time beside equal MACs, on a GPU.

Networks are ResNet-20 and -56 on CIFAR-10 and ResNet-50 on ImageNet. Each method has two budgets of time and two of MACs. `ms`
variants rank by importance per predicted millisecond. CIFAR-10 has a base network for each seed; ImageNet has one public base
network, so n counts fine-tunings there. Schedules on CIFAR-10 are those of `cifar10_fair`.
"""

from __future__ import annotations

from typing import Any

from suite.contract import Budget
from suite.grids import Grid, _released, cross, dense_control, paper_table2
from suite.grids.cifar10_fair import FINETUNE, LEARN, LEARNED, TOTAL, TRAIN_IMAGES
from suite.stages import Base, Pruned, Timing

SEEDS = (0, 1, 2, 3, 4)
SHARES = (0.2, 0.4)
"""Of the time."""
MACS = (0.5, 0.7)
TIMING = Timing(device="cuda", batch=128, precision="fp16", layout="channels_last", protocol="quick")
STEP = 8
"""Filters that go at once in `ms` variants: the channels of a memory access in half precision."""


def budgets(shares: tuple[float, ...], macs: tuple[float, ...], timing: Timing) -> list[Budget]:
    """Return budgets of time and of MACs."""
    timed = [Budget(share=share, scope="latency", timing=timing) for share in shares]
    return timed + [Budget(share=share, refill=True) for share in macs]


def variants(learned: dict[str, Any], step: int) -> list[tuple[str, dict[str, Any]]]:
    """Return methods with settings; `ms` variants have budgets of time only.

    learned   settings of DSP's learning
    """
    per_ms: dict[str, Any] = {"per": "ms", "step": step}
    return [
        ("dsp", learned),
        ("dsp", {**learned, **per_ms}),
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
        learned = {**LEARNED, "dose": _released.DOSES[model]}
        planned += block(bases, learned, schedules, penalty_images=TRAIN_IMAGES)
    bases = [Base(data="imagenet", model="resnet50", schedule=None, weights="imagenet_resnet50", seed=0)]
    schedules = {"finetune": paper_table2.FINETUNE, "learning": paper_table2.LEARN, "total": paper_table2.TOTAL}
    learned = {"dose": paper_table2.DOSE}
    return planned + block(bases, learned, {**schedules, "seeds": SEEDS}, scratch=paper_table2.SCRATCH)


def block(bases: list[Base], learned: dict[str, Any], schedules: dict[str, Any], **more: Any) -> list[Pruned]:
    """Return the dense control and all methods; `more` is for methods that learn."""
    planned = dense_control(bases=bases, **schedules)
    for method, changes in variants(learned, STEP):
        own = budgets(SHARES, () if "per" in changes else MACS, TIMING)
        planned += cross(bases=bases, method=method, budgets=own, **schedules, **more, **changes)
    return planned


GRID = Grid(title="Equal time beside equal MACs", about=__doc__ or "", runs=runs, timings=(TIMING,), family="dsp")
