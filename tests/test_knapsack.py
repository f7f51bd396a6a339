"""Importance per cost: the relaxed and the exact knapsack, and planners that use them."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
import torch
from method_cases import task_of
from torch import Tensor

from dsp.method import DSP
from dsp.per_cost import per_cost_planner
from suite import models
from suite.graph import Graph
from suite.knapsack import Family, chunks, ranks, saved_shares, solve
from suite.plan import Budget, Per, PruningPlan, Timing
from suite.select import filter_planner, meet

GRAPH = Graph(models.build("resnet8", 10), (3, 8, 8))
SCORES = {
    name: torch.rand(conv.filters, generator=torch.Generator().manual_seed(number))
    for number, (name, conv) in enumerate(GRAPH.convs.items())
}


class InSteps:
    """A network whose time is that of its filters, in steps of 8 of each layer."""

    def predict_ms(self, graph: Graph, plan: PruningPlan) -> float:
        live = graph.live(plan).layers
        return float(sum(-(-int(layer.kept_O.sum()) // 8) for layer in live.values()))

    def cut(self, graph: Graph, plan: PruningPlan) -> float:
        return 1 - self.predict_ms(graph, plan) / self.predict_ms(graph, PruningPlan({}))


def family(importance: list[float], saved: list[float]) -> Family:
    return Family(torch.tensor(importance).double(), torch.tensor(saved).double())


def timed_graph() -> Graph:
    graph = Graph(models.build("resnet8", 10), (3, 8, 8))
    graph.times = InSteps()
    return graph


@pytest.mark.parametrize(
    ("count", "step", "sizes"), [(16, 8, [8, 8]), (10, 4, [2, 4, 4]), (3, 1, [1, 1, 1]), (3, 8, [3]), (0, 8, [])]
)
def test_removals_leave_multiples_of_the_step(count: int, step: int, sizes: list[int]) -> None:
    assert chunks(count, step) == sizes


def test_shares_are_computed_at_few_points_and_interpolated() -> None:
    calls = []

    def saved(count: int) -> float:
        calls.append(count)
        return count / 100

    assert torch.allclose(saved_shares(range(1, 101), saved), torch.arange(1, 101).double() / 100)
    assert len(calls) == 16


def test_steps_go_in_the_order_of_importance_per_cost() -> None:
    """Family 1 has ratios 1, 4; family 2 has 2, 3."""
    places = ranks([family([1, 4], [1, 2]), family([2, 3], [1, 2])])
    assert [place.tolist() for place in places] == [[0, 0.75], [0.25, 0.5]]


def test_a_dear_step_before_a_cheap_one_goes_together_with_it() -> None:
    """Ratios 4 and 0 make one of 2, behind 1 and before 3; a step that saves nothing is last."""
    places = ranks([family([4, 0, 1], [1, 2, 2]), family([1, 3], [1, 2])])
    assert [place.tolist() for place in places] == [[0.2, 0.2, 0.8], [0, 0.6]]


@pytest.mark.parametrize("seed", range(8))
def test_the_exact_knapsack_removes_the_least_importance(seed: int) -> None:
    """Compared with all choices; no choice saves between the wanted and the next hundredth."""
    draw = random.Random(seed)
    families = []
    for _ in range(3):
        saved = [draw.randrange(0, 8) / 100 for _ in range(4)]
        families.append(family([draw.random() for _ in saved], list(itertools.accumulate(saved))))
    most = sum(float(one.saved_K[-1]) for one in families)
    saving = round(most * 0.6, 2) - 0.005
    choices = itertools.product(range(5), repeat=3)

    def total(counts: tuple[int, ...], field: str) -> float:
        curves = [getattr(one, field) for one in families]
        curves = [curve.cumsum(0) for curve in curves] if field == "importance_K" else curves
        return sum(float(curve[count - 1]) for curve, count in zip(curves, counts, strict=True) if count)

    enough = [counts for counts in choices if total(counts, "saved_K") >= saving - 1e-9]
    best = min(total(counts, "importance_K") for counts in enough)
    found = tuple(solve(families, saving))
    assert total(found, "saved_K") >= saving - 1e-9
    assert total(found, "importance_K") == pytest.approx(best)
    with pytest.raises(ValueError, match="is more than all steps together save"):
        solve(families, most + 0.01)


def removed(plan: PruningPlan, scores: dict[str, Tensor]) -> float:
    return sum(float(scores[name][~layer.kept_O].sum()) for name, layer in plan.items())


def test_importance_per_millisecond_loses_less_at_equal_time() -> None:
    """In a network whose time falls in steps of eight filters."""
    graph = timed_graph()
    settings: dict[str, Any] = {"ranking": "raw", "scope": "inner"}
    budget = Budget(share=0.2, scope="latency", timing=Timing(protocol="quick"))
    plain = meet(filter_planner(graph, SCORES, **settings), graph, budget).plan
    dearly = meet(filter_planner(graph, SCORES, **settings, per="ms", step=8), graph, budget).plan
    assert graph.cut(plain, "latency") >= 0.2
    assert graph.cut(dearly, "latency") >= 0.2
    assert removed(dearly, SCORES) < removed(plain, SCORES)
    assert all(int((~layer.kept_O).sum()) % 8 == 0 for layer in dearly.values())


@pytest.mark.parametrize("per", ["macs", "ms"])
def test_the_order_per_cost_is_monotone_and_takes_coupled_sets_whole(per: Per) -> None:
    graph = timed_graph()
    planner = filter_planner(graph, SCORES, ranking="global", per=per, step=4)
    masks = [{name: layer.kept_O for name, layer in planner(knob).items()} for knob in (0.0, 0.3, 0.6, 1.0)]
    assert masks[0] == {}
    for before, after in itertools.pairwise(masks):
        assert all(name in after and not bool((after[name] & ~kept).any()) for name, kept in before.items())
    for name, kept_O in masks[2].items():
        for other, others_O in masks[2].items():
            same = graph.filter_sets[name][:, None] == graph.filter_sets[other]
            assert torch.equal(same & kept_O[:, None], same & others_O)


def test_bad_orders_per_cost_are_refused() -> None:
    with pytest.raises(ValueError, match="take ranking 'global' or 'raw', not 'layer'"):
        filter_planner(GRAPH, SCORES, ranking="layer", per="ms")
    with pytest.raises(ValueError, match="there is none here: give the run a latency budget"):
        filter_planner(GRAPH, SCORES, ranking="global", per="ms")


class UnionOnly(InSteps):
    """Time of one merged convolution a layer: channels that any group reads count."""

    def predict_ms(self, graph: Graph, plan: PruningPlan) -> float:
        live = graph.live(plan).layers
        return float(sum(int(layer.mask_OI.any(0).sum()) for layer in live.values()))


class KernelsOnly(InSteps):
    """Time of groups that run apart without overhead."""

    def predict_ms(self, graph: Graph, plan: PruningPlan) -> float:
        return float(sum(layer.kernels for layer in graph.live(plan).layers.values()))


@pytest.mark.parametrize(("times", "together"), [(UnionOnly(), True), (KernelsOnly(), False)])
def test_groups_lose_the_same_channels_where_only_the_union_costs_time(times: InSteps, together: bool) -> None:
    graph = timed_graph()
    graph.times = times
    name = next(name for name, conv in graph.convs.items() if (conv.filters, conv.channels) == (16, 16))
    groups = {name: torch.arange(16) % 2}
    weight = torch.rand(16, 16, 3, 3, generator=torch.Generator().manual_seed(0))
    planner = per_cost_planner(graph, {name: weight}, groups, 2, (), per="ms", step=4)
    kept_GI = planner(0.4)[name].kept_GI
    assert kept_GI.sum(1).tolist() == [8, 8]
    assert torch.equal(kept_GI[0], kept_GI[1]) == together
    assert planner(1.0)[name].kept_GI.sum(1).tolist() == [1, 1]
    assert bool(planner(0.0)[name].mask_OI.all())


def test_dsp_meets_a_budget_by_energy_per_cost() -> None:
    """Plans grow with the knob; other settings than a criterion's are refused in one line."""
    model = models.build("resnet8", 10).eval()
    graph = Graph(model, (3, 8, 8))
    generator = torch.Generator().manual_seed(0)
    logits = {c.name: torch.rand(2, c.filters, generator=generator) for c in graph.convs.values() if c.prunable}
    planner = DSP(per="macs", step=4).planner(model, graph, {"logits": logits}, task_of(0))
    found = [meet(planner, graph, Budget(share=share)) for share in (0.2, 0.4)]
    assert [selection.cut >= share for selection, share in zip(found, (0.2, 0.4), strict=True)] == [True, True]
    assert (found[0].plan & found[1].plan).sha256 == found[1].plan.sha256
    with pytest.raises(ValueError, match="take another filter_pruned than 'coupled'"):
        DSP(per="ms", filter_pruned="coupled")
    with pytest.raises(ValueError, match="per = 's' is unknown; choose from: , macs, ms"):
        DSP(per="s")  # type: ignore[arg-type]
