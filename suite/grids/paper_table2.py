"""The DSP paper's ImageNet comparison: ResNet-18 and ResNet-50.

The paper's own table numbers could not be checked; the name follows the usual order of tables. Budgets are the cuts that the
authors publish beside their code, of the prunable convolutions as they count, and 71.85 % (ResNet-50, from the abstract,
whose scope is not stated; the whole network is assumed). The ImageNet schedule was never released; ours is below. There is one
base network for each model: n counts learnings and fine-tunings of one base, so no claim covers other bases and no comparison
is declared.

Rivals of which ResNet-50 rows are published run at the cut of the abstract. Steps are in bf16, channels_last,
which needs a GPU of 2020 or later.
"""

from __future__ import annotations

from typing import Any

from suite.contract import Budget
from suite.grids import Grid, cross, dense_control
from suite.schedule import Compute, Schedule
from suite.stages import Base, Pruned, Timing

SEEDS = (0, 1, 2, 3, 4)
CUTS = {
    "resnet18": tuple(Budget(share=share, scope="prunable", refill=True) for share in (0.6008, 0.7005, 0.8000)),
    "resnet50": (
        *(Budget(share=share, scope="prunable", refill=True) for share in (0.7000, 0.8003, 0.9002)),
        Budget(share=0.7185, scope="network", refill=True),
    ),
}
BF16 = Compute(precision="bf16", layout="channels_last")
LEARN = Schedule(epochs=30, lr=0.01, weight_decay=1e-4, batch=256, compute=BF16)
"""Rate and decay of FINETUNE; the number of epochs is ours."""
SCRATCH = Schedule(epochs=90, lr=0.1, weight_decay=1e-4, batch=256, shape="steps", compute=BF16)
"""Epochs, rate, decay and batch of He et al. 2016 as in torchvision's recipe of the public weights; the rate falls at 1/2 and 3/4
instead of 1/3 and 2/3."""
FINETUNE = Schedule(epochs=90, lr=0.01, weight_decay=1e-4, batch=256, compute=BF16)
"""Wang et al., arXiv 2301.05219: 90 epochs at 0.01, decay 1e-4, batch 256; the cosine is ours."""
TOTAL = FINETUNE.epochs + 2.1 * LEARN.epochs
"""Plain-step equivalents of DSP's learning and fine-tuning, which every method gets."""
DOSE = 2.0
"""DSP's dose, that of the released ResNet-56. The lambda that the authors' advice gives has a dose below 0.1 on this schedule, at
which no channel becomes small (`dsp.dose`)."""
METHODS = ("dsp", "l1_filter", "fpgm", "random_filter", "slimming")
"""At every cut."""
PUBLISHED = ("greg", "depgraph", "taylor", "thinet_one_pass", "chip", "resrep", "hrank", "eagle_eye")
"""At the cut of the abstract."""


def runs() -> list[Pruned]:
    """Return DSP and its rivals at the released cuts, further rivals at one cut."""
    schedules: dict[str, Any] = {"finetune": FINETUNE, "learning": LEARN, "scratch": SCRATCH, "total": TOTAL}
    planned: list[Pruned] = []
    for model, budgets in CUTS.items():
        bases = [Base(data="imagenet", model=model, schedule=None, weights=f"imagenet_{model}", seed=0)]
        planned += dense_control(bases=bases, finetune=FINETUNE, learning=LEARN, total=TOTAL, seeds=SEEDS)
        for method in METHODS:
            changes: dict[str, Any] = {"dose": DOSE} if method == "dsp" else {}
            planned += cross(bases=bases, method=method, budgets=budgets, seeds=SEEDS, **schedules, **changes)
        if model == "resnet50":
            for method in PUBLISHED:
                planned += cross(bases=bases, method=method, budgets=budgets[-1:], seeds=SEEDS, **schedules)
    return planned


GRID = Grid(
    title="DSP on ImageNet at the released cuts",
    about=__doc__ or "",
    runs=runs,
    timings=tuple(
        timing
        for batch in (1, 32, 128)
        for timing in (
            Timing(device="cuda", batch=batch),
            Timing(device="cuda", batch=batch, precision="fp16", layout="channels_last"),
        )
    ),
)
