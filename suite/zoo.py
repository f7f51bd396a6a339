"""`python -m suite.zoo`: finished networks of the record, by name.

A member is the output of a finished stage as it lies in `results/work/KEY/`: weights, the learner's state, `done.json` with
checksums and row. `index.json` gives the names. A member stands for its stage: a launch with --from-zoo starts from it.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import random
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from safetensors.torch import load_file
from torch import nn

from suite import cli, grids, jsonfile, lease, models, pack, records
from suite.files import plain_name, write_json, write_text
from suite.records.merge import Merged, copied_names, copy_output
from suite.report.figures import structure
from suite.run import Context, code, execute
from suite.run.folder import check_files, failure, is_done
from suite.stages import Base, Learned, Pruned, Stage, Timed, in_order

log = logging.getLogger(__name__)

FOLDER = records.ROOT / "results" / "reference" / "networks"
INDEX = "index.json"
FILE_MB, ALL_MB = 1.5, 100
"""Largest size of a member's file, and of all members."""
PACKED, FINAL = "packed.safetensors", "final.safetensors"


def members(folder: Path = FOLDER) -> dict[str, Path]:
    """Return name -> folder of all members; {} if there is no zoo."""
    try:
        index = jsonfile.read(folder / INDEX, dict[str, str])
    except FileNotFoundError:
        return {}
    return {name: folder / plain_name(key) for name, key in index.items()}


def load(name: str, folder: Path = FOLDER) -> nn.Module:
    """Return a network in eval mode: packed if pruned, else the full one.

    Raises ValueError with the names that contain the words of `name`, or with what is wrong with the files.
    """
    every = members(folder)
    if name not in every:
        part = name.rpartition("/")[2].partition("_")[0]
        near = [other for other in every if part in other] or list(every)
        raise ValueError(f"the zoo in {folder} has no {name!r}; it has {', '.join(near[:12]) or 'no network'}")
    member = every[name]
    if (member / PACKED).is_file():
        return pack.load(member / PACKED).eval()
    about = jsonfile.checked(member / "done.json", records.Done)
    base = about["stage"].get("base", about["stage"])
    network = models.build(base["model"], about["result"]["classes"])
    network.load_state_dict(load_file(member / FINAL))
    return network.eval()


def available(stages: Iterable[Stage], context: Context, folder: Path = FOLDER) -> list[Stage]:
    """Return the stages that are not done and that the zoo has.

    A member made by other code of its method is left out with a warning.
    """
    result: list[Stage] = []
    listed = {member.name for member in members(folder).values()}
    for stage in stages:
        if stage.key not in listed or is_done(stage, context):
            continue
        done = folder / stage.key / "done.json"
        if lease.is_fresh(context.lease(stage)):  # another process is at it
            continue
        try:
            own, _ = code.changes(stage, jsonfile.checked(done, records.Done).get("code"))
        except (OSError, ValueError) as error:
            log.warning("the zoo's %s is left out: %s", stage.label, error)
            continue
        if own:
            log.warning("the zoo's %s was made by other code of %s, and is left out", stage.label, ", ".join(own))
        else:
            result.append(stage)
    return result


def restore(stages: Iterable[Stage], context: Context, folder: Path = FOLDER) -> int:
    """Copy the outputs of members into the results; return their number.

    Files are compared with their checksums. A damaged member is left out with a warning.
    """
    number = 0
    for stage in available(stages, context, folder):
        try:
            copy_output(folder / stage.key, context.folder(stage), Merged())
            check_files(stage, context)
            number += 1
        except (OSError, ValueError) as error:
            log.warning("the zoo's %s is left out: %s", stage.label, error)
    return number


