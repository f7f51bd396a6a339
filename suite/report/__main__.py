"""`python -m suite.report`: rebuild a grid's tables and figures from its rows."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from suite import cli
from suite.report import build, show


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python -m suite.report",
        description="Rebuild a grid's tables and figures in RESULTS/NAME from the rows in RESULTS/rows, and from nothing else.",
    )
    result.add_argument("--grid", required=True, metavar="NAME", help="a file in suite/grids/, such as quickstart")
    result.add_argument(
        "--results", type=Path, default=Path("results"), metavar="DIR", help="where rows/ lies (default: results)"
    )
    result.add_argument("--smoke", action="store_true", help="report the smoke runs, which lie in RESULTS/smoke")
    return result


def main() -> int:
    """Exit status: 0 written, 2 bad arguments or a folder that cannot be read or written."""
    arguments = parser().parse_args()
    cli.configure_logging()
    try:
        report = build(arguments.grid, cli.results_of(arguments), smoke=arguments.smoke)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"suite.report: {error}\n")
        return 2
    show(report, Console())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
