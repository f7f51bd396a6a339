"""L2 norm of filters, pruned once."""

from __future__ import annotations

from dataclasses import dataclass

from baselines._norms import NormFilter
from suite.contract import Scope


@dataclass(frozen=True, kw_only=True)
class L2Filter(NormFilter):
    """Removes the filters with the smallest Euclidean norms, from each layer the same share."""

    power = 2
    source = (
        "He et al., Soft Filter Pruning for Accelerating Deep CNNs, IJCAI 2018, section 3.2, equation 2 with p = 2; the released "
        "code zeroes the filters of each convolution on its own (scope untied)"
    )
    deviations = "pruned once after training, not softly after every epoch (`sfp`)"

    scope: Scope = "untied"
