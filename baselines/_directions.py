"""One direction a filter, which does not depend on the filter's norm.

Source: Singh and Plumbley, A Passive Similarity based CNN Filter Pruning, Interspeech 2022, section 2.
Shapes: O filters, I input channels, K weights of one kernel, D entries of a direction.
"""

from __future__ import annotations

import torch
from torch import Tensor


def directions(weight_OIkk: Tensor) -> Tensor:
    """Return unit vectors, one direction a filter, float64 [O, D].

    The direction is the spatial pattern (D = K) of the best rank-1 approximation of the filter as I x K.

    Its sign is that of the first channel. A 1x1 filter has no spatial pattern: its weights are its direction (D = I). A
    filter of zeros gets an arbitrary direction, or zeros.
    """
    filters_OIK = weight_OIkk.detach().double().flatten(2)
    if filters_OIK.shape[2] == 1:
        return torch.nn.functional.normalize(filters_OIK[:, :, 0], dim=1)
    channel_OIr, _, pattern_OrK = torch.linalg.svd(filters_OIK, full_matrices=False)
    return pattern_OrK[:, 0] * torch.where(channel_OIr[:, :1, 0] < 0, -1.0, 1.0)
