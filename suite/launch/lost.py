"""Lost jobs: those that left the queue without a status file.

The reason of a loss is read from the records of SLURM's accounting and controller.
"""

from __future__ import annotations

import pwd
import signal
from dataclasses import dataclass, replace
from pathlib import Path

from suite.launch import queue, record
from suite.launch.queue import End

UNKNOWN = "unknown to SLURM"
NO_FAULT = ("CANCELLED", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "REVOKED", UNKNOWN)
"""First words of states that are no failure of the stage: a person or the cluster ended its job."""
NO_LOG_FILE = 53
"""SLURM's number, in place of a signal, if a node could not open the job's log."""
AGAIN = "the same command submits it again"
MEANINGS = {
    "OUT_OF_MEMORY": "{where}ran out of memory: --slurm mem=MB for more, --runs-per-gpu K for fewer stages at a time",
    "TIMEOUT": "{where}it reached its time limit before it stopped at a checkpoint: --slurm time=MINUTES for more",
    "DEADLINE": "{where}it reached its deadline",
    "NODE_FAIL": "{where}its node failed; " + AGAIN,
    "BOOT_FAIL": "{where}its node did not start; " + AGAIN,
    "PREEMPTED": "{where}another job took its place, and it was not requeued; " + AGAIN,
    "REVOKED": "another cluster took it",
    "COMPLETED": "{where}without an error: do the nodes see the same {results}?",
}
"""First word of a state -> its meaning, and what helps."""


@dataclass(frozen=True, kw_only=True)
class Loss:
    """Reason of a lost job.

    counts  False if a person or the cluster ended the job, which is no failure of the stage
    """

    reason: str
    counts: bool


def explain(job: str, end: End | None, results: Path) -> Loss:
    """Return the reason of a lost job from SLURM's record; None: SLURM has none."""
    if end is None:
        text = f"its job {job} is {UNKNOWN} and left no status: there is no record of its end"
        return Loss(reason=f"{text}{_log(job, results, ran=True)}", counts=False)
    text = f"its job {job} ended as {end.state} and left no status"
    # The log of a requeued job has earlier ends, too.
    over_memory = end.state == "FAILED" and _over_memory(job, results)
    meaning = _meaning(replace(end, out_of_memory=end.out_of_memory or over_memory), results)
    no_log_file = end.signal == NO_LOG_FILE and not end.status
    log = "" if no_log_file else _log(job, results, ran=bool(end.nodes))
    counts = not end.state.startswith(NO_FAULT) and not no_log_file
    return Loss(reason=f"{text}{': ' if meaning else ''}{meaning}{log}", counts=counts)


def _meaning(end: End, results: Path) -> str:
    """Return what the state and the exit status mean."""
    where = f"on {end.nodes} " if end.nodes else ""
    word = "OUT_OF_MEMORY" if end.out_of_memory else end.state.partition(" ")[0]
    if word in MEANINGS:
        return MEANINGS[word].format(where=where, results=results)
    if word == "CANCELLED":
        user = end.state.rpartition(" ")[2]
        return f"{where}by {_name(user)}; {AGAIN}" if user.isdigit() else AGAIN
    if end.signal == NO_LOG_FILE and not end.status:
        return f"{where}SLURM could not open the job's log below {results / 'logs'}: can the nodes write there?"
    number = end.signal or (end.status - 128 if end.status > 128 else 0)  # a shell adds 128
    if number:
        return f"{where}its process was killed by {_signal(number)}"
    return f"{where}with exit status {end.status}" if end.status else where.strip()


def _over_memory(job: str, results: Path) -> bool:
    """Return True if the log has SLURM's line about the memory limit.

    Where no cgroup holds the limit, SLURM ends the step itself, and the state is only FAILED.
    """
    path = record.log_of(results, job)
    return path.is_file() and "exceeded memory limit" in path.read_text(errors="replace").lower()


def _name(user: str) -> str:
    try:
        return f"user {pwd.getpwuid(int(user)).pw_name}"
    except (KeyError, OverflowError):
        return f"user {user}"


def _signal(number: int) -> str:
    """Return the signal's name. SIGKILL has the reason that is common with it."""
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
    return f"{name}, as a system does that is out of memory" if name == "SIGKILL" else name


def _log(job: str, results: Path, *, ran: bool) -> str:
    """Return where the job's log is: below the results, or the path of the controller."""
    if not ran:
        return "; it never began"
    path = record.log_of(results, job)
    elsewhere = queue.log_of(job)
    for candidate in (path, *([Path(elsewhere)] if elsewhere else [])):
        if candidate.is_file() and candidate.stat().st_size:
            return f"; see {candidate}"
    return f"; it wrote no log to {path}"
