"""Everything that methods share: models, data, packing, training, measuring, records, grids and reports."""
