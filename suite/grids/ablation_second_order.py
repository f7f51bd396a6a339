"""Second-order term of DSP: exact, as in the released code, or none.

"none" needs no second forward and backward pass.
"""

from __future__ import annotations

from suite.grids._ablation import ablation

GRID = ablation(
    title="DSP's second-order term on CIFAR-10",
    about=__doc__ or "",
    changes=lambda data, model: [{"second_order": mode} for mode in ("exact", "released", "none")],
    models=("resnet20", "resnet56"),
)
