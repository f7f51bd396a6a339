"""The energy rule: nested cuts, nothing at beta 0, and a case worked by hand."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsp.selection import channel_thresholds, coupled_thresholds, energy_planner, filter_thresholds, kernel_energies
from suite.graph import Graph
from suite.models import build


def weight_of(energy_OI: torch.Tensor) -> torch.Tensor:
    return energy_OI.sqrt()[..., None, None]


ENERGY_OI = torch.tensor([[1.0, 2.0, 3.0, 4.0], [1.0, 0.0, 1.0, 8.0], [0.0, 0.0, 0.0, 5.0]])
GROUP_O = torch.tensor([0, 1, 1])


def test_by_hand() -> None:
    # group 0 holds 1 2 3 4 of 10: running shares 0.1 0.3 0.6 1; group 1 holds 1 0 1 13 of 15: 1/15 0 2/15 1
    expected = torch.tensor([[0.1, 0.3, 0.6, 1.0], [1 / 15, 0, 2 / 15, 1]], dtype=torch.float64)
    torch.testing.assert_close(channel_thresholds(kernel_energies(weight_of(ENERGY_OI)), GROUP_O, 2), expected)
    # filters hold 10 10 5 of 25: the last goes first, then the first of two equal ones
    filters_O = filter_thresholds(ENERGY_OI.double())
    torch.testing.assert_close(filters_O, torch.tensor([0.6, 1.0, 0.2], dtype=torch.float64))

    planner = energy_planner({"a": weight_of(ENERGY_OI)}, {"a": GROUP_O}, 2, {"a"})
    plan = planner(0.25)["a"]
    assert plan.kept_GI.tolist() == [[False, True, True, True], [False, False, False, True]]
    assert plan.kept_O.tolist() == [True, True, False]
    assert energy_planner({"a": weight_of(ENERGY_OI)}, {"a": GROUP_O}, 2, ())(0.25)["a"].kept_O.all()


def test_coupled_filters_by_hand() -> None:
    """Relative energies 0.5 1.5 and 1 1 have the means 0.75 and 1.25 over both layers."""
    weights = {"a": weight_of(torch.tensor([[1.0], [3.0]])), "b": weight_of(torch.tensor([[2.0], [2.0]]))}
    sets = {name: torch.tensor([0, 1]) for name in weights}
    thresholds = coupled_thresholds(weights, sets)
    expected = torch.tensor([0.375, torch.inf], dtype=torch.float64)  # 0.75 of 2; the best set stays
    torch.testing.assert_close(thresholds["a"], expected)
    torch.testing.assert_close(thresholds["b"], expected)
    plan = energy_planner(weights, {"a": torch.zeros(2, dtype=torch.long)}, 1, (), thresholds)(0.4)
    assert plan["a"].kept_O.tolist() == plan["b"].kept_O.tolist() == [False, True]
    assert bool(plan["b"].kept_GI.all())


def test_a_beta_below_every_share_removes_nothing() -> None:
    """The released code's index wraps round here, and the whole group goes."""
    plan = energy_planner({"a": weight_of(torch.full((4, 4), 3.0))}, {"a": torch.zeros(4, dtype=torch.long)}, 1, {"a"})
    assert bool(plan(0.2)["a"].mask_OI.all())
    assert plan(0.3)["a"].kept_GI.sum() == 3


@settings(max_examples=60)
@given(st.integers(1, 4), st.integers(1, 8), st.integers(1, 6), st.integers(0, 10**6), st.data())
def test_larger_beta_removes_all_that_a_smaller_one_does(
    groups: int, filters: int, channels: int, seed: int, data: st.DataObject
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(filters, channels, 3, 3, generator=generator)
    weight[torch.rand(filters, channels, generator=generator) < 0.3] = 0
    group_O = torch.randint(groups, (filters,), generator=generator)
    planner = energy_planner({"a": weight}, {"a": group_O}, groups, {"a"})
    small, large = sorted(data.draw(st.tuples(st.floats(0, 1), st.floats(0, 1))))
    assert bool((planner(large)["a"].mask_OI <= planner(small)["a"].mask_OI).all())
    assert bool(planner(0.0)["a"].mask_OI.all())
    assert bool(planner(1.0)["a"].mask_OI.any()) == bool(weight.any()), "the strongest channel and filter stay"


def test_filter_energies_are_those_before_channels_are_cut() -> None:
    # filter 1 is the stronger one, but most of it lies in channels that go
    energy_OI = torch.tensor([[0.0, 0.0, 0.0, 4.0], [2.0, 2.0, 2.0, 1.0]])
    group_O = torch.zeros(2, dtype=torch.long)
    planner = energy_planner({"a": weight_of(energy_OI)}, {"a": group_O}, 1, {"a"})
    assert planner(0.5)["a"].kept_O.tolist() == [False, True]


def test_all_zero_groups_go_at_once_and_make_no_nan() -> None:
    thresholds = channel_thresholds(torch.zeros(2, 3, dtype=torch.float64), torch.zeros(2, dtype=torch.long), 2)
    assert torch.equal(thresholds, torch.zeros(2, 3, dtype=torch.float64))


def test_more_beta_never_leaves_more_macs() -> None:
    torch.manual_seed(0)
    model = build("resnet8", 10)
    graph = Graph(model, (3, 32, 32))
    names = [conv.name for conv in graph.convs.values() if conv.prunable]
    weights = {name: model.get_parameter(f"{name}.weight") for name in names}
    groups = {name: torch.randint(3, (len(weight),)) for name, weight in weights.items()}
    planner = energy_planner(weights, groups, 3, {n for n in names if graph.convs[n].role == "closing"})
    cuts = [graph.cut(planner(beta)) for beta in torch.linspace(0, 1, 21).tolist()]
    assert cuts[0] == 0
    assert cuts == sorted(cuts)
    assert cuts[-1] > 0.9
