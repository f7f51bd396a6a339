"""Launch of grids, on this machine or as SLURM jobs."""
