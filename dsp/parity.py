"""Compares this package with numbers computed by the authors' released code: `python -m dsp.parity DIR`.

DIR holds group_penalty.npz, group_learning_trajectory.npz and masks.npz. Every value in them is either an input of the
computation or compared with its result; one that is neither counts as a failure.

Shapes: O filters, I input channels, G filter groups, K kernel positions.
"""

from __future__ import annotations

import argparse
import zipfile
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from dsp import groups as maths
from dsp.groups import GroupPenalty
from dsp.learner import GroupLearner, Settings
from dsp.released_network import ReleasedResNet
from dsp.selection import energy_planner
from suite.contract import Step
from suite.graph import Graph

TOLERANCE = 1e-7
EXACT_TOLERANCE = 1e-9
FILES = ("group_penalty.npz", "group_learning_trajectory.npz", "masks.npz")
# The trajectory's settings, which its file does not hold.
LAM, TEMPERATURE, LOGIT_LR, TOTAL_STEPS, LR, MOMENTUM, WEIGHT_DECAY = 2e-3, 0.5, 1e-3, 10, 0.05, 0.9, 1e-3


class Values:
    """Arrays of one file, as tensors, and the keys that were read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with np.load(path, allow_pickle=False) as file:
                self.arrays = {key: file[key] for key in file.files}
        except FileNotFoundError as error:
            raise ValueError(f"{path} is missing; the folder must hold {', '.join(FILES)}") from error
        except (OSError, ValueError, TypeError, AttributeError, zipfile.BadZipFile, EOFError) as error:
            raise ValueError(f"{path} cannot be read as an .npz file without pickles: {error}") from error
        self.used: set[str] = set()

    def array(self, key: str) -> np.ndarray:
        """Return the array `key`. Raises ValueError with the key if it is missing."""
        if key not in self.arrays:
            raise ValueError(f"it lacks {key}")
        self.used.add(key)
        return self.arrays[key]

    def __getitem__(self, key: str) -> Tensor:
        return torch.from_numpy(np.array(self.array(key)))

    def under(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors whose key starts with `prefix/`, by the rest of their key."""
        return {key[len(prefix) + 1 :]: self[key] for key in self.arrays if key.startswith(f"{prefix}/")}

    def names(self, prefix: str) -> list[str]:
        """Return the numbered first parts of the keys, such as case0 of case0/weight, in order."""
        parts = {key.split("/")[0] for key in self.arrays if key.startswith(prefix)}
        if not parts:
            raise ValueError(f"it has no key that starts with {prefix}")
        return sorted(parts, key=lambda name: float(name.removeprefix(prefix)))

    @property
    def unused(self) -> list[str]:
        """Keys that nobody asked for."""
        return sorted(self.arrays.keys() - self.used)


@dataclass
class Report:
    """The largest error of each group of values, and its tolerance."""

    errors: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    tolerances: dict[str, float] = field(default_factory=dict)

    def compare(self, group: str, ours: Tensor, released: Tensor, tolerance: float = TOLERANCE) -> None:
        """Add the largest difference over the largest released entry; other shape or NaN: infinite."""
        error = float("inf")
        if ours.shape == released.shape:
            ours, released = ours.double(), released.double()
            scale = released.abs().max() if released.any() else torch.ones(())
            error = float(((ours - released).abs().max() / scale).nan_to_num(nan=float("inf")))
        self.errors[group].append(error)
        self.tolerances[group] = tolerance

    @property
    def passed(self) -> bool:
        """Every error is within its tolerance."""
        return all(max(errors) <= self.tolerances[group] for group, errors in self.errors.items())


def compare_folder(folder: Path) -> Report:
    """Return all comparisons of a folder.

    Raises ValueError in one line if a file is missing, unreadable or incomplete.
    """
    report = Report()
    for name, compare in zip(FILES, (_compare_penalty, _compare_trajectory, _compare_masks), strict=True):
        values = Values(folder / name)
        try:
            compare(values, report)
        except (ValueError, RuntimeError, TypeError, IndexError, KeyError) as error:  # also torch on shapes
            raise ValueError(f"{values.path} is not in the format: {' '.join(str(error).split())}") from error
        if values.unused:
            raise ValueError(f"{values.path} holds {values.unused[0]}, which nothing here computes")
    return report


def _compare_penalty(values: Values, report: Report) -> None:
    """Penalty, its gradient and the gradients of the groups, layer by layer."""
    for case in values.names("case"):
        inputs = {
            name: values[f"{case}/{name}"] for name in ("weight", "logits", "soft", "hard", "input_size", "delta")
        }
        w_OIK, d_OIK = inputs["weight"].flatten(2), inputs["delta"].flatten(2)
        energy_OI, inner_OI = w_OIK.square().sum(-1), (w_OIK * d_OIK).sum(-1)
        soft = GroupPenalty(inputs["soft"], energy_OI, maths.RELEASED_EPSILON)
        hard = GroupPenalty(inputs["hard"], energy_OI, maths.RELEASED_EPSILON)
        pure = GroupPenalty(inputs["soft"], energy_OI)
        filters, kernel = len(energy_OI), w_OIK.shape[-1]
        scale = maths.penalty_scale(filters, kernel, len(inputs["soft"]), float(inputs["input_size"]))

        def same(group: str, key: str, ours: Tensor, tolerance: float = TOLERANCE, case: str = case) -> None:
            report.compare(group, ours, values[f"{case}/{key}"], tolerance)

        same("hard groups", "hard", maths.hard_groups(inputs["logits"]), 0)
        same("penalty R", "reg_value", soft.value_L())
        for key, penalty in (("penalty_soft", soft), ("penalty_hard", hard)):
            gradient = scale * inputs["weight"] * penalty.weight_factor_LOI()[..., None, None]
            same(f"penalty gradient, {'relaxed' if penalty is soft else 'hard'} groups", key, gradient)
        # ours are multiplied by p, see dsp.groups
        p = inputs["soft"]
        same("group gradient, first order", "grad_soft_first", soft.first_order_LGO() / p)
        released = soft.second_order_LGO(inner_OI, "released") / p
        same("group gradient, second order as released", "grad_soft_second_released", released)
        exact = pure.second_order_LGO(inner_OI, "exact") / p
        same("group gradient, second order exact", "grad_soft_second_exact", exact, EXACT_TOLERANCE)


