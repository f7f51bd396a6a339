"""`python -m suite.prefetch`: download and check data and public weights.

A launcher downloads missing files on the machine where it is started; jobs and `--dry-run` never download.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from rich.console import Console

from suite import cli, data, grids, weights
from suite.files import sha256
from suite.stages import Base, Stage


def fetch(stages: Iterable[Stage], folder: Path | None) -> list[str]:
    """Download the missing data and weights of these stages into `folder`.

    Return a line for each that cannot be fetched, with the expected path and the way to get it.
    """
    problems = []
    for base in _bases(stages):
        try:
            data.fetch(base.data, folder)
            if base.weights:
                weights.fetch(base.weights, folder)
        except (ValueError, OSError) as error:
            problems.append(str(error))
    return list(dict.fromkeys(problems))


def _bases(stages: Iterable[Stage]) -> list[Base]:
    """Return one base stage for each pair of data set and file of weights."""
    bases = (stage for stage in stages if isinstance(stage, Base))
    return list({(base.data, base.weights): base for base in bases}.values())


def _check_data(name: str, folder: Path | None) -> str:
    """Download and read a data set; return its size and checksum."""
    data.fetch(name, folder)
    dataset = data.load(name, folder)
    return f"{dataset.size('train'):,} + {dataset.size('test'):,} images, sha256 {dataset.checksum}"


def _check_weights(name: str, folder: Path | None) -> str:
    """Download and check a file of weights; return its path and digest."""
    path = weights.fetch(name, folder)
    return f"{path}, sha256 {sha256(path)}"


def main() -> int:
    """Return the exit status.

    0 all present and whole, 1 a file is missing or damaged, 2 bad arguments.
    """
    parser = argparse.ArgumentParser(
        prog=cli.program("suite.prefetch"),
        description="Fetch the data and public weights that a grid needs, and check them: on a cluster, on the login node, "
        "before --grid is launched. Jobs never download.",
        epilog="Examples: python -m suite.prefetch --grid paper_table2 --data /scratch/me/data; python -m suite.prefetch cifar10",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="data sets and public weights, in place of --grid")
    cli.add_choice_options(parser, required=False)
    cli.add_data_option(parser)
    arguments = parser.parse_args()
    cli.configure_logging()
    console = Console(soft_wrap=True)
    try:
        items = _items(arguments)
    except ValueError as error:
        sys.stderr.write(f"suite.prefetch: {' '.join(str(error).split())}\n")
        return 2
    failed = 0
    for name, check in items.items():
        try:
            console.print(f"{name}: {check(name, arguments.data)}", markup=False, highlight=False)
        except (ValueError, OSError) as error:
            failed += 1
            sys.stderr.write(f"suite.prefetch: {name}: {' '.join(str(error).split())}\n")
    return 1 if failed else 0


def _items(arguments: argparse.Namespace) -> dict[str, Callable[[str, Path | None], str]]:
    """Return name -> check of the data sets and public weights.

    Raises ValueError for an unknown name, and for a folder of --data that does not exist, with all that would go there.
    """
    if bool(arguments.names) == bool(arguments.grid):
        raise ValueError("give either --grid, or names of data sets and public weights such as cifar10")
    if arguments.names and (arguments.only or arguments.smoke):
        raise ValueError("--only and --smoke choose runs of --grid: leave them out beside names")
    if arguments.grid:
        grid = grids.load(arguments.grid)
        runs = grids.runs_of(grid, only=arguments.only, smoke=arguments.smoke)
        bases = _bases(grids.stages_of(grid, runs, smoke=arguments.smoke))
        items: dict[str, Callable[[str, Path | None], str]] = {base.data: _check_data for base in bases}
        items |= {base.weights: _check_weights for base in bases if base.weights}
    else:
        items = {name: _check_data if name in data.available() else _check_weights for name in arguments.names}
        for name in (name for name in items if name not in data.available()):
            try:
                weights.check(name)
            except ValueError as error:
                raise ValueError(f"no data set ({', '.join(data.available())}), and {error}") from None
    if arguments.data is not None and not arguments.data.is_dir():  # a mistyped folder is not made and filled
        raise ValueError(f"--data {arguments.data}: there is no such folder for {', '.join(items)}; make it first")
    return items


if __name__ == "__main__":
    raise SystemExit(main())
