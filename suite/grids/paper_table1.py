"""The DSP paper's CIFAR-10 comparison: ResNet-20, ResNet-56, VGG-16.

The paper's own table numbers could not be checked; the name follows the usual order of tables. Budgets are the cuts that
the authors publish beside their code (61.23 / 62.43 / 63.57 % and 63.26 / 64.14 / 65.11 % of the prunable convolutions),
as shares of the whole network. They released no VGG; its budgets are ours.
"""

from __future__ import annotations

from typing import Any

from suite.grids import Grid, _released, cross, dense_control
from suite.stages import Base, Pruned, Timing

SEEDS = (0, 1, 2, 3, 4)
CUTS: dict[str, dict[int, tuple[float, ...]]] = {
    "resnet20": {2: (0.6017,), 3: (0.6135,), 4: (0.6247,)},
    "resnet56": {2: (0.6290,), 3: (0.6378,), 4: (0.6474,)},
    "vgg16": {2: (0.50, 0.65, 0.80), 3: (0.50, 0.65, 0.80), 4: (0.50, 0.65, 0.80)},
}
"""Model -> number of groups -> budgets."""
TOTAL = _released.FINETUNE.epochs + 2.1 * _released.LEARN.epochs
"""Plain-step equivalents of DSP's learning and fine-tuning, which every method gets."""
VGG_DOSE = _released.DOSES["resnet56"]
"""The lambda that the authors' advice gives for a VGG-16 has a dose of 0.3, at which no channel becomes small (`dsp.dose`)."""
RIVALS = ("l1_filter", "fpgm", "random_filter", "slimming")


def runs() -> list[Pruned]:
    """Return DSP with 2 to 4 groups at released cuts, and rivals at each."""
    planned: list[Pruned] = []
    for model, cuts in CUTS.items():
        bases = [Base(data="cifar10", model=model, schedule=_released.BASE, seed=seed) for seed in SEEDS]
        dose: dict[str, Any] = {"dose": VGG_DOSE} if model == "vgg16" else {}
        for groups, budgets in cuts.items():
            planned += cross(
                bases=bases,
                method="dsp",
                groups=groups,
                budgets=budgets,
                finetune=_released.FINETUNE,
                learning=_released.LEARN,
                **dose,
            )
        shared: dict[str, Any] = {
            "bases": bases,
            "finetune": _released.FINETUNE,
            "learning": _released.LEARN,
            "total": TOTAL,
        }
        planned += dense_control(**shared)
        every = sorted({budget for budgets in cuts.values() for budget in budgets})
        for rival in RIVALS:
            planned += cross(method=rival, budgets=every, **shared)
    return planned


GRID = Grid(
    title="DSP on CIFAR-10 at the released cuts",
    about=(__doc__ or "")
    + " Schedules are the released ones; methods that learn less than DSP fine-tune longer. Accuracies are of the last epoch.",
    runs=runs,
    timings=tuple(Timing(device="cuda", batch=batch) for batch in (1, 32, 128)),
    family="dsp",
)
