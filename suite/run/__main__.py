"""`python -m suite.run`: run one stage of a grid, and the stages that it needs."""

from __future__ import annotations

import argparse
import signal
import sys

from rich.console import Console

from suite import cli, distributed, grids
from suite.progress import Watch
from suite.run import Context, execute, failure
from suite.stages import Stage, in_order


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    options = argparse.ArgumentParser(
        prog=cli.program("suite.run"),
        description="Run one stage of a grid, after the stages that it needs. If stopped or killed, the same command "
        "continues from the last checkpoint. `python -m suite.launch --grid quickstart --dry-run --stages` lists the stages of "
        "quickstart, for example.",
    )
    cli.add_grid_options(options)
    options.add_argument("--stage", required=True, metavar="KEY", help="the stage's name or its beginning: pruned-3f2a")
    cli.add_machine_options(options)
    return options


def main() -> int:
    """Run the command line.

    Exit status: 0 done, 1 failed, 2 bad arguments, 75 stopped at a checkpoint.
    """
    arguments = parser().parse_args()
    cli.configure_logging()
    try:
        cli.check_machine_options(arguments)
        stage = _find(arguments)
        context = Context(
            results=cli.results_of(arguments),
            data=arguments.data,
            device=cli.device_of(arguments.device),
            threads=arguments.threads,
        )
    except (ValueError, OSError) as error:
        sys.stderr.write(f"suite.run: {error}\n")
        return 2
    watch = Watch(max_minutes=arguments.max_minutes)
    watch.listen(signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
    try:
        with distributed.process_group(context.device):
            return _do(stage, context, watch, Console(quiet=not distributed.is_first()))
    except distributed.RendezvousError as error:
        sys.stderr.write(f"suite.run: {error}\n")
        return 2


def _do(stage: Stage, context: Context, watch: Watch, console: Console) -> int:
    """Run the stages that `stage` needs, then `stage`; return the exit status."""
    for needed in in_order([stage]):
        context.folder(needed).mkdir(parents=True, exist_ok=True)
        watch.begin(context.progress(needed))
        outcome = execute(needed, context, watch)
        why = failure(needed, context) if outcome in ("failed", "diverged") else None
        line = f"{outcome:12} {needed.key}  {needed.label}" + (f": {why['reason']}" if why else "")
        console.print(line, markup=False, highlight=False, soft_wrap=True)
        if outcome != "done":
            return 75 if outcome == "interrupted" else 1
    return 0


def _find(arguments: argparse.Namespace) -> Stage:
    """Return the stage of --stage. Raises ValueError if several stages or none fit."""
    grid = grids.load(arguments.grid)
    runs = grids.runs_of(grid, only=arguments.only, smoke=arguments.smoke)
    stages = grids.stages_of(grid, runs, smoke=arguments.smoke)
    matches = [stage for stage in stages if stage.key.startswith(arguments.stage)]
    if len(matches) != 1:
        raise ValueError(
            f"--stage {arguments.stage!r} fits {len(matches)} of the {len(stages)} stages of {arguments.grid}; "
            f"`python -m suite.launch --grid {arguments.grid} --dry-run --stages` lists them"
        )
    return matches[0]


if __name__ == "__main__":
    raise SystemExit(main())
