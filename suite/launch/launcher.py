"""One launch of a grid: its stages, then its report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from suite import prefetch, records
from suite.files import remove_parts
from suite.launch import cost, local, picture, record, slurm, snapshot, work
from suite.launch.display import Display
from suite.launch.options import Options
from suite.launch.view import View
from suite.launch.work import Work
from suite.run import Context, Outcome, failed_need, failure, forget, forget_failures
from suite.stages import Stage


@dataclass(frozen=True, kw_only=True)
class Launcher:
    """Settings of a launch.

    grid     its name or file, as given by the user
    name     of its launch file
    cluster  "local", "slurm" or "debug"
    every    all stages of the grid, those that --only leaves out, too
    options  of SLURM; None for the other clusters
    jobs     stages at a time on this machine
    beside   "reference" to report the project's tracked rows too, or ""
    """

    grid: str
    name: str
    cluster: str
    every: Sequence[Stage]
    options: Options | None
    jobs: int
    context: Context
    console: Console
    smoke: bool
    beside: str
    retry_failed: bool

    def launch(self, todo: Work) -> int:
        """Do the work and build the report; return the exit status."""
        if todo.todo:
            if unknown := cost.unknown_layers(todo.todo, self.context):
                raise ValueError("; ".join(unknown))
            folder = self.context.data
            absent = folder is not None and not folder.is_dir()  # a mistyped folder is not made and filled
            problems = [] if absent else prefetch.fetch(todo.stages, folder)
            if problems := problems or work.missing_data(todo.stages, self.context):
                start = [f"--data {folder}: there is no such folder"] if absent else []
                raise ValueError("; ".join([*start, *problems]))
        for line in () if self.options else work.emulated(todo.todo, self.context):
            self._print(f"{self.grid}: {line}")
        with work.alone(self.context.results, self.name):
            outcomes = self._run(todo)
        return self._summary(todo, outcomes)

    def _run(self, todo: Work) -> dict[str, Outcome]:
        """Do the stages, and return the outcome of each that has ended."""
        results = self.context.results
        before = record.read_or_set_aside(results, self.name)
        if line := work.changes(before, self.every):
            self._print(f"{self.grid}: {line}")
        for line in todo.remarks:
            self._print(f"{self.grid}: {line}")
        if not todo.todo:
            nothing = "nothing to do" if not todo.left_alone else f"{len(todo.left_alone)} are left alone"
            self._print(f"{self.grid}: {todo.done} of {len(todo.stages)} stages are done; {nothing}")
            return {}
        source = snapshot.take(results) if self.options else None
        name, jobs = source.name if source else "", before.jobs if before else {}
        launch = record.begin(self.name, self.cluster, self.every, snapshot=name, jobs=jobs, todo=todo.todo)
        record.write(launch, results)
        for stage in todo.todo:
            if stage.key in todo.again:
                forget(stage, self.context)
        for stage in todo.todo if self.retry_failed else ():
            forget_failures(stage, self.context)
        how = "as SLURM jobs" if self.options else f"{min(self.jobs, len(todo.todo))} at a time"
        self._print(f"{self.grid}: {len(todo.todo)} of {len(todo.stages)} stages to do, {how} on {self.context.device}")
        view = View(self.name, todo.stages, self.context, ask_every_s=slurm.QUEUE_S if self.options else None)
        with Display(view, len(todo.todo), console=self.console) as display:
            if self.options and source:
                return slurm.run(todo.todo, self.context, display, launch, options=self.options, source=source)
            if self.cluster == "debug":
                return local.run_here(todo.todo, self.context, display)
            return local.run(todo.todo, self.context, display, jobs=self.jobs)

    def _summary(self, todo: Work, outcomes: dict[str, Outcome]) -> int:
        """Build the report, print failures and written files, and return the exit status."""
        from suite import report  # pandas and matplotlib take 100 MB, which the workers need not pay

        for folder in (records.rows_folder(self.context.results), self.context.results / self.name):
            remove_parts(folder)
        built = report.build(self.grid, self.context.results, smoke=self.smoke, beside=self.beside)
        bad = [stage for stage in todo.todo if outcomes.get(stage.key) in ("failed", "diverged")]
        undone = [stage for stage in todo.todo if outcomes.get(stage.key) in (None, "interrupted")]
        failures = [
            failure(stage, self.context) or {"status": "failed", "reason": "no reason was left"} for stage in bad
        ]
        own = self._show(bad, [(str(about["status"]), str(about["reason"])) for about in failures])
        alone = [stage for stage in todo.stages if stage.key in todo.left_alone]
        self._show(alone, [("left alone", todo.left_alone[stage.key]) for stage in alone])
        report.show(built, self.console)
        if todo.waiting:
            self._print(f"{todo.waiting} networks are not done yet, so their latency was not measured")
        if bad or undone:
            behind = f", {len(bad) - own} wait for a failed one" if len(bad) > own else ""
            self._print(f"{own} failed{behind}, {len(undone)} not reached; run the same command again to do just these")
        return 1 if bad or todo.left_alone else 75 if undone else 0

    def _show(self, stages: Sequence[Stage], ends: Sequence[tuple[str, str]]) -> int:
        """Print status and reason of each stage, and return the number of lines.

        Stages that one of them took along are a count in its line.
        """
        keys, behind = {stage.key for stage in stages}, picture.waiting(stages)
        own = [(stage, end) for stage, end in zip(stages, ends, strict=True) if failed_need(end[1]) not in keys]
        for stage, (word, reason) in own:
            count = picture.about_waiting(behind[stage.key])
            text = f": {stage.label}: {picture.printable(reason)}" + (f" ({count})" if count else "")
            self.console.print(Text.assemble((word, "red"), text))
        return len(own)

    def _print(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False)
