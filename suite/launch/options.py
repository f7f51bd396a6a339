"""What jobs ask SLURM for: what never changes stands in a site file, the rest on the command line, which wins.

~/.config/pruning-suite/slurm.toml, then slurm.toml in the working folder, then --slurm KEY=VALUE and the options of their own
"""

from __future__ import annotations

import functools
import inspect
import os
import re
import subprocess
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from submitit.slurm.slurm import _make_sbatch_string

from suite.registry import pick

DEFAULTS = {"time": 24 * 60, "nodes": 1, "ntasks_per_node": 1, "cpus_per_task": 8}
TASKS = ("nodes", "ntasks_per_node", "ntasks")
"""Keys that give a job several tasks."""
OURS = {"timing_gpu": str, "runs_per_gpu": int, "parallel": int}
"""Keys of a site file that are options of the launcher, with the type of their value."""
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
"""What the launcher itself sets."""
SITE_FILE = "slurm.toml"


@dataclass(frozen=True, kw_only=True)
class Options:
    """How stages become jobs.

    sbatch        what all jobs ask for
    timing_gpu    the kind of GPU that latency is measured on, as SLURM calls it; "" for any
    runs_per_gpu  stages that one job does side by side; latency never shares
    parallel      jobs of the launch at a time; 0 for as many as SLURM lets run
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

    def parameters(self, *, gpu: bool, timing: bool) -> dict[str, Any]:
        """The executor's parameters of jobs that need a GPU or none; what submitit does not name goes to sbatch as it is."""
        known = set(inspect.signature(_make_sbatch_string).parameters)
        wanted: dict[str, Any] = {**DEFAULTS, **({"gpus_per_node": 1} if gpu else {}), **self.sbatch}
        if timing:
            kind = {"gpus_per_node": f"{self.timing_gpu}:1"} if gpu and self.timing_gpu else {}
            wanted |= {"exclusive": True, "nodes": 1, "ntasks_per_node": 1, **kind}  # latency is that of one task
            wanted.pop("ntasks", None)
        extra = {key: value for key, value in wanted.items() if key not in known}
        named = {key: value for key, value in wanted.items() if key in known and value != 0}
        cores = [f"--cpus-per-task={named['cpus_per_task']}"]  # srun forgets it since SLURM 22.05
        return {**named, "srun_args": cores, "additional_parameters": {"requeue": True, **extra}}


def load(words: Iterable[str], **ours: Any) -> Options:
    """The options of the site files, over these those of KEY=VALUE words, over these those in `ours` that are not None.

    Raises ValueError naming a word that is no pair, a file that cannot be read, or a key that sbatch does not have.
    """
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    found: dict[str, Any] = {}
    for path in (home / "pruning-suite" / SITE_FILE, Path.cwd() / SITE_FILE):
        if path.is_file():
            found |= _read(path)
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise ValueError(f"--slurm {word!r} is not KEY=VALUE, such as partition=gpu")
        found |= _checked("--slurm", {key: int(value) if value.isdigit() else value}, mine={})
    found |= {key: value for key, value in ours.items() if value is not None}
    mine = {key: found.pop(key) for key in OURS if key in found}
    return Options(sbatch=found, **mine)


def _read(path: Path) -> dict[str, Any]:
    try:
        value = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); it holds lines such as partition = 'gpu'") from error
    return _checked(str(path), value, mine=OURS)


def _checked(where: str, values: Mapping[str, Any], mine: Mapping[str, type]) -> dict[str, Any]:
    """The values, by names with underscores. Raises ValueError for a key that nobody knows, or a value that is none."""
    result = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name in RESERVED:
            raise ValueError(f"{where}: {key} is set by the launcher itself; leave it out")
        allowed = mine.get(name, (str, int, bool))
        if not isinstance(value, allowed) or (allowed is int and isinstance(value, bool)):
            raise ValueError(f"{where}: {key} = {value!r} is not what it takes: a text or a number")
        choices = {*mine, *inspect.signature(_make_sbatch_string).parameters, *_of_sbatch()}
        if _of_sbatch() and name not in choices:
            try:
                pick("key", name, dict.fromkeys(sorted(choices)))
            except ValueError as error:
                raise ValueError(
                    f"{where}: {str(error).partition(';')[0]}; `sbatch --help` lists what there is"
                ) from None
        result[name] = value
    return result


@functools.cache
def _of_sbatch() -> frozenset[str]:
    """The options that the sbatch of this machine knows; empty where there is none."""
    try:
        text = subprocess.run(["sbatch", "--help"], capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return frozenset()
    return frozenset(name.replace("-", "_") for name in re.findall(r"--([a-z][a-z0-9-]+)", text))
