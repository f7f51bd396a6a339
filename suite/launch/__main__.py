"""`python -m suite.launch`: all runs of a grid, then its tables and figures."""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from suite import cli, grids, models, weights
from suite.launch import local, slurm
from suite.launch.cost import estimate
from suite.launch.display import Display, minutes
from suite.registry import pick
from suite.run import Context, Outcome, cores, failure, is_done
from suite.run.common import dataset_of
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
    result.add_argument("--dry-run", action="store_true", help="show the stages, what is done, what will run, its cost")
    result.add_argument(
        "--cluster",
        choices=("local", "slurm", "debug"),
        default="local",
        help="local: worker processes here (default); slurm: one job a stage; debug: in this process",
    )
    result.add_argument(
        "--jobs", type=int, metavar="N", default=1, help="stages at a time, about 1 GB of memory each (default: 1)"
    )
    result.add_argument(
        "--slurm",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of sbatch, such as partition=gpu; repeatable",
    )
    cli.add_machine_options(result)
    return result


def main() -> int:
    """Exit status: 0 all done, 1 something failed, 2 bad arguments or missing data, 75 stopped before the end."""
    arguments = parser().parse_args()
    cli.configure_logging()
    console = Console(soft_wrap=True) if not sys.stdout.isatty() else Console()
    try:
        return _launch(arguments, console)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"suite.launch: {' '.join(str(error).split())}\n")
        return 2
    except KeyboardInterrupt:
        if arguments.cluster == "slurm":
            sys.stderr.write("suite.launch: stopped watching; the jobs go on (scancel ends them)\n")
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
    device = "cuda" if arguments.cluster == "slurm" and arguments.device == "auto" else cli.device_of(arguments.device)
    jobs = arguments.jobs
    context = Context(
        results=cli.results_of(arguments).absolute(),
        data=arguments.data.absolute() if arguments.data else None,
        device=device,
        threads=arguments.threads or (max(1, cores() // jobs) if jobs > 1 and arguments.cluster == "local" else 0),
        max_minutes=arguments.max_minutes,
    )
    _check_data(stages, context)
    missing = [stage for stage in stages if not is_done(stage, context)]
    if arguments.dry_run:
        _dry_run(stages, missing, context, jobs, console)
        return 0
    context.results.mkdir(parents=True, exist_ok=True)
    outcomes: dict[str, Outcome] = {}
    if missing:
        console.print(
            f"{arguments.grid}: {len(missing)} of {len(stages)} stages to do, {jobs} at a time on {device}",
            markup=False,
        )
        with Display(missing, context, already=len(stages) - len(missing), jobs=jobs, console=console) as display:
            if arguments.cluster == "slurm":
                outcomes = slurm.run(missing, context, display, options=arguments.slurm)
            elif arguments.cluster == "debug":
                outcomes = local.run_here(missing, context, display)
            else:
                outcomes = local.run(missing, context, display, jobs=jobs)
    else:
        console.print(f"{arguments.grid}: all {len(stages)} stages are done; nothing to do", markup=False)
    return _summary(arguments, missing, outcomes, context, console)


def _check_data(stages: Sequence[Stage], context: Context) -> None:
    """Raise before anything runs when a model is unknown, or data or public weights are missing."""
    for base in (stage for stage in stages if isinstance(stage, Base)):
        pick("model", base.model, models.available())
        dataset_of(base, context)
        if base.weights:
            weights.find(base.weights, context.data)


def _dry_run(stages: Sequence[Stage], missing: Sequence[Stage], context: Context, jobs: int, console: Console) -> None:
    keys = {stage.key for stage in missing}
    for stage in stages:
        why = failure(stage, context) if stage.key in keys else None
        state = "done" if stage.key not in keys else f"{why['status']} before: {why['reason']}" if why else "to do"
        console.print(f"{stage.key:22} {stage.label}  [{state}]", markup=False, highlight=False)
    kinds = Counter(stage.kind for stage in missing)
    cost = estimate(missing, context)
    console.print(
        f"\n{len(stages)} stages, {len(stages) - len(missing)} done, {len(missing)} to do "
        f"({', '.join(f'{n} {kind}' for kind, n in kinds.items()) or 'none'})\n"
        f"cost: {cost.training_macs / 1e15:.3g} PetaMACs of training, about {minutes(cost.seconds)} on this {context.device} one "
        f"after the other, were every network as slow as its dense one ({jobs} at a time)",
        highlight=False,
    )


def _summary(
    arguments: argparse.Namespace,
    missing: Sequence[Stage],
    outcomes: dict[str, Outcome],
    context: Context,
    console: Console,
) -> int:
    from suite import report  # pandas and matplotlib take 100 MB, which the workers need not pay

    built = report.build(arguments.grid, context.results, smoke=arguments.smoke)
    bad = [stage for stage in missing if outcomes.get(stage.key) in ("failed", "diverged")]
    undone = [stage for stage in missing if outcomes.get(stage.key) in (None, "interrupted")]
    for stage in bad:
        why = failure(stage, context) or {"status": "failed", "reason": "no reason was left"}
        console.print(Text.assemble((why["status"], "red"), f": {stage.label}: {why['reason']}"))
    for path in built.paths:
        console.print(f"wrote {_shown(path)}", markup=False, highlight=False)
    if bad or undone:
        console.print(f"{len(bad)} failed, {len(undone)} not reached; run the same command again to do just these")
    return 1 if bad else 75 if undone else 0


def _shown(path: Path) -> str:
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


if __name__ == "__main__":
    raise SystemExit(main())
