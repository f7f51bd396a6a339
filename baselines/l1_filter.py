"""L1 norm of filters (Pruning Filters for Efficient ConvNets)."""

from __future__ import annotations

from dataclasses import dataclass

from baselines._norms import NormFilter
from suite.contract import Scope


@dataclass(frozen=True, kw_only=True)
class L1Filter(NormFilter):
    """Removes the same share of each layer, filters of smallest absolute sums first."""

    power = 1
    source = (
        "Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017, section 3.1; section 3.3 and the released ResNet-56 "
        "prune the first convolution of each block only (scope inner)"
    )
    deviations = "the same rate in every layer, instead of rates by sensitivity; ranking='global' is a variant of ours"

    scope: Scope = "inner"
