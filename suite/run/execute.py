"""Execute a stage under its lease; exceptions become statuses with reasons."""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import time
import traceback
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict, get_args

import torch

from suite import cli, distributed, jsonfile, lease, records
from suite.files import write_json
from suite.progress import Interrupted, Superseded, Watch
from suite.run import code
from suite.run.context import Context
from suite.run.folder import check_files, count_failure, failed_need, failure, forget, is_done, repair
from suite.run.pruned_stage import do_pruned
from suite.run.steps_stage import do_timed_steps
from suite.run.timed_stage import do_timed
from suite.run.train_stages import do_base, do_learned
from suite.run.workspace import Workspace
from suite.stages import Base, Learned, Pruned, Stage, Timed, TimedSteps
from suite.trainer import Diverged

log = logging.getLogger(__name__)

Outcome = Literal["done", "diverged", "failed", "interrupted"]
Decision = Literal["wait", "begin", "done", "interrupted"]
DECISIONS: tuple[Decision, ...] = get_args(Decision)
"""Decisions that rank 0 broadcasts before the stage begins, by their index."""
UNWRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.ETIMEDOUT)
"""Errors of a file system that is read-only, cut off or changed by a person."""
WAIT_LOG_S = 60.0
"""Interval of log lines about a lease that another process holds."""


class Started(TypedDict):
    """Content of `started.json`."""

    threads: int
    code: NotRequired[dict[str, Any] | None]


class _LogFile(logging.FileHandler):
    """A stage's log.

    A full disk costs log lines; the stage itself fails with its own reason.
    """

    def handleError(self, record: logging.LogRecord) -> None:
        pass

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


def execute(stage: Stage, context: Context, watch: Watch | None = None) -> Outcome:
    """Execute `stage` unless it is done. Every exception becomes a status with a reason.

    Two processes with the same stage are serialised by the stage's lease; for the second one the stage is done.
    """
    folder = context.folder(stage)
    work = Workspace(stage, context, watch or Watch(context.progress(stage), context.max_minutes))
    if not distributed.is_first():
        return _follow(work)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        waiting = functools.partial(_wait_for, work, [])
        with lease.held(context.lease(stage), waiting=waiting, lost=work.watch.signalled.set) as holds:
            work.watch.holds = holds
            repair(stage, context)
            if _broadcast("done" if is_done(stage, context) else "begin") == "done":
                work.clear()  # the process that finished it may have been killed before this
                return "done"
            return _attempt(work)
    except Interrupted:  # while another process holds the lease
        return "interrupted"
    except Exception as error:  # outside the attempt: no room for the log, no such device, another task has ended
        return fail(stage, context, "failed", _reason(error), counts=not _is_of_storage(error, context))


def _follow(work: Workspace[Stage]) -> Outcome:
    """Run the stage in step with rank 0, on every other rank.

    Rank 0 alone holds the lease and writes.
    """
    work.watch.path = None
    try:
        while (decision := _broadcast()) == "wait":
            pass
        if decision == "begin" and not isinstance(work.stage, Timed):
            _do(work)
        return "interrupted" if decision == "interrupted" else "done"
    except Interrupted:
        return "interrupted"
    except Exception as error:  # rank 0 writes the reason; if this rank alone failed, its job's log has the reason
        distributed.publish_end(error)
        if isinstance(error, ValueError):  # of the user, as on rank 0
            log.error("%s: task stopped: %s", work.stage.label, _reason(error))
        else:
            log.exception("%s: task stopped", work.stage.label)
        return "diverged" if isinstance(error, Diverged) else "failed"


def _broadcast(decision: Decision = "wait") -> Decision:
    """Broadcast rank 0's decision; called every 0.5 s so that no collective reaches `distributed.TIMEOUT`."""
    return DECISIONS[distributed.broadcast(DECISIONS.index(decision))]


def _wait_for(work: Workspace[Stage], logged_at: list[float], owner: str) -> None:
    """Broadcast "wait" while another process holds the lease.

    Raises Interrupted if it is time to stop.
    """
    if not logged_at or time.time() - logged_at[-1] >= WAIT_LOG_S:
        logged_at.append(time.time())
        since = time.strftime("%F %T", time.localtime(logged_at[0]))
        log.warning("%s: waiting since %s for %s, which holds its lease", work.stage.label, since, owner or "a process")
    if _broadcast("interrupted" if work.watch.must_stop else "wait") == "interrupted":
        raise Interrupted(f"stopped while {owner or 'another process'} does this stage")


def _attempt(work: Workspace[Stage]) -> Outcome:
    """Run a stage that is not done, and write its log and its status."""
    stage, context, folder = work.stage, work.context, work.folder
    records.provenance(context.device)  # cached here: the commit must be that of the running code, not a later one
    handler = _LogFile(folder / "log.txt")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger().addHandler(handler)
    own = logging.Logger(stage.key)  # writes to the file only: the terminal shows the reason without the traceback
    own.addHandler(handler)
    try:
        (folder / "failed.json").unlink(missing_ok=True)
        _do(work)
        return "done"
    except Superseded:
        return "interrupted"
    except Interrupted as stop:
        own.info("%s: %s", stage.label, stop)
        if not work.watch.holds():
            return "interrupted"
        with contextlib.suppress(OSError):
            write_json(folder / "failed.json", {"status": "interrupted", "reason": str(stop), "time": time.time()})
        return "interrupted"
    except Exception as error:  # here a run becomes a row, so that one failure stops no other run
        if not work.watch.holds():
            return "interrupted"
        own.error("%s\n%s", stage.label, traceback.format_exc())
        status: Literal["diverged", "failed"] = "diverged" if isinstance(error, Diverged) else "failed"
        reason = distributed.lost_task(error) or _reason(error)
        counts = not _is_of_storage(error, context) and all(is_done(needed, context) for needed in stage.needs)
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
    return fail(stage, context, status, reason, counts=counts)


