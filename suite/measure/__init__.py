"""Measurement of networks: MACs and parameters (`counting`, `products`), latency beside the dense network (`compare`)."""

from suite.measure.comparison import Comparison, compare
from suite.plan import Timing

__all__ = ["Comparison", "Timing", "compare"]
