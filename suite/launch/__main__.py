"""`python -m suite.launch`: command line that launches a grid, shows its state, or cancels it."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from suite import interrupt

if __name__ == "__main__":
    interrupt.install()  # the imports below take seconds

import psutil
from rich.console import Console

from suite import cli, grids
from suite.launch import carry, display, dry_run, slurm, work
from suite.launch import options as slurm_options
from suite.launch.cancel import cancel
from suite.launch.launcher import Launcher
from suite.launch.options import Options
from suite.launch.view import View
from suite.run import Context
from suite.stages import Stage

MOST_JOBS, JOB_BYTES = 8, 2 * 2**30
"""Of the default of --jobs: the most stages at a time, and memory for each."""
VERBS = {
    "run": "do all that is missing or failed, then the tables and figures (default)",
    "dry-run": "show what is done, what will run, its cost by network and method",
    "status": "show where the grid stands, launched from any shell at any time",
    "follow": "show it again and again until nothing runs or waits",
    "cancel": "end its jobs, or its launcher on this machine",
}


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    result = argparse.ArgumentParser(
        prog=cli.program("suite.launch"),
        description="Run a grid: every run's base network, learning, pruning, fine-tuning and latency, then the tables and "
        f"figures. Run it again after anything went wrong: only what is missing or failed is done. Grids: "
        f"{', '.join(grids.names())}.",
        epilog="Example: python -m suite.launch --grid quickstart --only 'dsp' --dry-run",
    )
    result.add_argument(
        "verb", nargs="?", choices=VERBS, help="; ".join(f"{verb}: {text}" for verb, text in VERBS.items())
    )
    cli.add_grid_options(result)
    flags = result.add_mutually_exclusive_group()
    for verb in (verb for verb in VERBS if verb != "run"):
        flags.add_argument(f"--{verb}", dest="flag", action="store_const", const=verb, help=f"the same as {verb}")
    result.add_argument("--stages", action="store_true", help="with --dry-run: list every stage, too")
    result.add_argument(
        "--retry-failed", action="store_true", help="also repeat stages that failed three times for the same reason"
    )
    result.add_argument("--redo", metavar="TEXT", help="do stages again whose label or key contains TEXT")
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
        "--from-zoo",
        action="store_true",
        help="start from the stages in results/reference/networks (python -m suite.zoo)",
    )
    result.add_argument("--beside", choices=["reference"], default="", help="as for python -m suite.report")
    result.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="stages at a time (default: 1 with a GPU or with --threads, else one per core, up to 8 and one per 2 GB of memory)",
    )
    group = result.add_argument_group("slices", "with --max-minutes, on machines that share no folder")
    group.add_argument(
        "--carry", type=Path, metavar="FOLDER", help="read what an earlier slice left here, and leave it again"
    )
    group.add_argument("--carry-files", type=int, metavar="N", default=8, help="files there at most (default: 8)")
    group.add_argument(
        "--carry-mb", type=float, metavar="M", default=16, help="megabytes of each at most (default: 16)"
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
    """Return the exit status.

    0 all done, 1 a stage failed, 2 bad arguments or missing data, 75 not all done yet.
    """
    interrupt.restore()
    arguments = parser().parse_args()
    cli.configure_logging()
    console = Console(soft_wrap=True) if not sys.stdout.isatty() else Console()
    try:
        return _do(arguments, console)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"suite.launch: {' '.join(str(error).split())}\n")
        return 2
    except KeyboardInterrupt:
        if _verb(arguments) == "follow":
            return 130
        if arguments.cluster == "slurm":
            sys.stderr.write("suite.launch: stopped watching; the jobs go on (--cancel ends them)\n")
            return 130
        sys.stderr.write("suite.launch: stopped at once; the same command goes on from the last checkpoints\n")
        sys.stderr.flush()
        os._exit(130)  # an ordinary exit would wait for the workers


def _verb(arguments: argparse.Namespace) -> str:
    """Return what to do. Raises ValueError if two verbs are given."""
    if arguments.verb and arguments.flag:
        raise ValueError(f"{arguments.verb} and --{arguments.flag}: give one of them")
    return arguments.verb or arguments.flag or "run"


def _do(arguments: argparse.Namespace, console: Console) -> int:
    """Execute the verb, and return the exit status."""
    verb = _verb(arguments)
    cli.check_machine_options(arguments)
    _check_jobs(arguments.jobs, arguments.cluster)
    grid = grids.load(arguments.grid)
    runs = grids.runs_of(grid, only=arguments.only, smoke=arguments.smoke)
    stages = grids.stages_of(grid, runs, smoke=arguments.smoke)
    if verb in ("status", "follow", "cancel"):
        return _view(verb, arguments, stages, console)
    context = _context(arguments)
    work.check_names(stages)
    options = _options(arguments, context)
    if arguments.carry and arguments.cluster == "slurm":
        raise ValueError("--carry is for machines that share no folder; the jobs of SLURM share theirs: leave it out")
    limits = {"files": arguments.carry_files, "mb": arguments.carry_mb}
    if arguments.carry and verb == "run":
        carry.capacity(**limits)  # refuses limits before anything is read
        carry.load(context, arguments.carry)
    if arguments.from_zoo:
        from suite import zoo  # matplotlib, pandas and scipy take seconds, which a dry run need not pay
    if arguments.from_zoo and verb == "run":
        zoo.restore(stages, context)
    todo = work.find(
        stages,
        context,
        retry_failed=arguments.retry_failed,
        only_timing=arguments.only_timing,
        change_nothing=verb == "dry-run",
        redo=arguments.redo,
    )
    if arguments.from_zoo and verb == "dry-run":
        copied = zoo.available(stages, context)
        todo = dataclasses.replace(todo, todo=tuple(stage for stage in todo.todo if stage not in copied))
    if arguments.carry and (line := carry.check(stages, todo.todo, context, **limits)):
        console.print(f"{arguments.grid}: {line}", markup=False, highlight=False)
    if verb == "dry-run":
        fetch = f"python -m suite.prefetch {_words(arguments)}"
        return dry_run.show(todo, context, console, fetch=fetch, jobs=arguments.jobs, stages=arguments.stages)
    every = stages if not arguments.only else grids.stages_of(grid, grids.runs_of(grid, smoke=arguments.smoke))
    launcher = Launcher(
        grid=arguments.grid,
        name=grids.folder_name(arguments.grid),
        cluster=arguments.cluster,
        every=every,
        options=options,
        jobs=arguments.jobs,
        context=context,
        console=console,
        smoke=arguments.smoke,
        beside=arguments.beside,
        retry_failed=arguments.retry_failed,
    )
    try:
        return launcher.launch(todo)
    finally:
        if arguments.carry:
            carry.save(every, context, arguments.carry, **limits)


def _view(verb: str, arguments: argparse.Namespace, stages: Sequence[Stage], console: Console) -> int:
    """Show or cancel the grid; its data need not be on this machine."""
    if verb == "cancel" and arguments.only:
        raise ValueError(
            f"--only {arguments.only} with --cancel: jobs are shared, so all of them are ended; leave --only out"
        )
    view = View(
        grids.folder_name(arguments.grid),
        stages,
        Context(results=cli.results_of(arguments).absolute(), device=cli.device_of("auto")),
    )
    if verb == "cancel":
        console.print(cancel(view), markup=False, highlight=False)
        return 0
    if not console.is_terminal:
        console = Console(soft_wrap=True, width=display.WIDTH)
    return display.follow(view, console) if verb == "follow" else display.show(view, console)


def _context(arguments: argparse.Namespace) -> Context:
    """Return where and on what the stages run; `arguments.jobs` gets its default."""
    slurm_gpu = arguments.cluster == "slurm" and arguments.device == "auto"
    if arguments.jobs is None:
        arguments.jobs = _default_jobs(arguments)
    side_by_side = arguments.jobs > 1 and arguments.cluster == "local"
    return Context(
        results=cli.results_of(arguments).absolute(),
        data=arguments.data.absolute() if arguments.data else None,
        device="cuda" if slurm_gpu else cli.device_of(arguments.device),
        threads=arguments.threads or (max(1, cli.cores() // arguments.jobs) if side_by_side else 0),
        max_minutes=arguments.max_minutes,
    )


def _check_jobs(jobs: int | None, cluster: str) -> None:
    """Raise ValueError if --jobs is below 1, or given without local workers."""
    if jobs is None:
        return
    if jobs < 1:
        raise ValueError(f"--jobs {jobs}: it takes 1 or more")
    if cluster != "local":
        other = "--parallel limits the jobs of slurm" if cluster == "slurm" else "debug does one stage at a time"
        raise ValueError(f"--jobs is for --cluster local; {other}")


def _default_jobs(arguments: argparse.Namespace) -> int:
    """Return the number of stages at a time that gives the most steps per second.

    Two processes of one thread take 1.12 times as many steps of ResNet-20 as one process of two threads, in bf16 1.31 times
    (`tests/benchmarks/training.py --processes`). The number follows from the machine alone, since the bits of results depend on
    the threads.
    """
    if arguments.cluster != "local" or arguments.threads or cli.device_of(arguments.device) == "cuda":
        return 1
    return max(1, min(cli.cores(), MOST_JOBS, psutil.virtual_memory().total // JOB_BYTES))


def _options(arguments: argparse.Namespace, context: Context) -> Options | None:
    """Return the options of jobs; None without SLURM.

    Raises ValueError for options of SLURM without it.
    """
    ours = {name: getattr(arguments, name) for name in ("parallel", "runs_per_gpu", "timing_gpu")}
    if arguments.cluster == "slurm":
        if _verb(arguments) != "dry-run":  # which costs and plans off the cluster, too
            slurm.check(context.results)
        return slurm_options.load(arguments.slurm, **ours)
    misplaced = [name for name, value in {"slurm": arguments.slurm, **ours}.items() if value]
    if misplaced:
        raise ValueError(
            f"--{misplaced[0].replace('_', '-')} is for --cluster slurm; here --jobs sets how many stages run at a time"
        )
    return None


def _words(arguments: argparse.Namespace) -> str:
    """Return the options with which another command reads the same grid and data."""
    options = (("--grid", arguments.grid), ("--only", arguments.only), ("--data", arguments.data))
    words = shlex.join(str(word) for pair in options if pair[1] for word in pair)
    return words + (" --smoke" if arguments.smoke else "")


if __name__ == "__main__":
    raise SystemExit(main())
