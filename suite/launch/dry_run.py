"""Dry run: work of a launch, with its cost in epochs, hours and disk."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from suite.launch import cost, picture
from suite.launch.work import Work, emulated
from suite.run import Context, failure


def show(work: Work, context: Context, console: Console, *, fetch: str, jobs: int, stages: bool = False) -> int:
    """Print counts and cost by network and method; return 0.

    Nothing is downloaded, written or trained. Neither data nor weights are needed.

    fetch   the command that downloads missing data and public weights
    jobs    stages at a time
    stages  list the stages, too
    """
    if stages:
        _list(work, context, console)
    kinds = Counter(stage.kind for stage in work.todo)
    alone = f", {len(work.left_alone)} left alone" if work.left_alone else ""
    console.print(
        f"{len(work.stages)} stages, {work.done} done, {len(work.todo)} to do "
        f"({', '.join(f'{n} {kind}' for kind, n in kinds.items()) or 'none'}){alone}",
        highlight=False,
    )
    reasons = Counter([*work.left_alone.values(), *work.again.values()])
    for reason, number in reasons.items():
        console.print(f"{number} stages: {reason}", markup=False, highlight=False)
    for line in _precisions(work, context):
        console.print(f"precision: {line}", markup=False, highlight=False)
    missing = cost.missing(work.todo, context)
    for message in missing:
        console.print(f"missing: {message}", markup=False, highlight=False)
    if any(missing.values()):
        console.print(f"to fetch: {fetch}", markup=False, highlight=False)
    refused = cost.refused(work.todo, context)
    for message in refused:
        console.print(f"refused: {message}", markup=False, highlight=False)
    if not refused:
        _show_cost(work, context, console, jobs)
    return 0


def _precisions(work: Work, context: Context) -> list[str]:
    """Return a line for each precision that this machine emulates or lacks."""
    try:
        return emulated(work.todo, context)
    except ValueError as error:
        return [str(error)]


def _list(work: Work, context: Context, console: Console) -> None:
    keys = {stage.key for stage in work.todo}
    for stage in work.stages:
        failed = failure(stage, context) if stage.key in keys else None
        state = (
            work.left_alone.get(stage.key) or work.again.get(stage.key) or ("to do" if stage.key in keys else "done")
        )
        if failed:
            state = f"{failed['status']} before: {failed['reason']}"
        console.print(f"{stage.key:22} {stage.label}  [{state}]", markup=False, highlight=False)
    console.print()


def _show_cost(work: Work, context: Context, console: Console, jobs: int) -> None:
    """Print a table for each network, with a line for each method, and the total.

    On a CPU the title has its time beside GPU-hours, and a column the time of a row if the speed of training was measured there.
    """
    if not work.todo:
        return
    on_gpu = dataclasses.replace(context, device="cuda")
    try:
        estimates = [cost.Estimator.make(work.stages, on_gpu)]
        if context.device != "cuda":
            estimates.append(cost.Estimator.make(work.stages, context, jobs=jobs))
        lines = list(zip(*(cost.lines(work.todo, estimate) for estimate in estimates), strict=True))
    except (ValueError, OSError) as error:  # a data set of a plug-in that states no size, and is missing
        console.print(f"cost: not known: {error}", markup=False, highlight=False)
        return
    for network in dict.fromkeys(line.network for line, *_ in lines):
        console.print(_table([both for both in lines if both[0].network == network], jobs))
    plain: dict[str, Any] = {"highlight": False, "markup": False}
    gpu, *cpu = (sum((line.cost for line in each), cost.Cost()) for each in zip(*lines, strict=True))
    console.print(
        f"cost: {gpu.training_macs / 1e15:,.4g} PetaMACs of training, about {_hours(gpu)} GPU-hours on one "
        f"{estimates[0].device}, were every network as slow as its dense one, all seeds together",
        **plain,
    )
    for total, estimate in zip(cpu, estimates[1:], strict=True):
        console.print(
            f"here: about {_time(total, jobs)} on {estimate.device}, {jobs} stage{'s' * (jobs > 1)} at a time; "
            f"speed: {estimate.source}",
            **plain,
        )
    console.print(
        f"disk: {_gb(gpu)} GB of weights; checkpoints take two to three times a network's weights for each running stage",
        **plain,
    )
    console.print(f"speed of the GPU: {estimates[0].source}", **plain)


def _table(lines: Sequence[tuple[cost.Line, ...]], jobs: int) -> Table:
    """Return a table of one network that fits into 80 characters.

    lines  of a method, with the costs on a GPU and, unless stages run on a GPU, on this CPU
    h/row is of a GPU, here/row of this CPU with `jobs` stages at a time.
    """
    gpu, *cpu = (sum((line.cost for line in each), cost.Cost()) for each in zip(*lines, strict=True))
    measured = any(line.measured for _, *on_cpu in lines for line in on_cpu)
    speed = "" if measured else ", at a stated speed"
    beside = "".join(f", {_time(total, jobs)} here{speed}" for total in cpu)
    table = Table(
        title=Text(f"{lines[0][0].network}: {_hours(gpu)} GPU-hours{beside}"),
        title_justify="left",
        box=box.SIMPLE,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("method", overflow="fold", min_width=18)
    table.add_column("budgets %", overflow="fold")
    table.add_column("epochs", overflow="fold")
    for heading in ("rows", "h/row", *["here/row"] * measured, "GPU-h", "GB"):
        table.add_column(heading, justify="right", no_wrap=True)
    for line, *on_cpu in lines:
        rows, *each = (str(line.rows), _hours(line.row)) if line.rows else ("", "")
        each += [_time(own.row, jobs) if own.rows and own.measured else "" for own in on_cpu] * measured
        row = (line.method, ", ".join(line.budgets), line.epochs, rows, *each, _hours(line.cost), _gb(line.cost))
        table.add_row(*map(Text, row))
    return table


def _time(cost_of: cost.Cost, jobs: int) -> str:
    return picture.minutes(cost_of.seconds / jobs)


def _gb(cost_of: cost.Cost) -> str:
    return f"{cost_of.disk_bytes / 1e9:,.3g}"


def _hours(cost_of: cost.Cost) -> str:
    hours = cost_of.seconds / 3600
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"
