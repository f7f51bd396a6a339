"""The second-order and the grouping ablation in minutes, on the embedded data.

Schedules are ours and short; small batches give the groups a thousand steps to move.
"""

from __future__ import annotations

from suite.grids._ablation import ablation
from suite.schedule import Schedule

BASE = Schedule(epochs=6, lr=0.1, weight_decay=5e-4, batch=64)
LEARN = Schedule(epochs=12, lr=0.025, weight_decay=5e-4, batch=16)
FINETUNE = Schedule(epochs=2, lr=0.05, weight_decay=5e-4, batch=64)
LAM = 7.3e-3
"""The authors' lambda for ResNet-20, scaled to this network's weights; under a smaller one the groups move less."""

GRID = ablation(
    title="DSP's second-order term and grouping on digits",
    about=__doc__ or "",
    changes=lambda data, model: [
        *({"second_order": mode, "lam": LAM} for mode in ("exact", "released", "none")),
        *({"grouping": grouping, "lam": LAM} for grouping in ("random", "kmeans")),
    ],
    data="digits",
    models=("resnet8",),
    budgets=(0.5,),
    schedules=(BASE, LEARN, FINETUNE),
)
