"""Launching grids: on this machine (`local`), or as SLURM jobs (`slurm`), with a live picture of it (`display`)."""
