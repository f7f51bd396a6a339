"""`python -m suite.launch`: all runs of a grid, then its tables and figures."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from suite import cli, grids, models, prefetch, weights
from suite import data as datasets
from suite.launch import local, record, slurm, snapshot, view, work
from suite.launch import options as slurm_options
from suite.launch.cost import estimate
from suite.launch.display import Display, minutes
from suite.launch.options import Options
from suite.launch.work import Work
from suite.registry import pick
from suite.run import Context, Outcome, cores, failure, forget_failures
from suite.stages import Base, Stage


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python -m suite.launch",
        description="Run a grid: every run's base network, learning, pruning, fine-tuning and latency, then the tables and "
        f"figures. Run it again after anything went wrong: only what is missing or failed is done. Grids: "
        f"{', '.join(grids.names())}.",
        epilog="Example: python -m suite.launch --grid quickstart --only 'dsp' --dry-run",
    )
    cli.add_grid_options(result)
    instead = result.add_mutually_exclusive_group()
    instead.add_argument(
        "--dry-run", action="store_true", help="show the stages, what is done, what will run, its cost"
    )
    instead.add_argument(
        "--status", action="store_true", help="show where the grid stands, launched from any shell at any time"
    )
    instead.add_argument("--follow", action="store_true", help="show it again and again until nothing runs or waits")
    instead.add_argument("--cancel", action="store_true", help="end its jobs, or its launcher on this machine")
    result.add_argument(
        "--retry-failed", action="store_true", help="do again, too, what has failed three times in the same way"
    )
    result.add_argument(
        "--only-timing", action="store_true", help="just measure the latency of the networks that are done"
    )
    result.add_argument(
        "--cluster",
        choices=("local", "slurm", "debug"),
        default="local",
        help="local: worker processes here (default); slurm: jobs; debug: in this process",
    )
    result.add_argument(
        "--jobs", type=int, metavar="N", default=1, help="stages at a time, about 1 GB of memory each (default: 1)"
    )
    _add_slurm_options(result)
    cli.add_machine_options(result)
    return result


def _add_slurm_options(result: argparse.ArgumentParser) -> None:
    group = result.add_argument_group(
        "SLURM",
        "what never changes may stand in ~/.config/pruning-suite/slurm.toml or slurm.toml in the working folder",
    )
    group.add_argument(
        "--slurm",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of sbatch, such as partition=gpu; repeatable",
    )
    group.add_argument("--parallel", type=int, metavar="N", help="jobs at a time (default: as many as SLURM lets run)")
    group.add_argument(
        "--runs-per-gpu",
        type=int,
        metavar="K",
        help="stages that a job does side by side (default: 1); latency never is",
    )
    group.add_argument(
        "--timing-gpu", metavar="TYPE", help="kind of GPU that latency is measured on, as SLURM calls it"
    )


def main() -> int:
    """Exit status: 0 all done, 1 something failed, 2 bad arguments or missing data, 75 not all done yet."""
    arguments = parser().parse_args()
    cli.configure_logging()
    console = Console(soft_wrap=True) if not sys.stdout.isatty() else Console()
    try:
        return _launch(arguments, console)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"suite.launch: {' '.join(str(error).split())}\n")
        return 2
    except KeyboardInterrupt:
        if arguments.follow:
            return 130
        if arguments.cluster == "slurm":
            sys.stderr.write("suite.launch: stopped watching; the jobs go on (--cancel ends them)\n")
            return 130
        sys.stderr.write("suite.launch: stopped at once; the same command goes on from the last checkpoints\n")
        sys.stderr.flush()
        os._exit(130)  # an ordinary exit would wait for what the workers are doing


def _launch(arguments: argparse.Namespace, console: Console) -> int:
    cli.check_machine_options(arguments)
    if arguments.jobs < 1:
        raise ValueError(f"--jobs {arguments.jobs}: it takes 1 or more")
    grid = grids.load(arguments.grid)
    runs = grids.runs_of(grid, only=arguments.only, smoke=arguments.smoke)
    stages = grids.stages_of(grid, runs, smoke=arguments.smoke)
    if arguments.status or arguments.follow or arguments.cancel:
        return _view(arguments, stages, console)
    context = _context(arguments)
    _check_names(stages)
    options = _options(arguments)
    todo = work.of(
        stages,
        context,
        retry_failed=arguments.retry_failed,
        only_timing=arguments.only_timing,
        change_nothing=arguments.dry_run,
    )
    if arguments.dry_run:
        return _dry_run(todo, arguments, context, console)
    if todo.todo:
        prefetch.fetch(stages, context.data)
        for message in _missing(stages, context):
            raise ValueError(message)
    with work.alone(context.results, grids.folder_name(arguments.grid)):
        every = stages if not arguments.only else grids.stages_of(grid, grids.runs_of(grid, smoke=arguments.smoke))
        outcomes = _run(todo, every, options, arguments, context, console)
    return _summary(arguments, todo, outcomes, context, console)


def _view(arguments: argparse.Namespace, stages: Sequence[Stage], console: Console) -> int:
    """Look at the grid, or end it, without launching anything; its data need not be here."""
    if arguments.cancel and arguments.only:
        raise ValueError(
            f"--only {arguments.only} with --cancel: jobs are shared, so all of them are ended; leave --only out"
        )
    context = Context(results=cli.results_of(arguments).absolute())
    seen = view.View(grids.folder_name(arguments.grid), stages, context)
    if arguments.cancel:
        console.print(view.cancel(seen), markup=False, highlight=False)
        return 0
    if not console.is_terminal:
        console = Console(soft_wrap=True, width=view.WIDTH)
    return view.follow(seen, console) if arguments.follow else view.show(seen, console)


def _context(arguments: argparse.Namespace) -> Context:
    """Where and on what the stages run."""
    slurm_gpu = arguments.cluster == "slurm" and arguments.device == "auto"
    side_by_side = arguments.jobs > 1 and arguments.cluster == "local"
    return Context(
        results=cli.results_of(arguments).absolute(),
        data=arguments.data.absolute() if arguments.data else None,
        device="cuda" if slurm_gpu else cli.device_of(arguments.device),
        threads=arguments.threads or (max(1, cores() // arguments.jobs) if side_by_side else 0),
        max_minutes=arguments.max_minutes,
    )


def _options(arguments: argparse.Namespace) -> Options | None:
    """How the stages become jobs; None where there are none. Raises ValueError for options of SLURM without it."""
    ours = {name: getattr(arguments, name) for name in ("parallel", "runs_per_gpu", "timing_gpu")}
    if arguments.cluster == "slurm":
        slurm.check()
        return slurm_options.load(arguments.slurm, **ours)
    given = [name for name, value in {"slurm": arguments.slurm, **ours}.items() if value]
    if given:
        raise ValueError(
            f"--{given[0].replace('_', '-')} is for --cluster slurm; here --jobs says how much runs at a time"
        )
    return None


def _run(
    todo: Work,
    every: Sequence[Stage],
    options: Options | None,
    arguments: argparse.Namespace,
    context: Context,
    console: Console,
) -> dict[str, Outcome]:
    """The outcome of each stage that was to be done; `every` stage of the grid enters the record of the launch."""
    name = grids.folder_name(arguments.grid)
    before = record.read(context.results, name)
    if said := work.changes(before, every):
        console.print(f"{arguments.grid}: {said}", markup=False, highlight=False)
    if not todo.todo:
        nothing = "nothing to do" if not todo.left_alone else f"{len(todo.left_alone)} are left alone"
        console.print(f"{arguments.grid}: {todo.done} of {len(todo.stages)} stages are done; {nothing}", markup=False)
        return {}
    source = snapshot.take(context.results) if options else None
    launch = record.of(
        name,
        arguments.cluster,
        every,
        snapshot=source.name if source else "",
        jobs=before.jobs if before else {},
        todo=todo.todo,
    )
    record.write(launch, context.results)
    for stage in todo.todo:
        if arguments.retry_failed:
            forget_failures(stage, context)
    how = "as SLURM jobs" if options else f"{arguments.jobs} at a time"
    console.print(
        f"{arguments.grid}: {len(todo.todo)} of {len(todo.stages)} stages to do, {how} on {context.device}",
        markup=False,
    )
    jobs = None if options else arguments.jobs
    with Display(todo.todo, context, already=todo.done, jobs=jobs, console=console) as display:
        if options and source:
            return slurm.run(todo.todo, context, display, launch, options=options, source=source)
        if arguments.cluster == "debug":
            return local.run_here(todo.todo, context, display)
        return local.run(todo.todo, context, display, jobs=arguments.jobs)


def _check_names(stages: Sequence[Stage]) -> None:
    """Raise before anything runs when a model, a data set or public weights are unknown."""
    for base in (stage for stage in stages if isinstance(stage, Base)):
        pick("model", base.model, models.available())
        pick("data set", base.data, datasets.available())
        if base.weights:
            weights.public(base.weights)


def _missing(stages: Sequence[Stage], context: Context) -> list[str]:
    """What is not there of data and public weights, and how to get it."""
    found = []
    for base in (stage for stage in stages if isinstance(stage, Base)):
        try:
            if base.weights:
                weights.find(base.weights, context.data)
            context.dataset(base)
        except (ValueError, OSError) as error:
            found.append(str(error))
    return list(dict.fromkeys(found))


def _dry_run(todo: Work, arguments: argparse.Namespace, context: Context, console: Console) -> int:
    """Show what would be done; 2 when data are missing. Nothing is fetched or written."""
    keys = {stage.key for stage in todo.todo}
    for stage in todo.stages:
        failed = failure(stage, context) if stage.key in keys else None
        state = todo.left_alone.get(stage.key) or ("to do" if stage.key in keys else "done")
        if failed:
            state = f"{failed['status']} before: {failed['reason']}"
        console.print(f"{stage.key:22} {stage.label}  [{state}]", markup=False, highlight=False)
    kinds = Counter(stage.kind for stage in todo.todo)
    alone = f", {len(todo.left_alone)} left alone" if todo.left_alone else ""
    console.print(
        f"\n{len(todo.stages)} stages, {todo.done} done, {len(todo.todo)} to do "
        f"({', '.join(f'{n} {kind}' for kind, n in kinds.items()) or 'none'}){alone}",
        highlight=False,
    )
    if missing := _missing(todo.todo, context):
        for message in missing:
            console.print(f"missing: {message}", markup=False, highlight=False)
        console.print(
            f"cost: not known without it; to fetch: python -m suite.prefetch {_words(arguments)}", markup=False
        )
        return 2
    cost = estimate(todo.todo, context)
    console.print(
        f"cost: {cost.training_macs / 1e15:.3g} PetaMACs of training, about {minutes(cost.seconds)} on this {context.device} one "
        f"after the other, were every network as slow as its dense one ({arguments.jobs} at a time)",
        highlight=False,
    )
    return 0


def _words(arguments: argparse.Namespace) -> str:
    """The options that another command needs to see the same grid and data."""
    given = (("--grid", arguments.grid), ("--only", arguments.only), ("--data", arguments.data))
    words = shlex.join(str(word) for pair in given if pair[1] for word in pair)
    return words + (" --smoke" if arguments.smoke else "")


def _summary(
    arguments: argparse.Namespace, todo: Work, outcomes: dict[str, Outcome], context: Context, console: Console
) -> int:
    from suite import report  # pandas and matplotlib take 100 MB, which the workers need not pay

    built = report.build(arguments.grid, context.results, smoke=arguments.smoke)
    bad = [stage for stage in todo.todo if outcomes.get(stage.key) in ("failed", "diverged")]
    undone = [stage for stage in todo.todo if outcomes.get(stage.key) in (None, "interrupted")]
    for stage in bad:
        failed = failure(stage, context) or {"status": "failed", "reason": "no reason was left"}
        console.print(Text.assemble((failed["status"], "red"), f": {stage.label}: {failed['reason']}"))
    for stage in todo.stages:
        if why := todo.left_alone.get(stage.key):
            console.print(Text.assemble(("left alone", "red"), f": {stage.label}: {why}"))
    for path in built.paths:
        console.print(f"wrote {_shown(path)}", markup=False, highlight=False)
    if todo.waiting:
        console.print(f"{todo.waiting} networks are not done yet, so their latency was not measured")
    if bad or undone:
        console.print(f"{len(bad)} failed, {len(undone)} not reached; run the same command again to do just these")
    return 1 if bad or todo.left_alone else 75 if undone else 0


def _shown(path: Path) -> str:
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


if __name__ == "__main__":
    raise SystemExit(main())
