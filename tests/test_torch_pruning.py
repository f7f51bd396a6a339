"""Torch-Pruning, a second implementation: on the same weights it keeps the same filters, and sees the same coupling."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
import torch_pruning as tp
from method_cases import network_of, task_of
from torch import Tensor, nn

from baselines.fpgm_once import FPGMOnce
from baselines.l1_filter import L1Filter
from baselines.l2_filter import L2Filter
from baselines.slimming import Slimming
from baselines.taylor_once import TaylorOnce
from suite.contract import Pruner
from suite.graph import Graph

SHAPE = (3, 32, 32)


@dataclasses.dataclass(frozen=True)
class Case:
    """Our criterion, theirs, and the comparison of layers that both use.

    Theirs scores a group of coupled tensors; it is told to look at the filters alone (`group_reduction="first"`), or at the
    batch norm alone. The network has no residual sums, where the two average differently. "layer" is their default, "global"
    their normalizer "mean", "raw" their normalizer None; where a whole layer would go, ours keeps its best filter and theirs
    all of it, so only scores of like size are compared raw.
    """

    ours: Pruner
    theirs: Callable[[], tp.importance.Importance]
    global_pruning: bool
    prepare: Callable[[nn.Module], None] = lambda model: None


def positive(model: nn.Module) -> None:
    """Their FPGM measures the distances between absolute weights to the power p; for positive ones and p = 1 that is ours."""
    for parameter in model.parameters():
        parameter.data.abs_()


def unshifted(model: nn.Module) -> None:
    """Their Taylor leaves batch norm out and sums weight * gradient of the filter; when the batch norm only scales, the sum
    over its input is that over its output, which is the gate's."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.bias.data.zero_()
    x, labels = task_of(0).samples(32)
    nn.functional.cross_entropy(model.eval()(x), labels).backward()


def magnitude(p: int, normalizer: str | None) -> tp.importance.Importance:
    return tp.importance.GroupMagnitudeImportance(p=p, group_reduction="first", normalizer=normalizer)


def fpgm(normalizer: str | None) -> tp.importance.Importance:
    return tp.importance.FPGMImportance(p=1, group_reduction="first", normalizer=normalizer)


def taylor() -> tp.importance.Importance:
    return tp.importance.GroupTaylorImportance(multivariable=True, group_reduction="first", normalizer=None)


TAYLOR = TaylorOnce(batches=1, batch_size=32)
CASES = {
    "l1-layer": Case(L1Filter(ranking="layer"), lambda: magnitude(1, None), False),
    "l1-global": Case(L1Filter(ranking="global"), lambda: magnitude(1, "mean"), True),
    # theirs is the square, whose share of the layer's mean is another one
    "l2-layer": Case(L2Filter(ranking="layer"), lambda: magnitude(2, None), False),
    "fpgm-layer": Case(FPGMOnce(ranking="layer"), lambda: fpgm(None), False, positive),
    "fpgm-global": Case(FPGMOnce(ranking="global"), lambda: fpgm("mean"), True, positive),
    "slimming-raw": Case(Slimming(), lambda: tp.importance.BNScaleImportance(normalizer=None), True),
    "taylor-layer": Case(dataclasses.replace(TAYLOR, ranking="layer"), taylor, False, unshifted),
    "taylor-raw": Case(TAYLOR, taylor, True, unshifted),
}


def their_removals(model: nn.Module, case: Case, share: float) -> dict[str, set[int]]:
    """Layer -> the filters that Torch-Pruning would remove."""
    names = {module: name for name, module in model.named_modules()}
    pruner = tp.pruner.BasePruner(
        model,
        torch.zeros(1, *SHAPE),
        importance=case.theirs(),
        global_pruning=case.global_pruning,
        pruning_ratio=share,
        ignored_layers=[module for module in model.modules() if isinstance(module, nn.Linear)],
    )
    removed: dict[str, set[int]] = {}
    for group in pruner.step(interactive=True):
        dependency, filters = group[0]
        removed.setdefault(names[dependency.target.module], set()).update(filters)
    return removed


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("name", CASES)
def test_both_keep_the_same_filters(name: str, share: float) -> None:
    case = CASES[name]
    model = network_of("vgg6")
    case.prepare(model)
    theirs = their_removals(model, case, share)
    count = sum(len(filters) for filters in theirs.values())
    graph = Graph(model, SHAPE)
    planner = case.ours.planner(model, graph, {"read": {}}, task_of(0))
    for step in range(1001):
        plan = planner(step / 1000)
        ours = {layer: set((~plan[layer].kept_O).nonzero()[:, 0].tolist()) for layer in plan}
        if sum(len(filters) for filters in ours.values()) >= count:
            break
    assert count == pytest.approx(share * sum(conv.filters for conv in graph.convs.values()), abs=1)
    assert ours == theirs


def coupled(layers: dict[str, Tensor]) -> set[frozenset[tuple[str, int]]]:
    """The sets of (layer, filter) with the same number."""
    sets: dict[int, set[tuple[str, int]]] = {}
    for layer, numbers in layers.items():
        for filter_, number in enumerate(numbers.tolist()):
            sets.setdefault(number, set()).add((layer, filter_))
    return {frozenset(members) for members in sets.values()}


@pytest.mark.parametrize("network", ["resnet8", "bottleneck", "vgg6"])
def test_both_couple_the_same_filters(network: str) -> None:
    model = network_of(network)
    graph = Graph(model, SHAPE)
    names = {module: name for name, module in model.named_modules()}
    dependencies = tp.DependencyGraph().build_dependency(model, example_inputs=torch.zeros(1, *SHAPE))
    theirs = set()
    for layer, conv in graph.convs.items():
        for filter_ in range(conv.filters):
            group = dependencies.get_pruning_group(model.get_submodule(layer), tp.prune_conv_out_channels, [filter_])
            theirs.add(
                frozenset(
                    (names[dependency.target.module], index)
                    for dependency, filters in group
                    if dependency.handler == tp.prune_conv_out_channels
                    for index in filters
                )
            )
    assert theirs == coupled(dict(graph.filter_sets))
