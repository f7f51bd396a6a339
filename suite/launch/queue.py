"""Queries of SLURM: one squeue or sacct for any number of jobs."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass

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


def started_s(job: str) -> float | None:
    """Return the start of a running job in seconds since 1970.

    None if SLURM names none.
    """
    text = _ask("squeue", "--noheader", f"--jobs={job}", "--format=%S") or ""
    try:
        return time.mktime(time.strptime(text.split()[0], "%Y-%m-%dT%H:%M:%S"))
    except (IndexError, ValueError, OverflowError):
        return None


@dataclass(frozen=True, kw_only=True)
class End:
    """End of a job by SLURM's record.

    state          its last state, such as "CANCELLED by 0"
    status         exit status of its script
    signal         signal that ended its script; 53: SLURM could not open the log
    nodes          nodes that it ran on, "" if it never began
    out_of_memory  True if the job or one of its steps had that state
    """

    state: str
    status: int = 0
    signal: int = 0
    nodes: str = ""
    out_of_memory: bool = False


def ended(jobs: Iterable[str]) -> dict[str, End]:
    """Return number -> end of these jobs; empty without accounting.

    Example: "12_3": End(state="CANCELLED by 0").
    sacct joins tasks that never began in one line, "123_[4-9%2]", which is the state of tasks without a line.
    """
    jobs = list(jobs)
    arrays = sorted({job.partition("_")[0] for job in jobs})
    if not arrays:
        return {}
    text = _ask("sacct", "-n", "-P", "-o", "JobID,JobIDRaw,State,ExitCode,NodeList", "-j", ",".join(arrays))
    lines = [line.split("|") for line in (text or "").splitlines() if line.count("|") >= 4]
    no_room = {job.partition(".")[0] for job, _, state, *_ in lines if state.startswith("OUT_OF_ME")}
    ends = {
        number: _end(state, code, nodes, out_of_memory=job in no_room)
        for job, raw, state, code, nodes, *_ in lines
        if "." not in job
        for number in (raw, job)
    }
    rest = {job.partition("_")[0]: end for job, end in ends.items() if "_[" in job}
    return {job: end for job in jobs if (end := ends.get(job) or rest.get(job.partition("_")[0]))}


def _end(state: str, code: str, nodes: str, *, out_of_memory: bool) -> End:
    """Return the end in a line of sacct; its code is STATUS:SIGNAL."""
    status, _, number = code.partition(":")
    return End(
        state=state,
        status=int(status) if status.isdigit() else 0,
        signal=int(number) if number.isdigit() else 0,
        nodes="" if nodes == "None assigned" else nodes,
        out_of_memory=out_of_memory,
    )


def log_of(job: str) -> str:
    """Return the path of the job's stderr, from the controller.

    "" if the controller has dropped the job.
    """
    match = re.search(r" StdErr=(.*?) StdIn=", _ask("scontrol", "--oneliner", "show", "job", job) or "")
    return match[1] if match else ""


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
