"""The rivals by what they need, for the grids that compare all of them."""

from __future__ import annotations

CRITERIA = (
    "l1_filter",
    "l2_filter",
    "fpgm",
    "taylor",
    "hrank",
    "similarity",
    "centrality",
)
"""One score per filter of the base network."""
CONTROLS = ("random_filter", "uniform_width")
"""What every criterion has to beat."""
RECONSTRUCTING = ("lasso_channels", "thinet", "leanflex_gkp")
"""They need no training either, but choose channels or kernels, or change the weights that they leave."""
LEARNING = ("slimming", "ssl", "sfp", "greg", "depgraph", "group_sparse")
"""They train on from the base network before they prune."""
FROM_SCRATCH = ("lapp",)
"""They prune while they train from the initial weights."""