def _compare_trajectory(values: Values, report: Report) -> None:
    """Whole training steps of a small network."""
    model = ReleasedResNet(values.under("init")).train()
    logits = values.under("logits0")
    steps = values.names("step")
    _, channels, height, width = values[f"{steps[0]}/x"].shape
    graph = Graph(model, (channels, height, width))
    settings = Settings(
        groups=len(next(iter(logits.values()))),
        lam=LAM,
        temperature=TEMPERATURE,
        penalty_scale="activations",
        second_order="released",
        logit_lr=LOGIT_LR,
    )
    noise: dict[str, Tensor] = {}
    learner = GroupLearner(model, graph, settings, seed=0, noise=lambda: noise)
    learner.load_state_dict({**learner.state_dict(), "logits": logits})
    for name, size in values.under("input_size").items():
        ours = maths.input_size(graph.convs[name], graph.input_shape) if name in graph.convs else float("nan")
        report.compare("trajectory: input size", torch.tensor(ours, dtype=torch.float64), size)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    for index, step in enumerate(steps):
        x, y = values[f"{step}/x"], values[f"{step}/y"]
        noise.update(values.under(f"{step}/gumbel"))
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        learner.after_step(Step(model, optimizer, x, y, LR, index, TOTAL_STEPS))
        report.compare("trajectory: loss", loss.detach(), values[f"{step}/loss"])
        _compare_all("trajectory: logits", learner.state_dict()["logits"], values.under(f"{step}/logits"), report)
        _compare_all("trajectory: weights and BN statistics", model.state_dict(), values.under(f"{step}/state"), report)


def _compare_all(group: str, ours: dict[str, Tensor], released: dict[str, Tensor], report: Report) -> None:
    for name, value in released.items():
        report.compare(group, ours.get(name, torch.empty(0)), value)


def _compare_masks(values: Values, report: Report) -> None:
    """Compare the cut at each beta, before dead filters and channels are removed."""
    layers = values.array("layers").tolist()
    weights = {name: values[f"weight/{name}"] for name in layers}
    logits = {name: values[f"logits/{name}"] for name in layers}
    plan_at = energy_planner(
        weights,
        {name: logits_GO.argmax(0) for name, logits_GO in logits.items()},
        groups=len(logits[layers[0]]),
        filter_pruned=values.array("filter_pruned_layers").tolist(),
    )
    sizes = {name: weight[0, 0].numel() for name, weight in weights.items()}
    macs = {name: size * _positions(name) for name, size in sizes.items()}
    for beta in values.names("beta"):
        plan = plan_at(float(beta.removeprefix("beta")))
        masks = {name: plan[name].mask_OI for name in layers}
        for name, mask_OI in masks.items():
            report.compare("masks", mask_OI.to(torch.uint8), values[f"{beta}/mask/{name}"], 0)
        for key, costs in (("flops", macs), ("params", sizes)):
            left = sum(int(mask_OI.sum()) * costs[name] for name, mask_OI in masks.items())
            dense = sum(mask_OI.numel() * costs[name] for name, mask_OI in masks.items())
            ours = torch.tensor(100 * (1 - left / dense), dtype=torch.float64)
            report.compare(f"cut of {key}", ours, values[f"{beta}/pruned_{key}_percent"])


def _positions(name: str) -> int:
    """Output pixels of the layer stage_S.B.conv_x for an image of 32x32."""
    return (32 >> int(name.split(".")[0].removeprefix("stage_")) - 1) ** 2


def table_of(report: Report) -> Table:
    """One row per group of values."""
    table = Table("group", "arrays", "largest relative error", "allowed", "", title="Parity with the released code")
    for group, errors in report.errors.items():
        worst, allowed = max(errors), report.tolerances[group]
        verdict = "[green]ok[/]" if worst <= allowed else "[red]DIFFERS[/]"
        table.add_row(group, str(len(errors)), f"{worst:.1e}", f"{allowed:.0e}" if allowed else "exactly", verdict)
    return table


def main(arguments: Iterable[str] | None = None) -> int:
    """Compare and print; the exit status is 1 when something differs or cannot be read."""
    parser = argparse.ArgumentParser(
        prog="python -m dsp.parity",
        description="Compare group learning and selection with numbers computed by the authors' released code.",
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help=f"folder with {', '.join(FILES)}")
    options = parser.parse_args(None if arguments is None else list(arguments))
    console = Console()
    try:
        report = compare_folder(options.folder)
    except ValueError as error:
        console.print(f"[red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        return 1
    console.print(table_of(report))
    return 0 if report.passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
