"""Text and tables of a view: counts, running stages, failures."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from suite.files import short_path
from suite.launch import heartbeat, record
from suite.launch.record import Launch
from suite.launch.status import NAMES, State, counts, launcher_lives, stage_left_s
from suite.launch.view import View
from suite.run import Context, failed_need
from suite.stages import Stage, in_order

STYLES = {
    "done": "green",
    "running": "cyan",
    "failed": "red",
    "diverged": "red",
    "lost": "red",
    "interrupted": "yellow",
}
TAIL_LINES, TAIL_BYTES = 4, 4096


def summary(view: View) -> str:
    """Return one line: the number of stages in each state, and the time left."""
    count = Counter(state.name for state in view.states)
    parts = [f"{count[name]:,} {name}" for name in NAMES if count[name]]
    left_s = view.left_s()
    left = f"; about {minutes(left_s)} left" if left_s is not None else ""
    return f"{view.name}: {len(view.states):,} stages: {', '.join(parts)}{left}"


def brief(view: View) -> Iterator[RenderableType]:
    """Yield counts, SLURM's reasons to wait, and the running stages."""
    yield Text(summary(view), style="bold")
    if view.silent:
        yield Text("SLURM does not answer squeue: it is unknown which jobs wait or run", style="yellow")
    for reason, count in view.held.most_common():
        yield Text(f"SLURM lets {count:,} jobs wait: {reason}", style="yellow")
    if view.suspended:
        jobs = " ".join(view.suspended[:9])
        count = len(view.suspended)
        yield Text(f"{count:,} jobs are suspended; `scontrol resume JOB` continues them: {jobs}", style="yellow")
    for line in heartbeat.lines(view.running, view.context):
        yield Text(line, style="yellow")
    yield _counted(view.states)
    if running := [state for state in view.states if state.name == "running"]:
        yield _running(running)


def full(view: View) -> Iterator[RenderableType]:
    """Yield the brief picture, the launch, and what failed, was lost or interrupted."""
    first, *rest = brief(view)
    yield first
    yield Text(_launched(view.launch, view.context.results), style="dim")
    yield from rest
    yield from _failures(view)


def _failures(view: View) -> Iterator[Text]:
    """Yield failed, lost and interrupted stages; a log's end once for each reason.

    Stages that failed because one of these did are counted below it.
    """
    shown: set[tuple[str, str]] = set()
    ended = {state.stage.key: state for state in view.states if state.name in ("failed", "lost", "interrupted")}
    behind = waiting(state.stage for state in view.states if state.name != "done") if ended else Counter()
    for state in ended.values():
        reason = str(state.about.get("reason") or f"no report since {_when(state)}")
        if failed_need(reason) in ended:
            continue
        end = view.ended.get(state.job, "") if state.name == "lost" else ""
        job_end = f"its job {state.job} ended as {end}; " if end else ""
        yield Text.assemble((f"{state.name:11} ", STYLES[state.name]), f"{state.stage.key} {state.stage.label}")
        yield Text(f"{'':12}{job_end}{printable(reason)}")
        if line := about_waiting(behind[state.stage.key]):
            yield Text(f"{'':12}{line}")
        log = log_of(state, view.context) if state.name != "interrupted" else None
        if log is not None:
            yield Text(f"{'':12}{short_path(log)}", style="dim")
            if (end, reason) not in shown:
                yield from (Text(f"{'':12}| {line}", style="dim") for line in tail(log))
            shown.add((end, reason))


def waiting(stages: Iterable[Stage]) -> Counter[str]:
    """Return key -> number of these stages that need the stage, directly or not."""
    return Counter(need.key for stage in stages for need in in_order(stage.needs))


def about_waiting(count: int) -> str:
    """Return a line about the stages behind a failed one; "" if there is none."""
    return "" if not count else "1 stage waits for it" if count == 1 else f"{count:,} stages wait for it"


def _launched(launch: Launch | None, results: Path) -> str:
    if launch is None:
        return f"there is no launch of it in {record.folder(results)}"
    when = time.strftime("%F %T", time.localtime(launch.time))
    life = "still at work" if launcher_lives(launch, results) else "no longer there"
    if launch.cluster == "slurm":
        life += f"; {len(set(launch.jobs.values())):,} jobs"
    commit = launch.commit[:12] + (" with changes" if launch.dirty else "")
    return f"launched {when} ({launch.cluster}, commit {commit}) by process {launch.pid} on {launch.host}, {life}"


def _counted(states: Sequence[State]) -> Table:
    """Return a table: number of stages by kind and state."""
    table = Table("stage", *NAMES, "all", box=None, header_style="dim")
    for kind, count in counts(states).items():
        numbers = (Text(f"{count[name]:,}" if count[name] else "", style=STYLES.get(name, "")) for name in NAMES)
        table.add_row(kind, *numbers, f"{count.total():,}")
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def _running(states: Sequence[State]) -> Table:
    """Return a table: one line for each running stage."""
    table = Table("running", "run", "doing", "epoch", "train top-1", "left", "where", box=None, header_style="dim")
    for state in states:
        doing, epoch, accuracy = _doing(state)
        left_s = stage_left_s(state)
        host = str(state.about.get("host", ""))
        process = f"job {state.job}" if state.job else f"process {state.about.get('pid', '?')}"
        table.add_row(
            Text(state.stage.key),
            Text(state.stage.label),
            Text(doing),
            epoch,
            accuracy,
            minutes(left_s) if left_s is not None else "",
            Text(" ".join(word for word in (host, process) if word)),
        )
    return table


def _doing(state: State) -> tuple[str, str, str]:
    """Return activity, epoch and training accuracy of a running stage; "" if not reported."""
    about = state.about
    epoch = f"{about['epoch']}/{about['epochs']}" if "epoch" in about and "epochs" in about else ""
    top1_pct = about.get("train_top1_pct")
    return printable(str(about.get("doing", "starting"))), epoch, f"{top1_pct:.1f} %" if top1_pct is not None else ""


def doing_line(state: State) -> str:
    """Return activity, epoch and training accuracy in one line."""
    doing, epoch, accuracy = _doing(state)
    return ", ".join([doing, *([f"epoch {epoch}"] if epoch else []), *([f"train {accuracy}"] if accuracy else [])])


def _when(state: State) -> str:
    when = state.about.get("time")
    return time.strftime("%F %T", time.localtime(when)) if when else "it was submitted"


def log_of(state: State, context: Context) -> Path | None:
    """Return the stage's log, else its job's stderr; None if both are empty."""
    paths = [context.folder(state.stage) / "log.txt"]
    if state.job:
        paths.append(record.log_of(context.results, state.job))
    return next((path for path in paths if path.is_file() and path.stat().st_size), None)


def tail(path: Path) -> list[str]:
    """Return the last lines of a log, printable."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        lines = file.read().decode(errors="replace").splitlines()
    return [printable(line) for line in lines if line.strip()][-TAIL_LINES:]


def printable(text: str) -> str:
    """Return the text with control characters, such as terminal escapes, as `\\x1b`."""
    return "".join(letter if letter.isprintable() or letter == "\t" else ascii(letter).strip("'\"") for letter in text)


def minutes(seconds: float) -> str:
    """Return a duration for people: 40 s, 12 min, 3.5 h, 2.1 days, 12 years."""
    if seconds >= 2 * 365 * 86400:
        return f"{seconds / (365 * 86400):,.0f} years"
    for unit, size in (("days", 86400), ("h", 3600)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"
