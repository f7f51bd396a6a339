"""The DSP paper's ImageNet comparison: ResNet-18 and ResNet-50.

The paper's own table numbers could not be checked; the name follows the usual order of tables. Budgets are the cuts that the
authors publish beside their code, of the prunable convolutions as they count, and 71.85 % (ResNet-50, from the abstract,
whose scope is not stated; the whole network is assumed). The ImageNet schedule was never released; ours is below. There is one
base network for each model: n counts learnings and fine-tunings of one base, so no claim covers other bases.
"""

from __future__ import annotations

from typing import Any

from suite.contract import Budget
from suite.grids import Grid, cross, dense_control
from suite.schedule import Schedule
from suite.stages import Base, Pruned, Timing

SEEDS = (0, 1, 2, 3, 4)
CUTS = {
    "resnet18": tuple(Budget(share=share, scope="prunable", refill=True) for share in (0.6008, 0.7005, 0.8000)),
    "resnet50": (
        *(Budget(share=share, scope="prunable", refill=True) for share in (0.7000, 0.8003, 0.9002)),
        Budget(share=0.7185, scope="network", refill=True),
    ),
}
LEARN = Schedule(epochs=30, lr=0.01, weight_decay=1e-4, batch=256)
SCRATCH = Schedule(epochs=90, lr=0.1, weight_decay=1e-4, batch=256, shape="steps")
FINETUNE = Schedule(epochs=90, lr=0.01, weight_decay=1e-4, batch=256)


def runs() -> list[Pruned]:
    """DSP with two groups at its released cuts, the rivals at each of them."""
    bases = {
        model: [Base(data="imagenet", model=model, schedule=None, weights=f"imagenet_{model}", seed=0)]
        for model in CUTS
    }
    schedules: dict[str, Any] = {"finetune": FINETUNE, "learning": LEARN, "seeds": SEEDS}
    return [
        run
        for model, budgets in CUTS.items()
        for run in (
            *dense_control(bases=bases[model], **schedules),
            *(
                run
                for method in ("dsp", "l1_filter", "fpgm", "random_filter", "slimming")
                for run in cross(bases=bases[model], method=method, budgets=budgets, scratch=SCRATCH, **schedules)
            ),
        )
    ]


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
    family="dsp",
)
