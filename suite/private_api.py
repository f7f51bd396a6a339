"""Private functions of libraries, with checked versions and a replacement if one is missing.

submitit 1.5.4: `submitit.slurm.slurm._make_sbatch_string`
"""

from __future__ import annotations

import importlib
import inspect
import re

SBATCH_PARAMETERS = frozenset(
    re.findall(
        r"\w+",
        "account additional_parameters array_parallelism command comment constraint cpus_per_gpu cpus_per_task dependency "
        "exclude exclusive folder gpus_per_node gpus_per_task gres job_name mail_type mail_user map_count mem mem_per_cpu "
        "mem_per_gpu nodelist nodes ntasks_per_node num_gpus partition qos setup signal_delay_s srun_args stderr_to_stdout "
        "teardown time use_srun wckey",
    )
)
"""Parameters of submitit 1.5.4."""


def sbatch_parameters() -> frozenset[str]:
    """Return the parameters of submitit's SLURM executor.

    If the function is missing: those of version 1.5.4.
    """
    function = getattr(importlib.import_module("submitit.slurm.slurm"), "_make_sbatch_string", None)
    return frozenset(inspect.signature(function).parameters) if function else SBATCH_PARAMETERS
