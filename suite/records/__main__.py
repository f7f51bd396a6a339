"""`python -m suite.records merge`: merge results folders."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from suite import cli
from suite.records.merge import merge


def main() -> int:
    """Run the command line.

    Exit status: 0 merged, 1 merged with exceptions that are listed, 2 bad arguments.
    """
    parser = argparse.ArgumentParser(
        prog=cli.program("suite.records"), description="Merge results folders, such as those of several clusters."
    )
    cli.add_plugins_option(parser)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser(
        "merge",
        help="merge B into A, or both into a new folder",
        description="Merge rows and the outputs of finished stages. Equal rows become one. Rows with equal keys and "
        "different results are listed: A's row stays, and B's row is kept beside it.",
    )
    command.add_argument("first", type=Path, metavar="A")
    command.add_argument("second", type=Path, metavar="B")
    command.add_argument("--into", type=Path, metavar="C", help="new folder (default: merge B into A)")
    command.add_argument("--rows", action="store_true", help="rows only, without the outputs of stages in work/")
    arguments = parser.parse_args()
    console = Console(soft_wrap=True)
    try:
        merged = merge(arguments.first, arguments.second, arguments.into, outputs=not arguments.rows)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"suite.records: {' '.join(str(error).split())}\n")
        return 2
    for conflict in merged.conflicts:
        sys.stderr.write(f"conflict: {conflict}\n")
    for path in merged.unreadable:
        sys.stderr.write(f"left out: {path}\n")
    counts = ", ".join(f"{number:,} {event}" for event, number in merged.counts.items()) or "nothing new"
    bad = f", {len(merged.conflicts)} conflicts, {len(merged.unreadable)} left out"
    console.print(f"{arguments.into or arguments.first}: {counts}{bad}", markup=False, highlight=False)
    return int(bool(merged.conflicts or merged.unreadable))


if __name__ == "__main__":
    raise SystemExit(main())
