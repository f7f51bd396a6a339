"""Work of a launch: stages done, left alone, and to be done."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from suite import arithmetic, data, lease, models, weights
from suite.launch import record
from suite.launch.record import Launch
from suite.registry import pick_plugin
from suite.run import Context, code, given_up, repair
from suite.run.folder import DamagedError, has_checkpoint, output
from suite.stages import Base, Stage, Timed


@dataclass(frozen=True, kw_only=True)
class Work:
    """The stages of a launch, and those of them that are to be done.

    left_alone  key -> reason why the stage is not tried: it, or a stage that it needs, was given up
    waiting     number of timed stages whose network is not done yet
    again       key -> reason why the stage, which is done or has begun, is to be done again
    outdated    imported file that has changed -> number of stages that were done with its earlier code and stay
    """

    stages: tuple[Stage, ...]
    todo: tuple[Stage, ...]
    left_alone: dict[str, str]
    waiting: int = 0
    again: dict[str, str] = field(default_factory=dict)
    outdated: dict[str, int] = field(default_factory=dict)

    @property
    def remarks(self) -> list[str]:
        """Lines about stages that are done again, and stages with outdated imports."""
        reasons = Counter(reason for reason in self.again.values() if not reason.startswith("needs "))
        lines = [f"{number} stages are done again: {reason}" for reason, number in reasons.items()]
        return lines + [
            f"{number} stages were done with other code of {label}, which they import; they stay (--redo TEXT repeats stages)"
            for label, number in self.outdated.items()
        ]

    @property
    def done(self) -> int:
        """Number of stages that are done."""
        return len(self.stages) - len(self.todo) - len(self.left_alone) - self.waiting


def find(
    stages: Sequence[Stage],
    context: Context,
    *,
    retry_failed: bool,
    only_timing: bool,
    change_nothing: bool = False,
    redo: str | None = None,
) -> Work:
    """Read every stage's folder, and return the work.

    only_timing     leave out all but the timed stages of finished networks
    change_nothing  do not set damaged outputs aside, nor write missing rows again
    redo            text in the label or key of stages that are done again

    Raises ValueError if `redo` fits no stage.
    """
    if redo is not None and not any(_named(stage, redo) for stage in stages):
        raise ValueError(
            f"--redo {redo} fits no stage of this grid: take text of a label or key, which --dry-run --stages prints"
        )
    for stage in () if change_nothing else stages:
        repair(stage, context)
    missing, again, outdated = _missing(stages, context, redo)
    waiting = 0
    if only_timing:
        stages = [stage for stage in stages if isinstance(stage, Timed)]
        ready = {stage.key for stage in stages if all(need.key not in missing for need in stage.needs)}
        waiting = len(stages) - len(ready)
        missing = {key: stage for key, stage in missing.items() if key in ready}
    left_alone: dict[str, str] = {}
    for stage in () if retry_failed else missing.values():
        behind = next((need for need in stage.needs if need.key in left_alone), None)
        if why := given_up(stage, context):
            left_alone[stage.key] = why
        elif behind is not None:
            left_alone[stage.key] = f"needs {behind.key}, which was given up"
    todo = tuple(stage for stage in missing.values() if stage.key not in left_alone)
    again = {stage.key: again[stage.key] for stage in todo if stage.key in again}
    return Work(stages=tuple(stages), todo=todo, left_alone=left_alone, waiting=waiting, again=again, outdated=outdated)


def _missing(
    stages: Sequence[Stage], context: Context, redo: str | None
) -> tuple[dict[str, Stage], dict[str, str], dict[str, int]]:
    """Return the stages without a current output by key, `Work.again` and `Work.outdated`."""
    missing: dict[str, Stage] = {}
    again: dict[str, str] = {}
    outdated: Counter[str] = Counter()
    for stage in stages:
        try:
            done = output(stage, context)
        except DamagedError:
            done = None
        if done is None:
            missing[stage.key] = stage
            if not has_checkpoint(stage, context):
                continue
        own, imported = code.changes(stage, done.get("code")) if done else ([], [])
        behind = next((need for need in stage.needs if need.key in again), None)
        if own:
            again[stage.key] = f"done with other code of {', '.join(own)}"
        elif redo is not None and _named(stage, redo):
            again[stage.key] = f"named by --redo {redo}"
        elif behind is not None:
            again[stage.key] = f"needs {behind.key}, which is done again"
        else:
            outdated.update(imported)
        if stage.key in again:
            missing[stage.key] = stage
    return missing, again, dict(outdated)


def _named(stage: Stage, text: str) -> bool:
    return text.lower() in stage.label.lower() or text in stage.key


def check_names(stages: Sequence[Stage]) -> None:
    """Raise ValueError if a model, a data set or public weights are unknown."""
    for base in (stage for stage in stages if isinstance(stage, Base)):
        models.builder(base.model)
        pick_plugin("data set", base.data, data.available())
        if base.weights:
            weights.check(base.weights)


def missing_data(stages: Sequence[Stage], context: Context) -> list[str]:
    """Return a line for each missing data set or file of weights."""
    messages = []
    for base in (stage for stage in stages if isinstance(stage, Base)):
        try:
            if base.weights:
                weights.find(base.weights, context.data)
            context.dataset(base)
        except (ValueError, OSError) as error:
            messages.append(str(error))
    return list(dict.fromkeys(messages))


def emulated(stages: Sequence[Stage], context: Context) -> list[str]:
    """Return a line for each precision of trainings that this CPU emulates.

    Raises ValueError if the device cannot compute in the precision of a training. The GPUs of SLURM's jobs are not checked.
    """
    device, lines = torch.device(context.device), []
    if device.type == "cuda" and not torch.cuda.is_available():
        return []
    counts = Counter(schedule.compute.precision for stage in stages if (schedule := stage.schedule))
    for precision, count in counts.items():
        arithmetic.require(precision, device)
        if line := arithmetic.emulation(precision, device):
            lines.append(f"{count} of {len(stages)} stages to do train in {precision}: {line}")
    return lines


@contextmanager
def alone(results: Path, grid: str) -> Iterator[None]:
    """Hold the grid's lock.

    Raises ValueError if the results cannot be written, or if another launcher holds the lock.
    """
    folder = record.folder(results)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"--results {results} cannot be written to ({reason}); name another folder") from error
    deadline = time.monotonic() + 2

    def waiting(owner: str) -> None:
        elsewhere = not owner.endswith(f" on {lease.host()}")
        if time.monotonic() > deadline + (lease.LEASE_S if elsewhere else 0):
            raise ValueError(
                f"{grid} is being launched already, by {owner}; watch it with --status, stop it with --cancel, or wait"
            )

    with lease.held(record.lease(results, grid), waiting=waiting, lost=lambda: None):
        yield


def changes(before: Launch | None, stages: Sequence[Stage]) -> str:
    """Return the grid's changes since its last launch in one line; else ""."""
    now = {stage.key: stage.label for stage in stages}
    if before is None:
        return ""
    new = [label for key, label in now.items() if key not in before.stages]
    removed = [label for key, label in before.stages.items() if key not in now]
    if not new and not removed:
        return ""
    parts = []
    for labels, word in ((new, "new"), (removed, "gone")):
        if labels:
            parts.append(f"{len(labels)} {word} ({labels[0]}{', ...' if labels[1:] else ''})")
    when = time.strftime("%F %T", time.localtime(before.time))
    return (
        f"the grid has changed since its launch of {when}: stages {', '.join(parts)}; "
        f"the rows of the other {len(now) - len(new)} stay valid"
    )
