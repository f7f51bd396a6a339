"""Dose of DSP's penalty at 1, 10, 30 and 100 times the recipe's lambda.

VGG-16 on CIFAR-10 and ResNet-18 on `tinyimagenet20`. At the recipes' lambdas the dose of these networks is well below 1, so
that no channel becomes small. If groups are learned hardly depends on the dose, but on steps times rate of the group logits.
The dose stands in every row of DSP. Accuracies are on the validation part, which no network is trained on.
"""

from __future__ import annotations

from suite.grids import Grid, _released
from suite.grids._dose import scan
from suite.grids.cifar10_fair import FINETUNE, LEARN
from suite.stages import Pruned


def runs() -> list[Pruned]:
    """Return DSP at each factor, and the dense control, on both networks."""
    return scan(base=_released.BASE, learning=LEARN, finetune=FINETUNE, seeds=(0, 1, 2), budgets=(0.5, 0.65))


GRID = Grid(title="Dose of DSP's penalty", about=__doc__ or "", runs=runs, timings=())
