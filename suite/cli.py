"""Options shared by the command lines."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

import torch
from rich.logging import RichHandler

from suite import loggers, registry


def program(module: str) -> str:
    """Return the name of a command line, as the user called it."""
    return sys.argv[0] if sys.argv[0].startswith("pruning-suite ") else f"python -m {module}"


def add_grid_options(parser: argparse.ArgumentParser) -> None:
    """Add --grid, --only, --smoke, --data and --results: choice of runs, and folders."""
    add_choice_options(parser)
    add_data_option(parser)
    parser.add_argument(
        "--results",
        type=Path,
        default=Path("results"),
        metavar="DIR",
        help="rows, tables and work files (default: results)",
    )


class _AddPlugins(argparse.Action):
    """Add a folder of plug-ins while arguments are parsed."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        try:
            registry.add_folder(Path(str(values)))
        except ValueError as error:
            parser.exit(2, f"{parser.prog}: {error}\n")


def add_plugins_option(parser: argparse.ArgumentParser) -> None:
    """Add --plugins: a folder with files of methods, models, data sets and grids."""
    parser.add_argument(
        "--plugins",
        action=_AddPlugins,
        metavar="DIR",
        help=f"a folder with your own methods, models, data sets and grids; repeatable; {registry.VARIABLE} names folders, too",
    )


def add_choice_options(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add --plugins, --grid, --only and --smoke: choice of runs."""
    add_plugins_option(parser)
    parser.add_argument(
        "--grid",
        required=required,
        metavar="NAME",
        help="a file in suite/grids/ such as quickstart, or the path of one of your own",
    )
    parser.add_argument(
        "--only",
        default="",
        metavar="TEXT",
        help="just the runs whose label contains TEXT, or the runs of a key; several texts as 'TEXT|TEXT', no space around |",
    )
    parser.add_argument(
        "--smoke",
        action="store_true",
        help="try the grid in minutes: embedded data, one seed, one budget, 256 images a stage; rows go to RESULTS/smoke",
    )


def add_data_option(parser: argparse.ArgumentParser) -> None:
    """Add --data: folder of the data sets."""
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="data folder (default: SUITE_DATA, else the user's cache)"
    )


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """Add --device, whose value `device_of` resolves."""
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="device of the training (default: auto); timings follow the grid",
    )


def add_machine_options(parser: argparse.ArgumentParser) -> None:
    """Add --device, --threads and --max-minutes."""
    add_device_option(parser)
    parser.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="CPU threads of a stage (default: all cores); latency is measured alone, with all of them",
    )
    parser.add_argument(
        "--max-minutes", type=float, metavar="M", help="stop at a checkpoint after M minutes; run again to continue"
    )


def check_machine_options(arguments: argparse.Namespace) -> None:
    """Check --threads, --max-minutes and SUITE_LOGGER; absent threads become 0, all cores.

    Raises ValueError naming the bad value.
    """
    arguments.threads = threads_of(arguments.threads)
    loggers.check()
    if arguments.max_minutes is not None and not arguments.max_minutes >= 0:
        raise ValueError(f"--max-minutes {arguments.max_minutes}: it takes 0 or more")


def threads_of(choice: int | None) -> int:
    """Return the threads of the --threads option; 0, all cores, if absent.

    Raises ValueError for a number below 1.
    """
    if choice is not None and choice < 1:
        raise ValueError(f"--threads {choice}: it takes 1 or more; leave it out for all cores")
    return choice or 0


def device_of(choice: str) -> str:
    """Return the device of the --device option.

    Raises ValueError if CUDA is chosen and there is none.
    """
    if choice == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: this machine has no CUDA device that torch can use; choose cpu or auto")
    return ("cuda" if torch.cuda.is_available() else "cpu") if choice == "auto" else choice


def cores() -> int:
    """Return the number of cores that this process may use.

    In a SLURM job these are the cores of its task.
    """
    return int(os.environ.get("SLURM_CPUS_PER_TASK", 0)) or len(os.sched_getaffinity(0))


def results_of(arguments: argparse.Namespace) -> Path:
    """Return the results folder of these arguments; --smoke has a folder of its own."""
    return arguments.results / "smoke" if arguments.smoke else arguments.results


def configure_logging() -> None:
    """Send warnings and errors to the terminal."""
    logging.basicConfig(
        level=logging.WARNING, format="%(message)s", handlers=[RichHandler(show_time=False, show_path=False)]
    )
