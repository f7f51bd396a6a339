"""`python -m suite.report`: rebuild a grid's tables and figures from its rows; draw a run's structure or learning."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from suite import cli
from suite.report import build, learning, show, structure


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python -m suite.report",
        description="Rebuild a grid's tables and figures in RESULTS/NAME from the rows in RESULTS/rows, and from nothing else. "
        "Or draw what a single run left in its folder.",
    )
    what = result.add_mutually_exclusive_group(required=True)
    what.add_argument("--grid", metavar="NAME", help="a file in suite/grids/, such as quickstart")
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
    result.add_argument(
        "--results", type=Path, default=Path("results"), metavar="DIR", help="where rows/ lies (default: results)"
    )
    result.add_argument("--smoke", action="store_true", help="report the smoke runs, which lie in RESULTS/smoke")
    return result


def main() -> int:
    """Exit status: 0 written, 2 bad arguments or a folder that cannot be read or written."""
    arguments = parser().parse_args()
    cli.configure_logging()
    console = Console()
    try:
        _report(arguments, console)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"suite.report: {error}\n")
        return 2
    return 0


def _report(arguments: argparse.Namespace, console: Console) -> None:
    results = cli.results_of(arguments)
    if arguments.grid is not None:
        show(build(arguments.grid, results, smoke=arguments.smoke), console)
        return
    paths, remarks = (
        learning.report(arguments.learning, results, smoke=arguments.smoke)
        if arguments.structure is None
        else (structure.report(arguments.structure, results), [])
    )
    for remark in remarks:
        console.print(remark, style="yellow", highlight=False, markup=False, soft_wrap=True)
    for path in paths:
        console.print(str(path), highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    raise SystemExit(main())
