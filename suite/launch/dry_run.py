"""Dry run: the work of a launch and its cost in epochs, GPU-hours and disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from suite.launch import cost
from suite.launch.work import Work
from suite.run import Context, failure


def show(work: Work, context: Context, console: Console, *, fetch: str, stages: bool = False) -> int:
    """Print counts and cost by network and method; return 0.

    Nothing is downloaded, written or trained. Neither data nor weights are needed.

    fetch   the command that downloads missing data
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
    missing = cost.missing(work.todo, context)
    for message in missing:
        console.print(f"missing: {message}", markup=False, highlight=False)
    if missing:
        console.print(f"to fetch: {fetch}", markup=False, highlight=False)
    _show_cost(work, context, console)
    return 0


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


def _show_cost(work: Work, context: Context, console: Console) -> None:
    """Print a table for each network, with a line for each method, and the total."""
    if not work.todo:
        return
    try:
        estimate = cost.Estimator.make(work.stages, context)
        lines = cost.lines(work.todo, estimate)
    except (ValueError, OSError) as error:  # a data set of a plug-in that states no size, and is missing
        console.print(f"cost: not known: {error}", markup=False, highlight=False)
        return
    for network in dict.fromkeys(line.network for line in lines):
        console.print(_table(network, [line for line in lines if line.network == network]))
    total = sum((line.cost for line in lines), cost.Cost())
    console.print(
        f"cost: {total.training_macs / 1e15:,.4g} PetaMACs of training, about {_hours(total)} GPU-hours on one "
        f"{estimate.device}, were every network as slow as its dense one, all seeds together",
        highlight=False,
        markup=False,
    )
    console.print(
        f"disk: {_gb(total)} GB of weights; checkpoints take two to three times a network's weights for each running stage",
        highlight=False,
        markup=False,
    )
    console.print(f"speed: {estimate.source}", highlight=False, markup=False)


def _table(network: str, lines: Sequence[cost.Line]) -> Table:
    """Return a table of one network that fits into 80 characters."""
    title = Text(f"{network}: {_hours(sum((line.cost for line in lines), cost.Cost()))} GPU-hours")
    table = Table(title=title, title_justify="left", box=box.SIMPLE, pad_edge=False)
    table.add_column("method", overflow="fold", min_width=18)
    table.add_column("budgets %", overflow="fold")
    table.add_column("epochs", overflow="fold")
    for heading in ("rows", "h/row", "GPU-h", "GB"):
        table.add_column(heading, justify="right", no_wrap=True)
    for line in lines:
        rows, each = (str(line.rows), _hours(line.row)) if line.rows else ("", "")
        row = (line.method, ", ".join(line.budgets), line.epochs, rows, each, _hours(line.cost), _gb(line.cost))
        table.add_row(*map(Text, row))
    return table


def _gb(cost_of: cost.Cost) -> str:
    return f"{cost_of.disk_bytes / 1e9:,.3g}"


def _hours(cost_of: cost.Cost) -> str:
    hours = cost_of.seconds / 3600
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"
