"""What all pruning methods share: training, packing, measuring, rows, grids, launching, reports."""
