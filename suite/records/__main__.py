"""`python -m suite.records merge`: several results folders become one."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from suite.records.merge import merge


def main() -> int:
    """Exit status: 0 merged, 1 merged but for what is named, 2 bad arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m suite.records", description="Put results folders together, such as those of several clusters."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser(
        "merge",
        help="merge B into A, or both into a new folder",
        description="Merge rows and the outputs of finished stages. Equal rows become one; rows of one key whose results "
        "differ are named, the first stays and the other is kept beside it.",
    )
    command.add_argument("first", type=Path, metavar="A")
    command.add_argument("second", type=Path, metavar="B")
    command.add_argument("--into", type=Path, metavar="C", help="a new folder (default: merge B into A)")
    arguments = parser.parse_args()
    console = Console(soft_wrap=True)
    try:
        merged = merge(arguments.first, arguments.second, arguments.into)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"suite.records: {' '.join(str(error).split())}\n")
        return 2
    for found in merged.conflicts:
        sys.stderr.write(f"conflict: {found}\n")
    for found in merged.unreadable:
        sys.stderr.write(f"left out: {found}\n")
    counts = ", ".join(f"{number:,} {what}" for what, number in merged.counts.items()) or "nothing new"
    bad = f", {len(merged.conflicts)} conflicts, {len(merged.unreadable)} left out"
    console.print(f"{arguments.into or arguments.first}: {counts}{bad}", markup=False, highlight=False)
    return int(bool(merged.conflicts or merged.unreadable))


if __name__ == "__main__":
    raise SystemExit(main())
