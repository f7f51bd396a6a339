"""Agreement of the groups that DSP's three second-order modes learn, in finished stages.

    python -m suite.launch --grid ablation_digits --results DIR
    python tests/benchmarks/second_order.py --results DIR

Agreement of two runs is the adjusted Rand index of a layer's groups (1: the same, 0: as by chance), mean over layers. Modes
are compared at the same seed (so from the same base network, with the same noise), then each mode with itself between seeds
as a reference: those runs share nothing. The table has mean and sample standard deviation over the n pairs of runs, which
between seeds are not independent.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Mapping
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from suite import grids
from suite.stages import Learned

Groups = Mapping[str, Tensor]
"""Layer name -> int64 [O], the group of each filter."""
MODES = ("exact", "released", "none")


def learned_groups(grid: str, results: Path) -> dict[tuple[str, str, int], Groups]:
    """Return (model, mode, seed) -> learned groups, for the finished stages of the grid."""
    plan = grids.load(grid)
    groups_by_run: dict[tuple[str, str, int], Groups] = {}
    for stage in grids.stages_of(plan, grids.runs_of(plan)):
        if not isinstance(stage, Learned) or stage.settings.method_name() != "dsp":
            continue
        path = results / "work" / stage.key / "state.pt"
        if getattr(stage.settings, "grouping", "") == "learned" and path.is_file():
            logits = torch.load(path, weights_only=True, map_location="cpu")["logits"]
            mode = getattr(stage.settings, "second_order")  # noqa: B009 (a field of one method only)
            groups_by_run[stage.base.model, mode, stage.seed] = {
                name: logits_GO.argmax(0) for name, logits_GO in logits.items()
            }
    return groups_by_run


def agreement(one: Groups, other: Groups) -> float:
    """Return the adjusted Rand index, mean over layers."""
    return statistics.mean(adjusted_rand_score(one[name].numpy(), other[name].numpy()) for name in one)


def line(values: list[float]) -> tuple[str, str]:
    """Return mean, spread and n as text."""
    if not values:
        return "", "0"
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}", str(len(values))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, metavar="DIR")
    parser.add_argument("--grid", default="ablation_digits", metavar="NAME")
    arguments = parser.parse_args()
    groups_by_run = learned_groups(arguments.grid, arguments.results)
    if not groups_by_run:
        parser.exit(2, f"no learned stage of {arguments.grid} has finished in {arguments.results}\n")
    table = Table("model", "groups of", "against", "adjusted Rand index", "n")
    for model in dict.fromkeys(model for model, _, _ in groups_by_run):
        seeds = sorted({seed for name, _, seed in groups_by_run if name == model})
        for one, other in itertools.combinations(MODES, 2):
            both = [s for s in seeds if (model, one, s) in groups_by_run and (model, other, s) in groups_by_run]
            values = [agreement(groups_by_run[model, one, s], groups_by_run[model, other, s]) for s in both]
            table.add_row(model, one, f"{other}, same seed", *line(values))
        for mode in MODES:
            own = [groups_by_run[model, mode, seed] for seed in seeds if (model, mode, seed) in groups_by_run]
            pairs = itertools.combinations(own, 2)
            table.add_row(model, mode, f"{mode}, other seed", *line([agreement(*pair) for pair in pairs]))
    Console().print(table)


if __name__ == "__main__":
    main()
