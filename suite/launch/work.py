"""What a launch has to do: which stages are done, which are left alone, which are to be done."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from suite import lease
from suite.launch import record
from suite.launch.record import Launch
from suite.run import Context, given_up, is_done, repair
from suite.stages import Stage, Timed


@dataclass(frozen=True, kw_only=True)
class Work:
    """The stages of a launch, and those of them that are to be done.

    left_alone  key -> why it is not tried: it failed in the same way too often, or needs one that did
    waiting     latency that cannot be measured yet: its network is not done
    """

    stages: tuple[Stage, ...]
    todo: tuple[Stage, ...]
    left_alone: dict[str, str]
    waiting: int = 0

    @property
    def done(self) -> int:
        """How many are done."""
        return len(self.stages) - len(self.todo) - len(self.left_alone) - self.waiting


def of(
    stages: Sequence[Stage], context: Context, *, retry_failed: bool, only_timing: bool, change_nothing: bool = False
) -> Work:
    """Look at every stage's folder. `only_timing` leaves out all but latency, and that of networks that are not there yet.

    What is damaged is set aside, and rows that are gone are written again, unless `change_nothing`.
    """
    for stage in () if change_nothing else stages:
        repair(stage, context)
    missing = {stage.key: stage for stage in stages if not is_done(stage, context)}
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
    return Work(stages=tuple(stages), todo=todo, left_alone=left_alone, waiting=waiting)


@contextmanager
def alone(results: Path, grid: str) -> Iterator[None]:
    """Launch this grid alone. Raises ValueError when the results cannot be written, or when another launcher is at it."""
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

    with lease.held(folder / f"{grid}.lease", waiting=waiting, lost=lambda: None):
        yield


def changes(before: Launch | None, stages: Sequence[Stage]) -> str:
    """How the grid differs from what it was at its last launch; "" when it does not. Rows of stages that stayed are valid."""
    now = {stage.key: stage.label for stage in stages}
    if before is None:
        return ""
    new = [label for key, label in now.items() if key not in before.stages]
    gone = [label for key, label in before.stages.items() if key not in now]
    if not new and not gone:
        return ""
    parts = []
    for found, word in ((new, "new"), (gone, "gone")):
        if found:
            parts.append(f"{len(found)} {word} ({found[0]}{', ...' if found[1:] else ''})")
    when = time.strftime("%F %T", time.localtime(before.time))
    return (
        f"the grid has changed since its launch of {when}: stages {', '.join(parts)}; "
        f"the rows of the other {len(now) - len(new)} stay valid"
    )
