"""What SLURM says of jobs: one `squeue` for those that are there, one `sacct` for those that are gone, however many they are."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable

TIMEOUT_S = 60
CHECK_S = 10
"""SLURM's commands look for a missing configuration for a minute; they have said what is wrong at once."""
UNCONFIGURED = ("cannot stat file", "configuration source")
"""SLURM's words where no cluster is configured."""
SILENT = ("unable to contact slurm controller", "socket timed out", "zero bytes were transmitted", "connection refused")


def states(grid: str = "") -> dict[str, str] | None:
    """Number -> state of this user's jobs that wait or run: "PENDING", "RUNNING", "COMPLETING"; None when SLURM is silent."""
    found = jobs(grid)
    return None if found is None else {job: state for job, (state, _) in found.items()}


def jobs(grid: str = "") -> dict[str, tuple[str, str]] | None:
    """Number -> state of such a job and the reason for it, "Priority" or "QOSMaxJobsPerUserLimit"; None when SLURM is silent.

    A task of an array has the number "ARRAY_TASK". A job that is not here has ended, or is between two starts. `grid` asks for
    those of its launches only: a controller that lost its memory gives numbers away again.
    """
    names = [f"--name={','.join(job_name(grid, timing=timing) for timing in (False, True))}"] if grid else []
    text = _ask("squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format=%F|%K|%T|%r", *names)
    if text is None:
        return None
    lines = (line.split("|", 3) for line in text.splitlines())
    return {job if task == "N/A" else f"{job}_{task}": (state, reason) for job, task, state, reason in lines}


def job_name(grid: str, *, timing: bool) -> str:
    """What jobs of this grid are called."""
    return f"{grid}-{'timing' if timing else 'training'}"


def ended(jobs: Iterable[str]) -> dict[str, str]:
    """Number -> last known state of these jobs, "CANCELLED by 0" or "OUT_OF_MEMORY"; empty without accounting.

    Tasks that never began are one line together, "123_[4-9%2]", which counts for those that have no line of their own.
    """
    jobs = list(jobs)
    arrays = sorted({job.partition("_")[0] for job in jobs})
    if not arrays:
        return {}
    text = _ask("sacct", "-n", "-P", "-X", "-o", "JobID,JobIDRaw,State", "-j", ",".join(arrays))
    lines = [line.split("|") for line in (text or "").splitlines() if line.count("|") >= 2]
    rows = {number: state for job, raw, state, *_ in lines for number in (raw, job)}
    rest = {job.partition("_")[0]: state for job, state in rows.items() if "_[" in job}
    return {job: state for job in jobs if (state := rows.get(job) or rest.get(job.partition("_")[0]))}


def is_silent(said: str) -> bool:
    """Whether a command failed because the controller did not answer, which passes."""
    return any(words in said.lower() for words in SILENT)


def unconfigured() -> str:
    """The first line of SLURM's own words where its commands cannot read which cluster they are for; "" where they can."""
    try:
        done = subprocess.run(("scontrol", "show", "config"), capture_output=True, timeout=CHECK_S, check=False)
        failed, said = done.returncode != 0, done.stderr
    except subprocess.TimeoutExpired as error:
        failed, said = True, error.stderr or b""
    text = said.decode(errors="replace").strip()
    return text.splitlines()[0] if failed and any(words in text for words in UNCONFIGURED) else ""


def limit(name: str, otherwise: int) -> int:
    """A number from the cluster's configuration, such as MaxArraySize."""
    for line in (_ask("scontrol", "show", "config") or "").splitlines():
        key, _, value = (word.strip() for word in line.partition("="))
        if key == name and value.isdigit():
            return int(value)
    return otherwise


def _ask(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
        return done.stdout
    except (OSError, subprocess.SubprocessError):
        return None
