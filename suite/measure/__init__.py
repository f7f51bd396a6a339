"""What is measured on a network: MACs and parameters (`counting`), latency beside the dense network (`latency`)."""