def add(stages: Sequence[Stage], context: Context, folder: Path = FOLDER) -> list[str]:
    """Copy finished stages into the zoo, with name and card; return the new names.

    Latency measurements have no network. A stage with a file above FILE_MB is left out with a warning; so is what exceeds
    ALL_MB together, and what was made from other bytes than those of a member.
    """
    keys = {name: path.name for name, path in members(folder).items()}
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0
    new, refused = [], set[str]()
    for stage in in_order(stages):
        if isinstance(stage, Timed) or not is_done(stage, context):
            continue
        if any(need.key in refused for need in stage.needs) or (
            stage.key in keys.values() and _files(context.folder(stage)) != _files(folder / stage.key)
        ):
            log.warning("%s is left out: the zoo has another one, made elsewhere", stage.label)
            refused.add(stage.key)
            continue
        if stage.key in keys.values():
            continue
        source = context.folder(stage)
        sizes = [(source / name).stat().st_size for name in copied_names(source, _files(source))]
        if max(sizes) > FILE_MB * 1e6 or size + sum(sizes) > ALL_MB * 1e6:
            log.warning("%s is left out: a file is above %g MB, or all are above %g MB", stage.label, FILE_MB, ALL_MB)
            continue
        size += sum(sizes)
        copy_output(source, folder / stage.key, Merged())
        name = _name(stage)
        keys[name if name not in keys else f"{name}_{stage.key[-12:-8]}"] = stage.key
        new.append(next(name for name, key in keys.items() if key == stage.key))
        if isinstance(stage, Pruned) and stage.seed == 0:
            plan, graph = structure.read(folder / stage.key / PACKED)
            structure.write(plan, graph, stage.label, folder / stage.key / "structure")
            (folder / stage.key / "structure.pdf").unlink(missing_ok=True)
    write_json(folder / INDEX, dict(sorted(keys.items())))
    write_text(folder / "README.md", _cards(folder))
    return new


def _files(stage_folder: Path) -> dict[str, Any]:
    files: dict[str, Any] = jsonfile.checked(stage_folder / "done.json", records.Done)["files"]
    return files


def _name(stage: Base | Learned | Pruned) -> str:
    """Return `resnet20/dsp_g4_62`: model, method with groups and words of its settings, budget, seed."""
    base = stage.base
    seed = f"_seed{stage.seed}" if stage.seed else ""
    if isinstance(stage, Base):
        return f"{base.model}/{base.weights or 'base'}{seed}"
    words = [stage.settings.method_name()]
    for field in dataclasses.fields(stage.settings):
        value = getattr(stage.settings, field.name)
        if field.name == "groups":
            words.append(f"g{value}")
        elif value != field.default and isinstance(value, str):
            words.append(value)
    if isinstance(stage, Learned):
        words.append("learned")
    if stage.budget:
        words.append(f"{'time' if stage.budget.scope == 'latency' else ''}{100 * stage.budget.share:.0f}")
    return f"{base.model}/{'_'.join(words)}{seed}"


def _cards(folder: Path) -> str:
    """Return the README of the zoo: one line a member."""
    lines = [
        "# Networks",
        "",
        "Written by `python -m suite.zoo add`. `suite.zoo.load(NAME)` returns a network; a launch with `--from-zoo` starts from "
        "these stages. Accuracies are on the test set, in the last epoch. The folder of a member has its weights, `done.json` "
        "(identity, checksums, row) and, for seed 0, a picture of its structure. Core-hours are those of the member's own "
        "training steps. Licence of the weights: Apache-2.0.",
        "",
        "| name | top-1 % | MACs cut % | parameters | core-hours | device | commit | member |",
        "|---|---|---|---|---|---|---|---|",
    ]
    spent: Counter[str] = Counter()
    for name, member in members(folder).items():
        about = jsonfile.checked(member / "done.json", records.Done)
        row: dict[str, Any] = about["row"] or {}
        result = row or about["result"]
        top1 = row.get("pruned_top1_pct", result.get("top1_pct"))
        origin = result.get("provenance") or {}
        commit, device = origin.get("commit") or "", records.kind_of_device(origin) or "–"
        hours = result.get("seconds", 0) * origin.get("threads", 1) / 3600
        spent[device] += hours
        cells = [f"{top1:.2f}" if top1 else "–", f"{row['macs_cut_pct']:.2f}" if row else "–"]
        cells += [f"{result['params']:,}" if "params" in result else "–", f"{hours:.2f}", device, commit[:7] or "–"]
        picture = f", [structure]({member.name}/structure.png)" if (member / "structure.png").is_file() else ""
        lines.append(f"| `{name}` | {' | '.join(cells)} | [{member.name}]({member.name}/done.json){picture} |")
    sums = [f"{hours:.1f} on {device.replace('–', 'a device that is not recorded')}" for device, hours in spent.items()]
    return "\n".join([*lines, "", f"Core-hours: {'; '.join(sums)}."]) + "\n"