def _reason(error: Exception) -> str:
    """Return the error in one line.

    Unexpected errors are followed by file and line of the innermost frame of our code.
    """
    if isinstance(error, OSError) and _is_full_disk(error):
        return f"no room on the disk for {error.filename or 'a file'}; make room and run the same command again"
    text = " ".join(str(error).split()) or "no message"
    if isinstance(error, (Diverged, ValueError, OSError)):
        return text
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).is_relative_to(records.ROOT)
    ]
    if not frames:
        return f"{type(error).__name__}: {text}"
    path = Path(frames[-1].filename).relative_to(records.ROOT)
    return f"{type(error).__name__}: {text} ({path}:{frames[-1].lineno}; all of it in the stage's log.txt)"


def _is_full_disk(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _is_of_storage(error: Exception, context: Context) -> bool:
    """Return True if the storage is the cause, not the stage.

    The disk is full, or the results folder cannot be written or read.
    """
    if _is_full_disk(error):
        return True
    name = str(getattr(error, "filename", None) or "")
    return isinstance(error, OSError) and error.errno in UNWRITABLE and Path(name).is_relative_to(context.results)


def fail(
    stage: Stage, context: Context, status: Literal["diverged", "failed"], reason: str, *, counts: bool = True
) -> Outcome:
    """Write a failed attempt's status file, and its row if the stage has one.

    A no-op if the stage is done. The row of an earlier result stays: its output may be gone, its numbers hold.

    counts  add to the equal failures after which the stage is skipped; False if the stage itself is not the cause
    """
    if is_done(stage, context):
        return "done"
    work = Workspace(stage, context)
    try:
        work.folder.mkdir(parents=True, exist_ok=True)
        write_json(work.folder / "failed.json", {"status": status, "reason": reason, "time": time.time()})
        present = records.read(records.row_path(context.results, stage.key))
        if isinstance(stage, Pruned | Timed) and (present is None or present.status != "done"):
            records.write(work.row(status, reason=reason), context.results)
        if counts:
            count_failure(stage, context, status, reason)
    except Exception as error:  # a full disk, or a device without a name for the row
        log.error("%s failed (%s), and this could not be written in full: %s", stage.label, reason, error)
    return status


def _do(work: Workspace[Stage]) -> None:
    """Check the stage's needs and run the stage. Raises whatever goes wrong."""
    stage, context = work.stage, work.context
    alone = isinstance(stage, Timed)  # rank 0 measures alone
    with contextlib.nullcontext() if alone else distributed.rank_0_first():
        started = work.folder / "started.json"
        _forget_other_code(started, stage, context)
        _pin_threads(started, stage, context)
    for needed in stage.needs:
        if not is_done(needed, context):
            why = failure(needed, context) or {"status": "missing", "reason": "it is not done; run it first"}
            kind = {"diverged": Diverged, "interrupted": Interrupted}.get(why["status"], ValueError)
            reason = f"needs {needed.key} ({needed.label}), {why['status']}: {why['reason']}"
            raise kind(why["reason"] if failed_need(why["reason"]) else reason)  # the first failure's reason, once
        check_files(needed, context)
    work.dataset.skipped.clear()  # names of an earlier stage of this process
    if isinstance(stage, Base):
        do_base(Workspace(stage, context, work.watch))
    elif isinstance(stage, Learned):
        do_learned(Workspace(stage, context, work.watch))
    elif isinstance(stage, Pruned):
        do_pruned(Workspace(stage, context, work.watch))
    elif isinstance(stage, TimedSteps):
        do_timed_steps(Workspace(stage, context, work.watch))
    else:
        do_timed(Workspace(stage, context, work.watch))


def _pin_threads(path: Path, stage: Stage, context: Context) -> None:
    """Set the number of threads that the stage was started with.

    Sums depend on this number. It is stored after torch has accepted it, so a refused number never sticks to the stage. Raises
    ValueError if torch refuses `--threads`, OSError if the storage does not give the number.
    """
    try:
        torch.set_num_threads(jsonfile.read(path, Started)["threads"])
        return
    except (FileNotFoundError, ValueError, RuntimeError):  # absent, damaged or refused
        threads = (isinstance(stage, Timed) and stage.timing.threads) or context.threads or cli.cores()
    try:
        torch.set_num_threads(threads)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"--threads {threads}: torch refuses this number; take one per core") from error
    if distributed.is_first():
        write_json(path, {"threads": threads, "code": code.fingerprint(stage)})


def _forget_other_code(path: Path, stage: Stage, context: Context) -> None:
    """Delete the checkpoints of a stage that was started with other code.

    A no-op on all ranks but 0.
    """
    try:
        started = jsonfile.checked(path, Started)
        differing = code.changes(stage, started.get("code"))[0]
    except (FileNotFoundError, ValueError):  # absent or damaged
        return
    if differing and distributed.is_first():
        log.warning("%s was started with other code of %s, and begins again", stage.label, ", ".join(differing))
        forget(stage, context)
        write_json(path, {**started, "code": code.fingerprint(stage)})
