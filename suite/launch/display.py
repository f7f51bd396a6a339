"""Display of a view: once, until nothing runs, or beside a launcher."""

from __future__ import annotations

import contextlib
import functools
import time
from collections import Counter
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from suite.launch import picture
from suite.launch.picture import STYLES
from suite.launch.status import state_of
from suite.launch.view import View
from suite.run import Outcome, failed_need
from suite.stages import Stage

REFRESH_S = 2.0
LOOK_S = 1.0
"""Shortest interval between two looks of a launcher at the folders."""
LINE_S = 15.0
"""Interval of the lines about running stages if there is no terminal."""
WIDTH = 160
"""Columns if there is no terminal."""


class Display:
    """Picture beside a launcher: live in a terminal; elsewhere a line for each ended stage.

    count  number of stages that this launch does
    """

    def __init__(self, view: View, count: int, *, console: Console) -> None:
        self.view = view
        self.count = count
        self.console = console
        self.outcomes: Counter[Outcome] = Counter()
        self.failed: set[str] = set()
        """Keys of the stages that failed."""
        self.live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._left_at = 0.0
        self._due_at = 0.0 if self.live else time.monotonic() + LINE_S

    def __enter__(self) -> Self:
        if self.live:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.stop()

    def ended(self, stage: Stage, outcome: Outcome) -> None:
        """Print one line about a stage that has ended; none if its need failed."""
        self.outcomes[outcome] += 1
        state = state_of(stage, self.view.context)
        reason = str(state.about.get("reason", "")) if state and outcome in ("failed", "diverged") else ""
        if outcome in ("failed", "diverged"):
            self.failed.add(stage.key)
        if failed_need(reason) in self.failed:
            return
        spent = f"  {state.seconds:.1f} s" if state and state.seconds is not None else ""
        number = f"[{self.outcomes.total()}/{self.count}]"
        left_s = None if self.live else self._left_s()
        left = f"; about {picture.minutes(left_s)} left" if left_s else ""
        line = Text.assemble(
            f"{number:>9} ", (f"{outcome:11}", STYLES[outcome]), f" {stage.kind:8} {stage.label}{spent}{left}"
        )
        behind = self._waiting[stage.key] if reason else 0
        for text in (picture.printable(reason), picture.about_waiting(behind)):
            line.append(f"\n          {text}" if text else "", "red")
        (self.live.console if self.live else self.console).print(line, soft_wrap=True)

    @functools.cached_property
    def _waiting(self) -> Counter[str]:
        """Key -> number of stages behind it, counted at the first failure."""
        return picture.waiting(self.view.observer.stages)

    def _left_s(self) -> float | None:
        """Return the estimated seconds of the remaining stages.

        None if the time is unknown, or was given less than `LINE_S` ago.
        """
        if time.monotonic() < self._left_at:
            return None
        self._left_at = time.monotonic() + LINE_S
        self.view.look()
        return self.view.left_s(at_least=1)

    def note(self, line: str) -> None:
        """Print a line that stays."""
        (self.live.console if self.live else self.console).print(Text(line), soft_wrap=True)

    def refresh(self) -> None:
        """Look and draw if due; cheap otherwise."""
        if time.monotonic() >= self._due_at:
            self.look()

    def look(self) -> None:
        """Look now, and draw if due."""
        began = time.monotonic()
        self.view.look()
        if began >= self._due_at:
            self._draw()
            self._due_at = began + max(LOOK_S if self.live else LINE_S, 3 * (time.monotonic() - began))

    def _draw(self) -> None:
        """Draw the last look; without a terminal, print a line about each running stage."""
        if self.live:
            self.live.update(Group(*picture.brief(self.view)), refresh=True)
            return
        for state in self.view.states:
            if state.name == "running":
                line = f"{'':9} running     {state.stage.kind:8} {state.stage.label}  {picture.doing_line(state)}"
                self.console.print(Text(line), soft_wrap=True)


def show(view: View, console: Console) -> int:
    """Print the full picture once, and return the exit status."""
    view.look()
    for item in picture.full(view):
        console.print(item, soft_wrap=not isinstance(item, Table))
    return view.exit_status


def follow(view: View, console: Console) -> int:
    """Draw the full picture until nothing runs or waits.

    Without a terminal, print a line if the counts change.
    """
    printed = ""
    if not console.is_terminal:
        for _ in _looks(view):
            line = picture.summary(view)
            if (now := line.partition(";")[0]) != printed:
                printed = now
                console.print(line, markup=False, highlight=False)
    else:
        with contextlib.suppress(KeyboardInterrupt), Live(console=console, auto_refresh=False, screen=True) as live:
            for _ in _looks(view):
                live.update(Group(*picture.full(view)), refresh=True)
    return show(view, console)


def _looks(view: View) -> Iterator[None]:
    """Look until nothing runs or waits, with pauses of twice a look's duration."""
    while True:
        began = time.monotonic()
        view.look()
        took_s = time.monotonic() - began
        if not view.goes_on:
            return
        yield
        time.sleep(max(REFRESH_S, 2 * took_s))