def check(runs: Sequence[Pruned], context: Context, folder: Path = FOLDER, seed: int | None = None) -> tuple[bool, str]:
    """Run a random member again; return True if it agrees, and the comparison.

    The run starts from the members that it needs. On the same kind of device the weights must be equal in every bit. If they
    are not on another one, the accuracy must lie in the 95 % prediction interval of the member's setting over all seeds.
    Raises ValueError if no run is in the zoo with all its needs, if none can be compared, or if the run fails.
    """
    every = [run for run in runs if all((folder / stage.key / "done.json").is_file() for stage in in_order([run]))]
    if not every:
        raise ValueError(f"no run of the grid is in the zoo in {folder} with all that it needs")
    own_kind = records.kind_of_device(records.provenance(context.device))
    of_kind = [run for run in every if records.kind_of_device(_row(folder / run.key)["provenance"]) == own_kind]
    comparable = [run for run in every if run in of_kind or len(_seeds(run, every, folder)) > 1]
    if not comparable:
        raise ValueError(
            f"no run of the grid in the zoo in {folder} has two seeds or was made on {own_kind}; nothing can be compared"
        )
    run = random.Random(seed).choice(comparable)
    threads = jsonfile.checked(folder / run.key / "started.json", dict[str, Any])["threads"]
    before = _row(folder / run.key)
    with tempfile.TemporaryDirectory() as results:
        fresh = dataclasses.replace(context, results=Path(results), threads=threads)
        restore(in_order([run])[:-1], fresh, folder)
        if (outcome := execute(run, fresh)) != "done":
            raise ValueError(
                f"{run.label} ended as {outcome}: {(failure(run, fresh) or {}).get('reason', 'no reason given')}"
            )
        again = _row(fresh.folder(run))
    accuracies = f"{run.label}: {before['pruned_top1_pct']:.2f} % in the zoo, {again['pruned_top1_pct']:.2f} % now"
    if before["weights_sha256"] == again["weights_sha256"]:
        return True, f"{accuracies}; weights equal in every bit"
    if run in of_kind:
        return False, f"{accuracies}; weights differ on the same kind of device"
    return _within(again["pruned_top1_pct"], _seeds(run, every, folder), accuracies)


def _seeds(run: Pruned, runs: Iterable[Pruned], folder: Path) -> list[float]:
    """Return the accuracies of the members that differ from `run` in the seed only."""
    alike = [
        other
        for other in runs
        if run
        == dataclasses.replace(
            other,
            seed=run.seed,
            base=dataclasses.replace(other.base, seed=run.base.seed),
            reference=run.reference,
        )
    ]
    return [_row(folder / other.key)["pruned_top1_pct"] for other in alike]


def _within(value: float, values: Sequence[float], text: str) -> tuple[bool, str]:
    """Compare a value with the 95 % prediction interval of two or more others."""
    from scipy import stats  # half a second that a launch from the zoo need not pay

    n = len(values)
    reach = float(stats.t.ppf(0.975, n - 1)) * statistics.stdev(values) * (1 + 1 / n) ** 0.5
    low, high = statistics.mean(values) - reach, statistics.mean(values) + reach
    inside = low <= value <= high
    return inside, f"{text}; another kind of device, {'in' if inside else 'outside'} [{low:.2f}, {high:.2f}] (n = {n})"


def _row(folder: Path) -> dict[str, Any]:
    row: dict[str, Any] = jsonfile.checked(folder / "done.json", records.Done)["row"]
    return row


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    result = argparse.ArgumentParser(
        prog=cli.program("suite.zoo"), description="Finished networks of the record, by name."
    )
    commands = result.add_subparsers(dest="verb", required=True)
    commands.add_parser("list", help="print the names")
    for verb, text in (
        ("add", "copy the finished stages of a grid from --results into the zoo"),
        ("check", "run one randomly chosen member of a grid again, and compare it"),
    ):
        command = commands.add_parser(verb, help=text, description=text)
        cli.add_grid_options(command)
        cli.add_machine_options(command)
        if verb == "check":
            command.add_argument("--seed", type=int, metavar="N", help="of the choice (default: another one each time)")
    return result


def main() -> int:
    """Run the command line. Exit status: 0 done or equal, 1 different, 2 bad arguments."""
    arguments = parser().parse_args()
    cli.configure_logging()
    console = Console(soft_wrap=True, highlight=False, markup=False)
    try:
        if arguments.verb == "list":
            console.print("\n".join(members()) or "the zoo is empty")
            return 0
        grid = grids.load(arguments.grid)
        runs = grids.runs_of(grid, only=arguments.only, smoke=arguments.smoke)
        context = Context(
            results=cli.results_of(arguments), data=arguments.data, device=cli.device_of(arguments.device)
        )
        if arguments.verb == "add":
            new = add(grids.stages_of(grid, runs, smoke=arguments.smoke), context)
            console.print(f"{len(new)} new of {len(members())} networks in {FOLDER}")
            return 0
        equal, comparison = check(runs, context, seed=arguments.seed)
        console.print(comparison)
        return int(not equal)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"suite.zoo: {' '.join(str(error).split())}\n")
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
