"""Does one stage: reads what it needs, trains, packs, measures; leaves its output, or the reason why there is none."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import logging
import os
import time
import traceback
from pathlib import Path
from typing import Literal, get_args

import torch

from suite import distributed, lease, records
from suite.files import write_json
from suite.progress import Interrupted, Watch
from suite.run.common import make_row
from suite.run.folder import Context, check_files, count_failure, failure, forget_failures, given_up, is_done
from suite.run.pruned_stage import do_pruned
from suite.run.train_stages import do_base, do_learned
from suite.stages import Base, Learned, Pruned, Stage, Timed
from suite.train import Diverged

__all__ = ["Context", "Outcome", "cores", "execute", "fail", "failure", "forget_failures", "given_up", "is_done"]

log = logging.getLogger(__name__)

Outcome = Literal["done", "diverged", "failed", "interrupted"]
Word = Literal["wait", "begin", "done", "interrupted"]
WORDS: tuple[Word, ...] = get_args(Word)
"""What the first task tells the others until they begin."""


class _LogFile(logging.FileHandler):
    """A stage's log. On a full disk it loses lines; the stage fails by itself, and says so."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


def execute(stage: Stage, context: Context, watch: Watch | None = None) -> Outcome:
    """Do `stage` unless it is done. Whatever goes wrong becomes a status with its reason, never an exception.

    Two processes with the same stage do it one after the other, and the second finds it done.
    """
    folder = context.folder(stage)
    watch = watch or Watch(folder / "progress.json", context.max_minutes)
    if not distributed.is_first():
        return _follow(stage, context, watch)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        waiting = functools.partial(_wait_for, watch)
        with lease.held(folder / ".lease", waiting=waiting, lost=watch.signalled.set):
            if _said("done" if is_done(stage, context) else "begin") == "done":
                return "done"
            return _attempt(stage, context, watch)
    except Interrupted:  # while waiting for another process with the same stage
        return "interrupted"
    except Exception as error:  # outside the attempt: no room for the log, no such device, another task is gone
        return fail(stage, context, "failed", _reason(error))


def _follow(stage: Stage, context: Context, watch: Watch) -> Outcome:
    """In every task but the first, which holds the lease and writes: do the stage along with it, if it begins."""
    watch.path = None
    try:
        while (word := _said()) == "wait":
            pass
        if word == "begin" and not isinstance(stage, Timed):
            _do(stage, context, watch)
        return "interrupted" if word == "interrupted" else "done"
    except Interrupted:
        return "interrupted"
    except Exception as error:  # the first task says what went wrong; if it is this one alone, the log of its job does
        log.exception("%s: task stopped", stage.label)
        return "diverged" if isinstance(error, Diverged) else "failed"


def _said(word: Word = "wait") -> Word:
    """The first task's word, which it says twice a second: so nobody waits for as long as `distributed.TIMEOUT`."""
    return WORDS[distributed.told(WORDS.index(word))]


def _wait_for(watch: Watch, owner: str) -> None:
    """While another process does the stage. Raises Interrupted when it is time to stop."""
    if _said("interrupted" if watch.must_stop else "wait") == "interrupted":
        raise Interrupted(f"stopped while {owner or 'another process'} does this stage")


def _attempt(stage: Stage, context: Context, watch: Watch) -> Outcome:
    """Do a stage that is not done."""
    folder = context.folder(stage)
    records.provenance(
        context.device
    )  # read now: the commit is that of the code that runs, whatever is committed meanwhile
    handler = _LogFile(folder / "log.txt")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger().addHandler(handler)
    own = logging.Logger(stage.key)  # for the file alone: a terminal gets the reason, without the traceback
    own.addHandler(handler)
    try:
        (folder / "failed.json").unlink(missing_ok=True)
        _do(stage, context, watch)
        return "done"
    except Interrupted as stop:
        own.info("%s: %s", stage.label, stop)
        with contextlib.suppress(OSError):
            write_json(folder / "failed.json", {"status": "interrupted", "reason": str(stop), "time": time.time()})
        return "interrupted"
    except Exception as error:  # here a run becomes a row; nothing that goes wrong in one may stop the others
        own.error("%s\n%s", stage.label, traceback.format_exc())
        status: Literal["diverged", "failed"] = "diverged" if isinstance(error, Diverged) else "failed"
        reason = _reason(error)
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
    own_fault = all(is_done(needed, context) for needed in stage.needs)
    return fail(stage, context, status, reason, counts=own_fault)


def _reason(error: Exception) -> str:
    """One line for people. An error that nobody meant to show says where it happened: the last line of our own code."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no room on the disk for {error.filename or 'a file'}; make room and run the same command again"
    text = " ".join(str(error).split()) or "no message"
    if isinstance(error, (Diverged, ValueError, OSError)):
        return text
    ours = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).is_relative_to(records.ROOT)
    ]
    where = (
        f" ({Path(ours[-1].filename).relative_to(records.ROOT)}:{ours[-1].lineno}; all of it in the stage's log.txt)"
        if ours
        else ""
    )
    return f"{type(error).__name__}: {text}{where}"


def fail(
    stage: Stage, context: Context, status: Literal["diverged", "failed"], reason: str, *, counts: bool = True
) -> Outcome:
    """Record that an attempt at the stage failed: a status file, and a row where the stage has one.

    A stage whose process was lost just after it was done stays done. `counts` says that it was the stage's own failure, of
    which only so many are tried.
    """
    if is_done(stage, context):
        return "done"
    try:
        context.folder(stage).mkdir(parents=True, exist_ok=True)
        write_json(context.folder(stage) / "failed.json", {"status": status, "reason": reason, "time": time.time()})
        if counts:
            count_failure(stage, context, status, reason)
        if isinstance(stage, Pruned | Timed):
            records.write(make_row(stage, context, status=status, reason=reason), context.results)
    except Exception as error:  # a full disk, or a device that cannot even be named in a row
        log.error("%s failed (%s), and that could not be written: %s", stage.label, reason, error)
    return status


def _do(stage: Stage, context: Context, watch: Watch) -> None:
    alone = isinstance(stage, Timed)  # the other tasks do not measure along
    with contextlib.nullcontext() if alone else distributed.first_before_others():
        _pin_threads(context.folder(stage) / "started.json", context)
    for needed in stage.needs:
        if not is_done(needed, context):
            why = failure(needed, context) or {"status": "missing", "reason": "it is not done; run it first"}
            kind = {"diverged": Diverged, "interrupted": Interrupted}.get(why["status"], ValueError)
            raise kind(f"needs {needed.key} ({needed.label}), {why['status']}: {why['reason']}")
        check_files(needed, context)
    if isinstance(stage, Base):
        do_base(stage, context, watch)
    elif isinstance(stage, Learned):
        do_learned(stage, context, watch)
    elif isinstance(stage, Pruned):
        do_pruned(stage, context, watch)
    else:
        from suite.run.timed_stage import do_timed  # scipy.stats takes a fifth of the time in which a job starts

        do_timed(stage, context, watch)


def _pin_threads(path: Path, context: Context) -> None:
    """A stage keeps the number of threads that it was started with, because sums depend on it."""
    try:
        threads = int(json.loads(path.read_text())["threads"])
    except (OSError, ValueError, KeyError, TypeError):
        threads = context.threads or cores()
        write_json(path, {"threads": threads})
    torch.set_num_threads(threads)


def cores() -> int:
    """The cores that this process may use: in a SLURM job, those of its task."""
    return int(os.environ.get("SLURM_CPUS_PER_TASK", 0)) or len(os.sched_getaffinity(0))
