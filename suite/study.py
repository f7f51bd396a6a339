"""`python -m suite.study`: continue a study that takes days, on one machine or several.

All runs of a study are made at one commit (`Grid.commit`), in a clone of this repository in `build/study`. A block is a base
network with all methods on it. It is computed on one kind of device, and each machine takes the next block that no other kind
has begun, budget by budget. Finished stages of the record start from the zoo. While the launch runs, and when it ends in any
way, finished rows go to `results/reference`, networks into the zoo, and the tables are written again.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console

from suite import cli, grids, jsonfile, records, zoo
from suite.grids import Grid
from suite.records.merge import merge
from suite.report import build, leaderboard
from suite.run import Context
from suite.stages import Pruned

CLONE = records.ROOT / "build" / "study"
RESULTS = records.ROOT / "results" / "study"
RECORD = records.ROOT / "results" / "reference"
BETWEEN_S = 1800.0
"""Time after which finished stages are taken into the record while the launch goes on."""
MEMORY = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "67108864",
}
"""Freed memory stays with the process, in large pages: 2 to 21 % less time (Xeon with AMX, ResNet-20), and the same bits."""


def prepare(commit: str) -> None:
    """Check the study's commit out in the clone, with the networks of the record.

    Raises ValueError if git cannot, or if the packages of that commit are others than the present ones.
    """
    if not (CLONE / ".git").exists():
        shutil.rmtree(CLONE, ignore_errors=True)
        _git("clone", "--quiet", str(records.ROOT), str(CLONE))
    _git("-C", str(CLONE), "fetch", "--quiet")
    _git("-C", str(CLONE), "checkout", "--quiet", "--force", commit)
    if (CLONE / "requirements.txt").read_bytes() != (records.ROOT / "requirements.txt").read_bytes():
        python = CLONE / ".venv" / "bin" / "python"
        if Path(sys.executable) != python:
            raise ValueError(
                f"requirements.txt has changed since {commit[:8]}; run `make -C {CLONE} setup` and `{python} -m suite.study`"
            )
    shutil.rmtree(CLONE / zoo.FOLDER.relative_to(records.ROOT), ignore_errors=True)
    if zoo.FOLDER.is_dir():
        shutil.copytree(zoo.FOLDER, CLONE / zoo.FOLDER.relative_to(records.ROOT))


def _git(*words: str) -> None:
    done = subprocess.run(["git", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"git {' '.join(words)} failed: {done.stderr.strip() or done.returncode}")


def next_part(runs: Sequence[Pruned], own_kind: str) -> str:
    """Return what the labels of the next runs contain, as `--only` takes it.

    These are the runs of a block at a budget, such as " 62.47% seed 1". If the dense control comes just before and is open, it is
    " 0.00% seed 1| 62.47% seed 1". The text is "" if all runs are done.

    own_kind   of this device (`records.kind_of_device`)
    Raises ValueError if other kinds of device hold all blocks with open runs.
    """
    done = {row.key for row in records.read_all(RECORD, [run.key for run in runs]) if row.status == "done"}
    open_runs = [run for run in runs if run.key not in done]
    for base in dict.fromkeys(run.base for run in open_runs):
        if not held_by([run for run in runs if run.base == base]) <= {own_kind}:
            open_runs = [run for run in open_runs if run.base != base]
    if open_runs:
        first = next((run for run in open_runs if run.settings.removes), open_runs[0])
        upto = open_runs[: open_runs.index(first) + 1]
        block = [run for run in upto if run.base == open_runs[0].base]
        # without the first space "0.00%" would fit "50.00%", too
        return "|".join(dict.fromkeys(f" {run.budget.label} seed {run.seed}" for run in block))
    if len(done) < len(runs):
        raise ValueError(
            f"other kinds of device than {own_kind!r} hold all blocks with open runs; continue on one of them"
        )
    return ""


def held_by(block: Sequence[Pruned]) -> set[str]:
    """Return the kinds of device with finished stages of a block in the record.

    The base network does not count: it is common to all methods.
    """
    kinds = {records.kind_of_device(row.provenance) for row in records.read_all(RECORD, [run.key for run in block])}
    for learned in dict.fromkeys(run.learned for run in block if run.learned):
        done = zoo.FOLDER / learned.key / "done.json"
        if done.is_file():
            origin = jsonfile.checked(done, records.Done)["result"].get("provenance", {})
            kinds.add(records.kind_of_device(origin))
    return kinds


def take(name: str, grid: Grid, console: Console) -> None:
    """Take finished rows and networks into the record, and write its tables again."""
    if not RESULTS.is_dir():
        return
    records.rows_folder(RECORD).mkdir(parents=True, exist_ok=True)
    merged = merge(RECORD, RESULTS, outputs=False)
    runs = grids.runs_of(grid)
    new = zoo.add(grids.stages_of(grid, runs), Context(results=RESULTS))
    for line in (*merged.conflicts, *merged.unreadable):
        console.print(f"left out: {line}")
    done = {row.key for row in records.read_all(RECORD, [run.key for run in runs])}
    if done:
        for each in (name, *sharing(name, done)):
            build(each, RECORD)
        leaderboard.write(RECORD)
    console.print(f"{RECORD}: {merged.counts['rows taken']} new rows, {len(new)} new networks")


def sharing(name: str, keys: Collection[str]) -> list[str]:
    """Return other grids, with tables in the record, that have one of these runs."""
    tabled = [other for other in grids.names() if other != name and (RECORD / other / "table.md").is_file()]
    return [other for other in tabled if any(run.key in keys for run in grids.runs_of(grids.load(other)))]


def launch(name: str, part: str, device: str, grid: Grid, console: Console) -> int:
    """Launch a part of the study in the clone, and return the exit status.

    SIGINT and SIGTERM go on to the launch, which ends at a checkpoint.
    """
    jobs = cli.cores() if device == "cpu" else 1
    threads = ["--threads", "1"] if device == "cpu" else []
    command = [sys.executable, "-m", "suite.launch", "--grid", name, "--from-zoo", "--results", str(RESULTS)]
    command += ["--only", part, "--device", device, "--jobs", str(jobs), *threads]
    environment = {**os.environ, **MEMORY, "PYTHONPATH": str(CLONE)}
    process = subprocess.Popen(command, cwd=CLONE, env=environment, start_new_session=True)
    before = {
        number: signal.signal(number, lambda received, _: process.send_signal(received))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        while True:
            try:
                return process.wait(BETWEEN_S)
            except subprocess.TimeoutExpired:
                try:
                    take(name, grid, console)
                except Exception as error:  # the launch goes on: its results stay, and are taken at its end
                    console.print(f"the record could not be written: {' '.join(str(error).split())}")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        take(name, grid, console)


def run(name: str, only: str, device: str, console: Console) -> int:
    """Continue the study part by part.

    Return 0 when all is done, else the status of the launch that ended early.
    """
    grid = grids.load(name)
    runs = grids.runs_of(grid)
    own_kind = records.kind_of_device(records.provenance(device))
    prepare(_commit(name, grid))
    take(name, grid, console)
    if only:
        return launch(name, only, device, grid, console)
    while part := next_part(runs, own_kind):
        console.print(f"{name}: {_shown(part)}")
        if status := launch(name, part, device, grid, console):
            return status
        if part == next_part(runs, own_kind):
            raise ValueError(f"{_shown(part)}: runs without a row, though the launch has ended well; see {RESULTS}")
    console.print(f"{name}: all {len(runs)} runs are done")
    return 0


def _shown(part: str) -> str:
    return " and ".join(text.strip() for text in part.split("|"))


def check(name: str, only: str, device: str) -> int:
    """Repeat a random finished run at the study's commit, and compare it.

    only   text in the labels of the runs to choose from; "" for all

    Return the exit status of `suite.zoo check`.
    """
    prepare(_commit(name, grids.load(name)))
    command = [sys.executable, "-m", "suite.zoo", "check", "--grid", name, "--device", device]
    command += ["--only", only] if only else []
    return subprocess.run(
        command, cwd=CLONE, env={**os.environ, **MEMORY, "PYTHONPATH": str(CLONE)}, check=False
    ).returncode


def _commit(name: str, grid: Grid) -> str:
    if not grid.commit:
        raise ValueError(
            f"the grid {name} has no commit of its own; launch it with python -m suite.launch --grid {name}"
        )
    return grid.commit


def main() -> int:
    """Run the command line.

    Exit status: that of the launch or of the check; 2 for bad arguments.
    """
    parser = argparse.ArgumentParser(
        prog=cli.program("suite.study"),
        description="Continue a study at its commit, from the finished stages of the record, and bring finished ones back.",
    )
    parser.add_argument(
        "--grid", default="cifar10_study", metavar="NAME", help="a grid with a commit (default: %(default)s)"
    )
    parser.add_argument(
        "--only",
        default="",
        metavar="TEXT",
        help="runs whose label contains TEXT (default: the next budget of a block, with its dense control)",
    )
    parser.add_argument("--check", action="store_true", help="run one finished run again, and compare it")
    cli.add_device_option(parser)
    arguments = parser.parse_args()
    cli.configure_logging()
    console = Console(soft_wrap=True, highlight=False, markup=False)
    try:
        device = cli.device_of(arguments.device)
        CLONE.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(CLONE.with_suffix(".lock"), timeout=0):
            return (
                check(arguments.grid, arguments.only, device)
                if arguments.check
                else run(arguments.grid, arguments.only, device, console)
            )
    except KeyboardInterrupt:
        return 130
    except Timeout:
        sys.stderr.write("suite.study: another study is running from this folder; wait for its end\n")
    except (ValueError, OSError) as error:
        sys.stderr.write(f"suite.study: {' '.join(str(error).split())}\n")
    return 2


if __name__ == "__main__":
    raise SystemExit(main())
