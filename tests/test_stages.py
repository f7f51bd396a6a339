"""Stages: their names never change by accident, and they come in an order in which they can be done."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import pytest

from baselines.fpgm import FPGM
from baselines.fpgm_once import FPGMOnce
from baselines.greg import GReg
from baselines.l1_filter import L1Filter
from baselines.random_rates import RandomRates
from baselines.slimming import Slimming
from dsp import DSP
from suite.contract import Budget
from suite.schedule import Compute, Schedule
from suite.stages import Base, Learned, Pruned, Stage, Timed, Timing, describe, identity, in_order

SHORT = Schedule(epochs=2, lr=0.05, weight_decay=5e-4)
BASE = Base(data="digits", model="resnet8", schedule=SHORT, seed=0)
PUBLIC = Base(data="cifar10", model="resnet20_a", schedule=None, seed=0, weights="cifar10_resnet20_a")
LEARNED = Learned(base=BASE, settings=DSP(), schedule=SHORT, seed=0)
PRUNED = Pruned(base=BASE, settings=DSP(), learning=SHORT, budget=Budget(share=0.5), finetune=SHORT, seed=0)
EARLIER = L1Filter(scope="coupled", ranking="global")
PLAIN = Pruned(base=BASE, settings=EARLIER, learning=None, budget=Budget(share=0.5), finetune=SHORT, seed=0)
TIMED = Timed(pruned=PRUNED, timing=Timing())
FOLLOWING = dataclasses.replace(PLAIN, settings=RandomRates(), reference=PLAIN)

GOLDEN: dict[str, Stage] = {
    "base-68162ba243c5": BASE,
    "base-e991345f69d7": PUBLIC,
    "learned-81a590790426": LEARNED,
    "pruned-334f5c1ffa33": PRUNED,
    "pruned-0b03494eeeca": PLAIN,
    "pruned-c7523f7edc8b": dataclasses.replace(PRUNED, settings=DSP(groups=3), smoke=True),
    "timed-944f55c8967a": TIMED,
    "pruned-72d7fc7a9979": FOLLOWING,
}
"""A name may change only when results made under it are no longer valid: a change here orphans every stored row."""


@pytest.mark.parametrize(("key", "stage"), GOLDEN.items())
def test_names_are_frozen(key: str, stage: Stage) -> None:
    assert stage.key == key


def test_weights_need_no_schedule() -> None:
    assert Base(data="cifar10", model="resnet20_a", seed=0, weights="cifar10_resnet20_a").key == PUBLIC.key


def test_a_name_is_kind_and_twelve_hex_digits() -> None:
    for stage in GOLDEN.values():
        assert re.fullmatch(rf"{stage.kind}-[0-9a-f]{{12}}", stage.key)


def test_a_field_at_its_default_does_not_enter_the_name() -> None:
    assert "momentum" not in identity(SHORT)
    explicit = dataclasses.replace(SHORT, momentum=0.9, cycles=1, shape="cosine")
    assert dataclasses.replace(BASE, schedule=explicit, split="all", weights="").key == BASE.key
    assert dataclasses.replace(PRUNED, settings=DSP(groups=2), smoke=False).key == PRUNED.key
    assert identity(EARLIER) == {"method": "l1_filter"}
    assert identity(Timing()) == {}


def test_a_changed_default_or_method_gives_new_names_and_keeps_the_earlier_ones() -> None:
    """An identity without `scope` stands for coupled filters; a version or another file name is in the identity."""
    assert identity(L1Filter()) == {"method": "l1_filter", "ranking": "layer", "scope": "inner"}
    assert dataclasses.replace(PLAIN, settings=L1Filter()).key != PLAIN.key == "pruned-0b03494eeeca"
    assert identity(FPGMOnce(scope="coupled", ranking="global")) == {"method": "fpgm"}
    assert identity(GReg(scope="coupled", ranking="global", release=0.0)) == {"method": "greg"}
    assert identity(FPGM())["version"] == 3
    assert identity(Budget(share=0.5)) == {"share": 0.5}
    refilled = dataclasses.replace(PLAIN, budget=Budget(share=0.5, refill=True))
    assert refilled.key != PLAIN.key


def variants() -> Sequence[Stage]:
    """Each differs from the others in one field."""
    options: list[tuple[str, Any]]
    options = [
        ("device", "cuda"),
        ("batch", 1),
        ("precision", "fp16"),
        ("layout", "channels_last"),
        ("protocol", "quick"),
    ]
    timed = [dataclasses.replace(TIMED, timing=Timing(**{name: value})) for name, value in options]
    options = [("data", "cifar10"), ("model", "vgg6"), ("seed", 1), ("split", "tuning")]
    bases = [dataclasses.replace(BASE, **{name: value}) for name, value in options]
    options = [
        ("epochs", 4),
        ("lr", 0.06),
        ("weight_decay", 1e-4),
        ("batch", 64),
        ("momentum", 0.8),
        ("shape", "steps"),
    ]
    options += [("cycles", 2), ("replan_pp", 1.0), ("epoch_images", 256), ("keep", "best_test"), ("keep_after", 1)]
    options += [
        ("warmup_epochs", 1),
        ("accumulate", 2),
        ("label_smoothing", 0.1),
        ("clip_norm", 1.0),
        ("ema_decay", 0.9),
    ]
    options += [("decay", "weights"), ("compute", Compute(precision="bf16")), ("compute", Compute(precision="fp16"))]
    options += [("compute", Compute(layout="channels_last")), ("compute", Compute(compiled=True))]
    schedules = [dataclasses.replace(SHORT, **{name: value}) for name, value in options]
    before = [schedule for schedule in schedules if schedule.cycles == 1]
    found: list[Stage] = [BASE, PUBLIC, LEARNED, PRUNED, PLAIN, FOLLOWING, TIMED, *timed, *bases]
    return [
        *found,
        *(dataclasses.replace(BASE, schedule=schedule) for schedule in before),
        *(dataclasses.replace(PRUNED, finetune=schedule) for schedule in schedules),
        *(dataclasses.replace(PRUNED, learning=schedule) for schedule in before),
        *(dataclasses.replace(PRUNED, base=base) for base in bases),
        dataclasses.replace(PRUNED, finetune=dataclasses.replace(SHORT, compute=Compute(packed="groups"))),
        dataclasses.replace(PRUNED, seed=1),
        dataclasses.replace(PRUNED, smoke=True),
        dataclasses.replace(PRUNED, budget=Budget(share=0.5, scope="prunable")),
        dataclasses.replace(PRUNED, budget=Budget(share=0.51)),
        dataclasses.replace(PRUNED, settings=DSP(groups=3)),
        dataclasses.replace(PRUNED, settings=Slimming()),
        dataclasses.replace(FOLLOWING, reference=dataclasses.replace(PLAIN, seed=1)),
        dataclasses.replace(LEARNED, budget=Budget(share=0.5)),
        dataclasses.replace(LEARNED, settings=DSP(lam=1e-2)),
    ]


def test_different_stages_have_different_names() -> None:
    keys = [stage.key for stage in variants()]
    assert len(set(keys)) == len(keys)


def test_a_method_of_another_file_with_the_same_settings_has_another_name() -> None:
    assert identity(L1Filter(ranking="raw")) != identity(Slimming())


def test_in_order_lists_needs_first_and_each_once() -> None:
    other = dataclasses.replace(PRUNED, budget=Budget(share=0.7))
    found = in_order([Timed(pruned=other, timing=Timing()), TIMED, PLAIN, PRUNED, other])
    keys = [stage.key for stage in found]
    assert len(set(keys)) == len(keys) == 7
    assert set(keys) >= {BASE.key, LEARNED.key, PRUNED.key, PLAIN.key, TIMED.key, other.key}
    for place, stage in enumerate(found):
        assert all(keys.index(needed.key) < place for needed in stage.needs)


def test_budgets_share_what_is_learned_unless_learning_needs_the_budget() -> None:
    other = dataclasses.replace(PRUNED, budget=Budget(share=0.7))
    assert PRUNED.learned is not None
    assert PRUNED.learned == other.learned == LEARNED
    assert PLAIN.learned is None
    assert PLAIN.needs == (BASE,)
    assert PRUNED.needs == (BASE, LEARNED)

    class NeedsBudget(DSP):
        needs_budget = True

    assert (
        dataclasses.replace(PRUNED, settings=NeedsBudget()).learned
        != dataclasses.replace(other, settings=NeedsBudget()).learned
    )


def test_a_method_that_learns_needs_a_schedule_for_it() -> None:
    with pytest.raises(ValueError, match="dsp learns before it prunes"):
        dataclasses.replace(PRUNED, learning=None)


def test_a_follower_needs_its_reference() -> None:
    assert FOLLOWING.needs == (BASE, PLAIN)
    assert [stage.key for stage in in_order([FOLLOWING])] == [BASE.key, PLAIN.key, FOLLOWING.key]
    with pytest.raises(ValueError, match="random_rates follows another run: give it `reference`"):
        dataclasses.replace(FOLLOWING, reference=None)
    with pytest.raises(ValueError, match="l1_filter follows no other run: drop `reference`"):
        dataclasses.replace(PLAIN, reference=PLAIN)


@pytest.mark.parametrize("change", [{"model": "vgg6"}, {"data": "cifar10"}, {"split": "tuning"}])
def test_a_follower_and_its_reference_have_the_same_network_and_images(change: dict[str, Any]) -> None:
    other = dataclasses.replace(PLAIN, base=dataclasses.replace(BASE, **change))
    with pytest.raises(
        ValueError, match=r"random_rates on digits/resnet8/all follows a run on .*give it a `reference`"
    ):
        dataclasses.replace(FOLLOWING, reference=other)


@pytest.mark.parametrize(("schedule", "weights"), [(None, ""), (SHORT, "cifar10_resnet20_a")])
def test_a_base_is_trained_or_public(schedule: Schedule | None, weights: str) -> None:
    with pytest.raises(ValueError, match="either a schedule or"):
        dataclasses.replace(BASE, schedule=schedule, weights=weights)


@pytest.mark.parametrize(
    ("keep", "split"), [("best_validation", "all"), ("best_test", "tuning"), ("best_test", "held_out")]
)
def test_the_best_epoch_is_picked_on_a_part_that_the_split_has(keep: Any, split: Any) -> None:
    base, kept = dataclasses.replace(BASE, split=split), dataclasses.replace(SHORT, keep=keep)
    with pytest.raises(ValueError, match=f"keep='{keep}'"):
        dataclasses.replace(PRUNED, base=base, finetune=kept)
    held_out = dataclasses.replace(BASE, split="held_out")
    best = dataclasses.replace(SHORT, keep="best_validation")
    assert dataclasses.replace(PRUNED, base=held_out, finetune=best).key != PRUNED.key


@pytest.mark.parametrize("change", [{"compute": Compute(packed="groups")}, {"epochs": 4, "cycles": 2}])
def test_only_fine_tuning_has_packed_layers_and_cycles(change: dict[str, Any]) -> None:
    split = dataclasses.replace(SHORT, **change)
    assert dataclasses.replace(PRUNED, finetune=split).key != PRUNED.key
    for changes in ({"learning": split}, {"base": dataclasses.replace(BASE, schedule=split)}):
        with pytest.raises(ValueError, match="to the `finetune` schedule alone"):
            dataclasses.replace(PRUNED, **changes)


def test_only_a_method_that_follows_a_run_has_a_reference() -> None:
    with pytest.raises(ValueError, match="l1_filter follows no other run: drop `reference`"):
        dataclasses.replace(PLAIN, reference=PRUNED)


def test_describe_and_labels() -> None:
    assert describe(DSP()) == "dsp"
    assert describe(DSP(groups=3, lam=0.01)) == "dsp(groups=3, lam=0.01)"
    assert PRUNED.label == "digits/resnet8 dsp 50.00% seed 0"
    assert LEARNED.label == "digits/resnet8 dsp seed 0"
    assert BASE.label == "digits/resnet8 seed 0"
    assert PUBLIC.label == "cifar10/resnet20_a cifar10_resnet20_a"
    assert TIMED.label == "digits/resnet8 dsp 50.00% seed 0 on cpu, batch 32, fp32"


def test_every_stage_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fields of a base network are read once.

    Runs and measurements that depend on it do not read them again.
    """
    looked: list[object] = []
    fields = dataclasses.fields

    def counted(value: Any) -> Any:
        looked.append(value)
        return fields(value)

    monkeypatch.setattr("suite.stages.dataclasses.fields", counted)
    runs = [
        dataclasses.replace(PRUNED, base=dataclasses.replace(BASE, seed=5), budget=Budget(share=b)) for b in (0.2, 0.4)
    ]
    found = in_order([Timed(pruned=run, timing=Timing(batch=batch)) for run in runs for batch in (1, 8)])
    own = {"base": 2, "learned": 3, "pruned": 5, "timed": 2}  # the stage itself, and its settings and schedules
    assert len(found) == 8
    assert len(looked) <= sum(own[stage.kind] for stage in found) + own["base"] + own["learned"]
