"""Queries of SLURM: one squeue or sacct for any number of jobs."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable

TIMEOUT_S = 60
CHECK_S = 10
"""SLURM's commands retry for a minute without a configuration; their reason comes at once."""
UNCONFIGURED = ("cannot stat file", "configuration source")
"""Parts of SLURM's messages if no cluster is configured."""
SILENT = (
    "unable to contact slurm controller",
    "socket timed out",
    "zero bytes were transmitted",
    "connection refused",
    "authentication error",
    "munge",
)
"""Parts of messages while the controller, the database or munge is down."""


def states(grid: str = "") -> dict[str, str] | None:
    """Return number -> state of this user's jobs; None if SLURM is silent."""
    answer = jobs(grid)
    return None if answer is None else {job: state for job, (state, _) in answer.items()}


def jobs(grid: str = "") -> dict[str, tuple[str, str]] | None:
    """Return number -> (state, reason) of this user's jobs; None if SLURM is silent.

    Example: "12_3": ("PENDING", "Priority").
    A task of an array has the number "ARRAY_TASK". A job that is absent has ended, or is between two starts. `grid` limits the
    answer to jobs of its launches: a controller that lost its state reuses numbers.
    """
    names = [f"--name={','.join(job_name(grid, timing=timing) for timing in (False, True))}"] if grid else []
    text = _ask("squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format=%F|%K|%T|%r", *names)
    if text is None:
        return None
    lines = (line.split("|", 3) for line in text.splitlines())
    return {job if task == "N/A" else f"{job}_{task}": (state, reason) for job, task, state, reason in lines}


def job_name(grid: str, *, timing: bool) -> str:
    """Return the name of this grid's jobs."""
    return f"{grid}-{'timing' if timing else 'training'}"


def ended(jobs: Iterable[str]) -> dict[str, str]:
    """Return number -> last state of these jobs; empty without accounting.

    Example: "12_3": "CANCELLED by 0".
    sacct joins tasks that never began in one line, "123_[4-9%2]", which is the state of tasks without a line.
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


def is_silent(text: str) -> bool:
    """Return True if a command failed because the controller did not answer, which passes."""
    return any(words in text.lower() for words in SILENT)


def limit_in(text: str) -> str:
    """Return the limit of submitted jobs that a refusal names; else "".

    Example: "AssocMaxSubmitJobLimit".
    """
    match = re.search(r"\b(?:Assoc|QOS)\w*Submit\w*Limit\b", text)
    return match[0] if match else ""


def unconfigured() -> str:
    """Return the first line of SLURM's message if no cluster is configured here; else ""."""
    try:
        done = subprocess.run(("scontrol", "show", "config"), capture_output=True, timeout=CHECK_S, check=False)
        failed, message = done.returncode != 0, done.stderr
    except subprocess.TimeoutExpired as error:
        failed, message = True, error.stderr or b""
    text = message.decode(errors="replace").strip()
    return text.splitlines()[0] if failed and any(words in text for words in UNCONFIGURED) else ""


def limit(name: str, otherwise: int) -> int:
    """Return a number of the cluster's configuration, such as MaxArraySize."""
    for line in (_ask("scontrol", "show", "config") or "").splitlines():
        key, _, value = (word.strip() for word in line.partition("="))
        if key == name and value.isdigit():
            return int(value)
    return otherwise


def _ask(*command: str) -> str | None:
    """Run a command of SLURM; return its output, None if it failed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
        return done.stdout
    except (OSError, subprocess.SubprocessError):
        return None
