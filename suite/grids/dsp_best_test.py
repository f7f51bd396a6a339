"""DSP as released: the best epoch on the test set in every stage, five seeds.

The test set has chosen these epochs: the accuracies are too good, and comparable with published rows of the same kind only.
The authors state the median of five runs.
"""

from __future__ import annotations

from suite.grids import _released

GRID = _released.kept("best_test", "DSP on CIFAR-10, best epoch on the test set", __doc__ or "")
