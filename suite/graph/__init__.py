"""The channel graph of a network."""

from suite.graph.channels import Conv, Graph, Live, Macs
from suite.graph.operators import Kind

__all__ = ["Conv", "Graph", "Kind", "Live", "Macs"]
