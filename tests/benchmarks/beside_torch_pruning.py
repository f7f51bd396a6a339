"""Planning time to half of the MACs beside Torch-Pruning, in one process.

    python tests/benchmarks/beside_torch_pruning.py

All sides remove filters by their L1 norm, tied through residual sums, and end at a small network.

suite            tracing, bisection to 50 % of the MACs with exact dead channels, packing
search           Torch-Pruning's own way to a budget: dependency graph, then steps of 5 % of the filters and a count of the MACs
                 after each, until half of them are gone (an excess of up to 8 points)
one step         Torch-Pruning's dependency graph and one step at a ratio known beforehand, without any count

Times are CPU seconds of one thread. The sides alternate, and each round has ratios of its own.
"""

from __future__ import annotations

import argparse
import copy
import gc
import statistics
import time
from collections.abc import Callable
from importlib import metadata

import torch
import torch_pruning as tp
import torchvision
from rich.console import Console
from rich.table import Table
from torch import nn

from suite import methods
from suite.contract import Budget, Task
from suite.graph import Graph
from suite.pack import pack
from suite.select import meet

NETWORKS = ("resnet50", "mobilenet_v2", "densenet121", "efficientnet_b0")
SHAPE = (3, 224, 224)
EXAMPLE = torch.zeros(1, *SHAPE)
RATIO = 0.3
"""Share of each layer's filters whose removal takes about half of the MACs."""
STEPS = 10


def own(model: nn.Module) -> None:
    """Prune a copy by this suite."""
    model = copy.deepcopy(model)
    graph = Graph(model, SHAPE)
    task = Task(train_epoch=lambda epoch: iter(()), samples=lambda n: (torch.zeros(0), torch.zeros(0)), seed=0)
    pruner = methods.get("l1_filter").for_task("", "", scope="coupled")
    plan = meet(pruner.planner(model, graph, {}, task), graph, Budget(share=0.5)).plan
    pack(model, graph, plan)


def _pruner(model: nn.Module, **settings: float) -> tp.pruner.MagnitudePruner:
    heads = [module for module in model.modules() if isinstance(module, nn.Linear)][-1:]
    importance = tp.importance.MagnitudeImportance(p=1)
    return tp.pruner.MagnitudePruner(model, EXAMPLE, importance=importance, ignored_layers=heads, **settings)


def one_step(model: nn.Module) -> None:
    """Prune a copy by one step of Torch-Pruning."""
    _pruner(copy.deepcopy(model), pruning_ratio=RATIO).step()


def search(model: nn.Module) -> None:
    """Prune a copy by Torch-Pruning until half of the MACs are gone."""
    model = copy.deepcopy(model)
    dense, _ = tp.utils.count_ops_and_params(model, EXAMPLE)
    pruner = _pruner(model, pruning_ratio=0.5, iterative_steps=STEPS)
    for _ in range(STEPS):
        pruner.step()
        if tp.utils.count_ops_and_params(model, EXAMPLE)[0] <= dense / 2:
            return


def seconds(work: Callable[[nn.Module], None], model: nn.Module) -> float:
    """Return the CPU seconds of one call."""
    gc.collect()
    began = time.process_time()
    work(model)
    return time.process_time() - began


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    options = parser.parse_args()
    table = Table("network", "suite s", "search s", "ratio (least - most)", "one step s", "ratio (least - most)")
    for name in options.networks:
        torch.manual_seed(0)
        model = torchvision.models.get_model(name).eval()
        sides = (own, search, one_step)
        for side in sides:
            side(model)  # the first calls load and compile modules
        rounds = [[seconds(side, model) for side in sides] for _ in range(options.rounds)]
        cells = [f"{statistics.median(times):.2f}" for times in zip(*rounds, strict=True)]
        ratios = [[times[place] / times[0] for times in rounds] for place in (1, 2)]
        spreads = [f"{statistics.median(each):.2f} ({min(each):.2f} - {max(each):.2f})" for each in ratios]
        table.add_row(name, cells[0], cells[1], spreads[0], cells[2], spreads[1])
    version = metadata.version("torch-pruning")
    table.caption = f"torch {torch.__version__}, Torch-Pruning {version}, {torch.get_num_threads()} threads"
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
