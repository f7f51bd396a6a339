"""`python -m suite.report`: rebuild a grid's report; draw a run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console

from suite import cli, grids
from suite.report import build, frames, leaderboard, paper, show, winners
from suite.report.figures import learning, structure


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    result = argparse.ArgumentParser(
        prog=cli.program("suite.report"),
        description="Rebuild a grid's tables and figures in RESULTS/NAME from the rows in RESULTS/rows, and from nothing else. "
        "Or draw what a single run left in its folder.",
    )
    cli.add_plugins_option(result)
    what = result.add_mutually_exclusive_group(required=True)
    what.add_argument("--grid", metavar="NAME", help="a file in suite/grids/, such as quickstart")
    what.add_argument("--all", action="store_true", help="every grid in suite/grids/ that has rows")
    what.add_argument(
        "--paper",
        metavar="NAME",
        help="the counterpart of a table or figure of the DSP paper, such as table1, in RESULTS/paper/NAME; `list` shows what "
        "there is, which grid feeds it and what is missing so far",
    )
    what.add_argument(
        "--structure",
        metavar="FILE",
        help="a packed network, or the key of its run: filters by group and the channels that they read, for each layer, "
        "in RESULTS/structure",
    )
    what.add_argument(
        "--learning",
        metavar="NAME",
        help="a grid, or the key of a learned stage: curves of all that the log has, in RESULTS/NAME or RESULTS/learning",
    )
    what.add_argument(
        "--leaderboard",
        action="store_true",
        help="every method, network and budget of all grids that have rows, in RESULTS/leaderboard",
    )
    what.add_argument(
        "--winners",
        metavar="NAME",
        help="the best settings of each method in a tuning grid, on the validation part, in RESULTS/NAME",
    )
    result.add_argument(
        "--results", type=Path, default=Path("results"), metavar="DIR", help="where rows/ lies (default: results)"
    )
    result.add_argument(
        "--beside",
        choices=["reference"],
        default="",
        help="show the project's tracked rows beside the rows of --grid or --all",
    )
    result.add_argument("--smoke", action="store_true", help="report the smoke runs, which lie in RESULTS/smoke")
    return result


def main() -> int:
    """Exit status: 0 written, 2 bad arguments, or something that cannot be read or written."""
    arguments = parser().parse_args()
    cli.configure_logging()
    console = Console()
    try:
        return _report(arguments, console)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"suite.report: {error}\n")
        return 2


def _report(arguments: argparse.Namespace, console: Console) -> int:
    results, smoke = cli.results_of(arguments), arguments.smoke
    if arguments.all:
        return _every_grid(results, console, smoke=smoke, beside=arguments.beside)
    if arguments.grid is not None:
        show(build(arguments.grid, results, smoke=smoke, beside=arguments.beside), console)
    elif arguments.paper == "list":
        paper.show_list(results, console, smoke=smoke)
    elif arguments.paper is not None:
        _say(*paper.write(arguments.paper, results, smoke=smoke), console)
    elif arguments.leaderboard:
        _say(leaderboard.write(results), [], console)
    elif arguments.winners is not None:
        _say(*winners.report(arguments.winners, results, smoke=smoke), console)
    elif arguments.structure is not None:
        _say(structure.report(arguments.structure, results), [], console)
    else:
        _say(*learning.report(arguments.learning, results, smoke=smoke), console)
    return 0


def _every_grid(results: Path, console: Console, *, smoke: bool, beside: str) -> int:
    """Report the grids that have rows.

    A grid that fails does not stop the rest; the exit status is then 2.
    """
    status = 0
    for name in grids.names():
        try:
            loaded = frames.load(grids.load(name), results, smoke)
            if loaded.rows:
                show(build(name, results, smoke=smoke, beside=beside), console)
            else:
                _say([], [f"{name}: no rows"], console)
        except (ValueError, OSError) as error:
            sys.stderr.write(f"suite.report: {name}: {error}\n")
            status = 2
    return status


def _say(paths: Iterable[Path], remarks: Iterable[str], console: Console) -> None:
    for remark in remarks:
        console.print(remark, style="yellow", highlight=False, markup=False, soft_wrap=True)
    for path in paths:
        console.print(str(path), highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    raise SystemExit(main())
