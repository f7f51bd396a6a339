"""What the user sees while a grid runs: which stages run, how far they are, what is done, how long it takes."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from suite import progress
from suite.run import Context, Outcome, failure
from suite.stages import Stage

STYLES = {"done": "green", "failed": "red", "diverged": "red", "interrupted": "yellow"}
LINE_S = 15
"""Without a terminal, a line about the running stages is written this often."""


class Display:
    """A live table in a terminal; elsewhere a line for each finished stage.

    stages  what is to be done; `already` of the grid's stages were done before
    jobs    stages at a time, latency alone; None for as many as SLURM runs
    """

    def __init__(
        self, stages: Sequence[Stage], context: Context, *, already: int, jobs: int | None, console: Console
    ) -> None:
        self.context = context
        self.console = console
        self.jobs = jobs
        self.total, self.already = len(stages), already
        self.left = Counter(stage.kind for stage in stages)
        self.seconds: dict[str, list[float]] = {kind: [] for kind in self.left}
        self.running: dict[str, tuple[Stage, float]] = {}
        self.outcomes: Counter[Outcome] = Counter()
        self.live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._line_at = time.monotonic() + LINE_S

    def __enter__(self) -> Self:
        if self.live:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.stop()

    def started(self, stage: Stage) -> None:
        """A stage has begun."""
        self.running[stage.key] = stage, time.monotonic()

    def finished(self, stage: Stage, outcome: Outcome) -> None:
        """A stage has ended: one line stays on the screen."""
        _, began = self.running.pop(stage.key)
        spent = time.monotonic() - began
        self.outcomes[outcome] += 1
        self.left[stage.kind] -= 1
        if outcome == "done":
            self.seconds[stage.kind].append(spent)
        count = f"[{sum(self.outcomes.values())}/{self.total}]"
        why = failure(stage, self.context) if outcome in ("failed", "diverged") else None
        line = Text.assemble(
            f"{count:>9} ", (f"{outcome:11}", STYLES[outcome]), f" {stage.kind:8} {stage.label}  {spent:.1f} s"
        )
        if why:
            line.append(f"\n          {why['reason']}", "red")
        (self.live.console if self.live else self.console).print(line, soft_wrap=True)

    def refresh(self) -> None:
        """Draw the picture anew."""
        if self.live:
            self.live.update(Group(self._bar(), self._table()), refresh=True)
        elif time.monotonic() >= self._line_at:
            self._line_at = time.monotonic() + LINE_S
            for stage, _ in self.running.values():
                self.console.print(
                    f"{'':9} running     {stage.kind:8} {stage.label}  {self._doing(stage)}", soft_wrap=True
                )

    def _doing(self, stage: Stage) -> str:
        state = progress.read(self.context.folder(stage) / "progress.json")
        parts = [str(state.get("doing", "starting"))]
        if "epochs" in state:
            parts.append(f"epoch {state['epoch']}/{state['epochs']}")
        if state.get("train_top1_pct") is not None:
            parts.append(f"train {state['train_top1_pct']:.1f} %")
        return ", ".join(parts)

    def time_left_s(self) -> float | None:
        """From the mean time of the stages of each kind so far; None before each kind that is left was seen."""
        total, at_a_time = 0.0, self.jobs or max(1, len(self.running))
        for kind, count in self.left.items():
            if count and not self.seconds[kind]:
                return None
            if count:
                total += (
                    count * statistics.mean(self.seconds[kind]) / (1 if self.jobs and kind == "timed" else at_a_time)
                )
        for stage, began in self.running.values():
            if self.seconds[stage.kind]:
                total -= min(time.monotonic() - began, statistics.mean(self.seconds[stage.kind])) / at_a_time
        return max(total, 0.0)

    def _bar(self) -> Table:
        ended = sum(self.outcomes.values())
        left = self.time_left_s()
        parts = [f"{count} {outcome}" for outcome, count in self.outcomes.items()]
        before = f" ({self.already} were done before)" if self.already else ""
        row = Table.grid(padding=(0, 2))
        row.add_row(
            ProgressBar(total=self.total, completed=ended, width=30),
            f"{ended}/{self.total} stages{before}",
            ", ".join(parts),
            f"about {minutes(left)} left" if left is not None else "time left: not known yet",
        )
        return row

    def _table(self) -> Table:
        table = Table("stage", "run", "doing", "epoch", "train top-1", "left", box=None, header_style="dim")
        for stage, began in self.running.values():
            state = progress.read(self.context.folder(stage) / "progress.json")
            share, accuracy = state.get("share") or 0.0, state.get("train_top1_pct")
            spent = time.monotonic() - began
            table.add_row(
                stage.kind,
                stage.label,
                str(state.get("doing", "starting")),
                f"{state['epoch']}/{state['epochs']}" if "epochs" in state else "",
                f"{accuracy:.1f} %" if accuracy is not None else "",
                minutes(spent * (1 - share) / share) if share else "",
            )
        return table


def minutes(seconds: float) -> str:
    """A duration for people: 40 s, 12 min, 3.5 h, 2.1 days."""
    for unit, size in (("days", 86400), ("h", 3600)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"
