"""Plans: what they refuse, their one canonical form, the way to a file and back; budgets and recipes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from suite.contract import Budget, ConvPlan, OptOut, Pruner, PruningPlan, Recipe


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def bools(*rows: str) -> Tensor:
    """ "1101" -> a row of True, True, False, True."""
    return torch.tensor([[mark == "1" for mark in row] for row in rows])


@st.composite
def masks(draw: st.DrawFn, filters: int | None = None, channels: int | None = None) -> Tensor:
    """[O, I]; few distinct rows, so that filters share groups."""
    filters = filters or draw(st.integers(1, 7))
    channels = channels or draw(st.integers(1, 5))
    rows = draw(st.lists(st.lists(st.booleans(), min_size=channels, max_size=channels), min_size=1, max_size=3))
    picks = draw(st.lists(st.integers(0, len(rows) - 1), min_size=filters, max_size=filters))
    return torch.tensor([rows[pick] for pick in picks])


def in_another_way(mask_OI: Tensor, generator: torch.Generator) -> ConvPlan:
    """A plan with the mask `mask_OI` whose groups are numbered at random, some twice, some with no filter."""
    filters, channels = mask_OI.shape
    numbers = torch.randperm(2 * filters + 1, generator=generator)
    kept_GI = torch.rand(2 * filters + 1, channels, generator=generator) < 0.5
    group = numbers[:filters]
    kept_GI[group] = mask_OI
    kept_O = torch.ones(filters, dtype=torch.bool)
    silent = ~mask_OI.any(1)
    kept_O[silent] = torch.rand(int(silent.sum()), generator=generator) < 0.5  # removed, or reading nothing: the same
    kept_GI[group[~kept_O]] |= torch.rand(int((~kept_O).sum()), channels, generator=generator) < 0.5
    return ConvPlan(group, kept_GI, kept_O)


# ---- what is refused -------------------------------------------------------------------------------------------------

GROUP, KEPT, FILTERS = ints(0, 1), bools("11", "10"), bools("11")[0]


@pytest.mark.parametrize(
    ("group", "kept", "filters", "words"),
    [
        (GROUP.int(), KEPT, FILTERS, "torch.int32"),
        (GROUP, KEPT.float(), FILTERS, "torch.float32"),
        (GROUP, KEPT, FILTERS.long(), "torch.int64"),
        (GROUP[None], KEPT, FILTERS, "[1, 2], [2, 2], [2]"),
        (GROUP, KEPT[0], FILTERS, "[2], [2], [2]"),
        (GROUP, KEPT, FILTERS[:1], "[2], [2, 2], [1]"),
        (GROUP[:0], KEPT, FILTERS[:0], "[0], [2, 2], [0]"),
        (ints(0, 2), KEPT, FILTERS, "0..1, got 0..2"),
        (ints(-1, 0), KEPT, FILTERS, "0..1, got -1..0"),
    ],
)
def test_a_plan_that_does_not_fit_together_is_refused_in_one_line(
    group: Tensor, kept: Tensor, filters: Tensor, words: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        ConvPlan(group, kept, filters)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("share", [-0.01, 1.0, 60, float("nan"), float("inf")])
def test_a_budget_outside_its_range_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=r"outside \[0, 1\)") as error:
        Budget(share=share)
    assert "\n" not in str(error.value)


def test_a_budget_of_an_unknown_scope_is_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match="'all' is unknown; choose network, prunable, latency"):
        Budget(share=0.5, scope="all")  # type: ignore[arg-type]


@pytest.mark.parametrize("share", [0, 0.0, 0.5, 0.999])
def test_budgets_in_the_range_are_taken(share: float) -> None:
    assert Budget(share=share).share == share


# ---- the canonical form ----------------------------------------------------------------------------------------------


def test_the_canonical_form_of_a_plan_worked_out_by_hand() -> None:
    plan = ConvPlan(
        ints(4, 1, 4, 2, 3, 0),
        bools("000", "101", "010", "110", "101"),  # groups 1 and 4 are one; 0 reads nothing; 3 has no filter left
        bools("111101")[0],
    ).canonical()
    assert plan.filter_group_O.tolist() == [0, 0, 0, 1, 0, 0]
    assert plan.kept_GI.tolist() == bools("101", "010").tolist()
    assert plan.kept_O.tolist() == bools("111100")[0].tolist()
    assert [(f.tolist(), c.tolist()) for f, c in plan.groups] == [([0, 1, 2], [0, 2]), ([3], [1])]


@given(mask_OI=masks(), seed=st.integers(0, 999))
@settings(max_examples=60)
def test_plans_with_the_same_mask_are_equal_however_they_are_written(mask_OI: Tensor, seed: int) -> None:
    other = in_another_way(mask_OI, torch.Generator().manual_seed(seed))
    assert torch.equal(other.mask_OI, mask_OI)
    one, two = PruningPlan({"conv": ConvPlan.from_mask(mask_OI)}), PruningPlan({"conv": other})
    assert one == two
    assert hash(one) == hash(two)
    assert one.sha256 == two.sha256
    left, right = ConvPlan.from_mask(mask_OI).canonical(), other.canonical()
    for field in ("filter_group_O", "kept_GI", "kept_O"):
        assert torch.equal(getattr(left, field), getattr(right, field))
        assert torch.equal(getattr(left, field), getattr(left.canonical(), field))
    assert torch.equal(left.mask_OI, mask_OI)
    cover = torch.zeros_like(mask_OI, dtype=torch.int64)
    for filters, channels in other.groups:
        cover[filters[:, None], channels] += 1
    assert torch.equal(cover, mask_OI.long())


@given(first=masks(filters=4, channels=3), second=masks(filters=4, channels=3))
@settings(max_examples=60)
def test_plans_are_equal_only_when_their_masks_are(first: Tensor, second: Tensor) -> None:
    one, two = (PruningPlan({"conv": ConvPlan.from_mask(mask)}) for mask in (first, second))
    assert (one == two) == torch.equal(first, second)


def test_layer_names_order_and_untouched_layers() -> None:
    mask, full = ConvPlan.from_mask(bools("10", "11")), ConvPlan.full(2, 2)
    assert PruningPlan({"a": mask, "b": mask}) == PruningPlan({"b": mask, "a": mask})
    assert PruningPlan({"a": mask}) != PruningPlan({"b": mask})
    assert PruningPlan({"a": mask, "b": full}) == PruningPlan({"a": mask})
    assert PruningPlan({"b": full}) == PruningPlan({})
    assert PruningPlan({}) != {}
    assert len({PruningPlan({"a": full}), PruningPlan({}), PruningPlan({"a": mask})}) == 2


@given(mask_OI=masks())
@settings(max_examples=30)
def test_of_keeps_the_mask(mask_OI: Tensor) -> None:
    plan = ConvPlan.from_mask(mask_OI)
    assert torch.equal(plan.mask_OI, mask_OI)
    assert len(plan.kept_GI) == len({tuple(row) for row in mask_OI.tolist()})


def test_full_removes_nothing() -> None:
    assert bool(ConvPlan.full(3, 5).mask_OI.all())
    assert ConvPlan.full(3, 5).mask_OI.shape == (3, 5)


@given(first=masks(filters=5, channels=3), second=masks(filters=5, channels=3), seed=st.integers(0, 999))
@settings(max_examples=60)
def test_and_removes_what_either_removes(first: Tensor, second: Tensor, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    one, two = in_another_way(first, generator), in_another_way(second, generator)
    assert torch.equal((one & two).mask_OI, first & second)
    plans = PruningPlan({"a": one, "b": one}), PruningPlan({"b": two, "c": two})
    both = plans[0] & plans[1]
    assert {name: layer.mask_OI.tolist() for name, layer in both.items()} == {
        "a": first.tolist(),
        "b": (first & second).tolist(),
        "c": second.tolist(),
    }
    assert both == plans[1] & plans[0]


@given(mask_OI=masks(), seed=st.integers(0, 999))
@settings(max_examples=15)
def test_a_plan_survives_a_file(tmp_path_factory: pytest.TempPathFactory, mask_OI: Tensor, seed: int) -> None:
    path: Path = tmp_path_factory.getbasetemp() / "plan.safetensors"
    layer = in_another_way(mask_OI, torch.Generator().manual_seed(seed))
    plan = PruningPlan({"stage.0/odd": layer, "b": ConvPlan.full(2, 3)})
    save_file(plan.to_tensors(), path)
    again = PruningPlan.from_tensors(load_file(path))
    assert again == plan
    assert list(again) == list(plan)
    for name, tensor in plan.to_tensors().items():
        assert torch.equal(again.to_tensors()[name], tensor)


# ---- recipes ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Tuned(Pruner):
    recipes: ClassVar = {
        ("digits", "vgg6"): Recipe(settings={"strength": 1}, source="both"),
        ("*", "vgg6"): Recipe(settings={"strength": 2}, source="model"),
        ("digits", "*"): Recipe(settings={"strength": 3}, source="data"),
        ("*", "resnet8"): OptOut(reason="it has residual sums"),
        ("*", "*"): Recipe(settings={"strength": 4}, source="any"),
    }
    strength: int = 0


@pytest.mark.parametrize(
    ("data", "model", "source"),
    [
        ("digits", "vgg6", "both"),
        ("cifar10", "vgg6", "model"),
        ("digits", "resnet20", "data"),
        ("cifar10", "resnet20", "any"),
    ],
)
def test_the_most_specific_recipe_is_taken(data: str, model: str, source: str) -> None:
    found = Tuned.recipe(data, model)
    assert isinstance(found, Recipe)
    assert found.source == source
    assert Tuned.for_task(data, model) == Tuned(**found.settings)
    assert Tuned.for_task(data, model, strength=9) == Tuned(strength=9)


def test_a_method_that_opts_out_says_why() -> None:
    with pytest.raises(ValueError, match="Tuned does not run on resnet8 with digits: it has residual sums"):
        Tuned.for_task("digits", "resnet8")
    assert Pruner.for_task("digits", "resnet8") == Pruner()
