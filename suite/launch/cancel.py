"""Cancel a grid from any shell: its launcher, then its jobs."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from suite import lease
from suite.files import write_json
from suite.launch import record
from suite.launch.record import Launch
from suite.launch.status import launcher_lives, process_of
from suite.launch.view import View

AT_A_TIME = 2000
"""Largest number of jobs for one scancel."""
STOP_S = 10.0
"""Time for a stopped launcher to write which jobs it has submitted."""


def cancel(view: View) -> str:
    """Stop the launcher, then cancel its jobs, and return a line about both.

    Raises ValueError if nothing can be cancelled from here.
    """
    view.look()
    launch, results = view.launch, view.context.results
    if launch is None:
        raise ValueError(f"--cancel: there is no launch of {view.name} in {record.folder(results)}")
    parts = []
    if launcher_lives(launch, results):
        parts.append(_stop(launch, results))
        view.look()
        launch = view.launch or launch
    elif not launch.jobs:
        parts.append(f"its launcher (process {launch.pid} on {launch.host}) is no longer there; nothing to cancel")
    if view.jobs is None:
        silent = "SLURM does not answer squeue, so its jobs go on; try again on a host that submits jobs"
        raise ValueError(f"--cancel: {'; '.join([*parts, silent])}")
    if launch.jobs:
        parts.append(_cancel_jobs(view, launch, view.jobs))
    return f"{view.name}: {'; '.join(parts)}"


def _cancel_jobs(view: View, launch: Launch, states: Mapping[str, str]) -> str:
    """Cancel the jobs of the launch file; their running stages become "interrupted" instead of "lost"."""
    jobs = list(dict.fromkeys(job for job in launch.jobs.values() if job in states))
    for first in range(0, len(jobs), AT_A_TIME):
        command = ["scancel", *jobs[first : first + AT_A_TIME]]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ValueError(f"--cancel: scancel failed: {' '.join(done.stderr.split())}")
    running = [s for s in view.states if s.name == "running" and launch.jobs.get(s.stage.key) in jobs]
    for state in running:
        about = {"status": "interrupted", "reason": "cancelled by --cancel", "time": time.time()}
        write_json(view.context.folder(state.stage) / "failed.json", {**about, **process_of(state.about)})
    kept = {key: job for key, job in launch.jobs.items() if job not in jobs}
    record.write(dataclasses.replace(launch, jobs=kept), view.context.results)
    ran = len({launch.jobs[state.stage.key] for state in running})
    return f"cancelled {len(jobs):,} jobs, of which {ran:,} ran" if jobs else "none of its jobs waits or runs"


def _stop(launch: Launch, results: Path) -> str:
    """Stop a launcher of this user on this host; return a line about it."""
    if launch.host != lease.host():
        return f"its launcher is process {launch.pid} on {launch.host}: run --cancel there to stop it"
    command = Path(f"/proc/{launch.pid}/cmdline").read_bytes()
    if b"suite.launch" not in command.replace(b"/", b".") or os.stat(f"/proc/{launch.pid}").st_uid != os.getuid():
        return f"process {launch.pid} is no launcher of yours; it was left alone"
    os.kill(launch.pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_S
    while launcher_lives(launch, results) and time.monotonic() < deadline:
        time.sleep(0.1)
    runs = "" if launch.cluster == "slurm" else "; what runs stops at its next step and goes on at the next launch"
    return f"told its launcher (process {launch.pid}) to stop{runs}"
