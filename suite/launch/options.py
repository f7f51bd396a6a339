"""Options of sbatch, from site files and the command line.

A later place overrides: ~/.config/pruning-suite/slurm.toml, slurm.toml in the working folder, --slurm KEY=VALUE and the
launcher's own options.
"""

from __future__ import annotations

import functools
import math
import os
import re
import subprocess
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from suite.private_api import sbatch_parameters
from suite.registry import closest

DEFAULTS = {"time": 24 * 60, "nodes": 1, "ntasks_per_node": 1, "cpus_per_task": 8}
TASKS = ("nodes", "ntasks_per_node", "ntasks")
"""Keys that give a job several tasks."""
LEAD_S = 90
"""Seconds before the end of a job at which SLURM sends its signal, submitit's default."""
EARLY_S = 60
"""SLURM may send the signal so much earlier."""
OURS = {"timing_gpu": str, "runs_per_gpu": int, "parallel": int}
"""Options of the launcher that a site file may set, with the type of their value."""
RESERVED = frozenset(
    [
        "additional_parameters",
        "array",
        "array_parallelism",
        "command",
        "dependency",
        "error",
        "folder",
        "job_name",
        "map_count",
        "open_mode",
        "output",
        "requeue",
        "setup",
        "signal",
        "srun_args",
        "stderr_to_stdout",
        "teardown",
        "use_srun",
    ]
)
"""Keys that the launcher itself sets."""
SITE_FILE = "slurm.toml"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of jobs.

    sbatch        options of all jobs
    timing_gpu    type of the GPU for latency, by SLURM's name; "" for any
    runs_per_gpu  stages that one job does side by side; a timed stage has a job of its own
    parallel      jobs of the launch at a time; 0 for no limit of the launcher
    """

    sbatch: Mapping[str, Any] = field(default_factory=dict)
    timing_gpu: str = ""
    runs_per_gpu: int = 1
    parallel: int = 0

    def __post_init__(self) -> None:
        if self.runs_per_gpu < 1:
            raise ValueError(f"--runs-per-gpu {self.runs_per_gpu}: it takes 1 or more")
        if self.parallel < 0:
            raise ValueError(f"--parallel {self.parallel}: it takes 1 or more, or 0 for no limit")
        several = [f"{key}={self.sbatch[key]}" for key in TASKS if str(self.sbatch.get(key, 1)) not in ("0", "1")]
        if self.runs_per_gpu > 1 and several:
            raise ValueError(
                f"--runs-per-gpu {self.runs_per_gpu} with {several[0]}: the tasks of a job share one stage; "
                "add --runs-per-gpu 1, or leave one task to a job"
            )
        _check_time(self.sbatch.get("time"), int(self.sbatch.get("signal_delay_s", LEAD_S)))

    def parameters(self, *, gpu: bool, timing: bool) -> dict[str, Any]:
        """Return the executor's parameters; keys that submitit does not name go to sbatch unchanged."""
        named_keys = sbatch_parameters()
        parameters: dict[str, Any] = {**DEFAULTS, **({"gpus_per_node": 1} if gpu else {}), **self.sbatch}
        if timing:
            kind = {"gpus_per_node": f"{self.timing_gpu}:1"} if gpu and self.timing_gpu else {}
            parameters |= {"exclusive": True, "nodes": 1, "ntasks_per_node": 1, **kind}  # one task measures
            parameters.pop("ntasks", None)
        extra = {key: value for key, value in parameters.items() if key not in named_keys}
        named = {key: value for key, value in parameters.items() if key in named_keys and value != 0}
        cores = named.get("cpus_per_task")  # not passed on by srun since SLURM 22.05
        srun = [f"--cpus-per-task={cores}"] if cores else []
        return {**named, "srun_args": srun, "additional_parameters": {"requeue": True, **extra}}


def load(words: Iterable[str], **ours: Any) -> Options:
    """Return the options of site files, KEY=VALUE words and `ours`.

    A later source overrides; None in `ours` is not set.
    Raises ValueError naming a word that is no pair, an unreadable file, or an unknown key of sbatch.
    """
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    values: dict[str, Any] = {}
    for path in (home / "pruning-suite" / SITE_FILE, Path.cwd() / SITE_FILE):
        if path.is_file():
            values |= _read(path)
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise ValueError(f"--slurm {word!r} is not KEY=VALUE, such as partition=gpu")
        values |= _checked("--slurm", {key: int(value) if value.isdigit() else value}, types={})
    values |= {key: value for key, value in ours.items() if value is not None}
    launcher = {key: values.pop(key) for key in OURS if key in values}
    return Options(sbatch=values, **launcher)


def _check_time(limit: int | str | None, lead_s: int) -> None:
    """Raise ValueError if jobs end before SLURM's signal could stop them at a checkpoint."""
    limit_s = _seconds(limit)
    needed = math.floor((lead_s + EARLY_S) / 60) + 1
    if limit_s is not None and 0 < limit_s < 60 * needed:
        raise ValueError(
            f"--slurm time={limit}: a job of {limit_s / 60:g} min gets SLURM's signal up to {lead_s + EARLY_S} s before its "
            f"end, before it has begun; take time={needed} or more (minutes)"
        )


def _seconds(limit: int | str | None) -> float | None:
    """Return a time limit of SLURM in seconds; None if it has no number.

    Formats: minutes, M:S, H:M:S, D-H, D-H:M, D-H:M:S.
    """
    days, dash, clock = str(limit).rpartition("-")
    words = [*([days] if dash else []), *clock.split(":")]
    if not all(word.isdigit() for word in words):
        return None
    numbers = [int(word) for word in words]
    if dash:
        units: tuple[int, ...] = (86400, 3600, 60, 1)
    else:
        units = (3600, 60, 1) if len(numbers) == 3 else (60, 1)
    return float(sum(number * unit for number, unit in zip(numbers, units, strict=False)))


def _read(path: Path) -> dict[str, Any]:
    try:
        value = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); it holds lines such as partition = 'gpu'") from error
    return _checked(str(path), value, types=OURS)


def _checked(where: str, values: Mapping[str, Any], types: Mapping[str, type]) -> dict[str, Any]:
    """Return the values by names with underscores.

    Raises ValueError for an unknown key or a value of a wrong type.
    """
    result = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name in RESERVED:
            raise ValueError(f"{where}: {key} is set by the launcher itself; leave it out")
        allowed = types.get(name, (str, int, bool))
        if not isinstance(value, allowed) or (allowed is int and isinstance(value, bool)):
            raise ValueError(f"{where}: {key} = {value!r} is not what it takes: a text or a number")
        choices = {*types, *sbatch_parameters(), *_sbatch_options()}
        if _sbatch_options() and name not in choices:
            hint = closest(name, sorted(choices))
            raise ValueError(f"{where}: unknown key {name!r}{hint}; `sbatch --help` lists what there is")
        result[name] = value
    return result


@functools.cache
def _sbatch_options() -> frozenset[str]:
    """Return the options in `sbatch --help` of this machine; empty if there is no sbatch."""
    try:
        text = subprocess.run(["sbatch", "--help"], capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return frozenset()
    return frozenset(name.replace("-", "_") for name in re.findall(r"--([a-z][a-z0-9-]+)", text))
