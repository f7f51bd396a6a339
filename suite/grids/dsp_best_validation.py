"""DSP's released schedules with the best epoch on the validation part in every stage.

Networks are trained on the training images that are not in that part; the test set is read once, at the end.
"""

from __future__ import annotations

from suite.grids import _released

GRID = _released.kept("best_validation", "DSP on CIFAR-10, best epoch on the validation part", __doc__ or "")
