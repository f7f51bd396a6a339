"""Every grid loads, names each run once and shrinks to something small; published cuts and ablations are what they say."""

from __future__ import annotations

import dataclasses
import statistics
from collections import Counter, defaultdict
from typing import Any

import pandas as pd
import pytest

from suite import grids, methods
from suite.contract import Budget, OptOut, Pruner
from suite.report.frames import CONDITIONS, fields
from suite.report.statistics import fairness, published, reproduction
from suite.schedule import Schedule
from suite.stages import Base, Learned, Pruned, Timed, Timing, describe

SEEDS = {
    "quickstart": 3,
    "cifar10_short": 3,
    "cifar10_oneshot": 3,
    "controls": 5,
    "cifar10_fair": 5,
    "tuning": 3,
    "tuning_digits": 2,
    "paper_table1": 5,
    "paper_table2": 5,
    "dsp_best_test": 5,
    "dsp_best_validation": 5,
    "ablation_scope": 3,
    "ablation_scope_short": 3,
    "dose_scan_short": 1,
    "rivals_published": 5,
    "dose_scan": 3,
    "retraining": 3,
    "imagenet_rehearsal": 1,
    "latency_budget": 5,
    "latency_budget_short": 3,
}
"""The grids that are no ablations; those have 3."""
ABLATIONS = {
    "ablation_groups": (60, ("groups", {1, 2, 3, 4, 8})),
    "ablation_second_order": (36, ("second_order", {"exact", "released", "none"})),
    "ablation_grouping": (36, ("grouping", {"learned", "random", "kmeans"})),
    "ablation_lambda": (30, ("lam", {5e-4, 1e-3, 2e-3, 4e-3, 8e-3})),
    "ablation_temperature": (30, ("temperature", {0.125, 0.25, 0.5, 1.0, 2.0})),
    "ablation_penalty_scale": (12, ("penalty_scale", {"activations", "size"})),
    "ablation_digits": (15, ("second_order", {"exact", "released", "none"})),
}
"""Runs in all, and what is varied."""


def runs_of(name: str, *, smoke: bool = False) -> list[Pruned]:
    return grids.runs_of(grids.load(name), smoke=smoke)


def cell(run: Pruned) -> tuple[object, ...]:
    return run.base.data, run.base.model, run.described, run.budget, run.learning, run.finetune


@pytest.mark.parametrize("name", grids.names())
def test_runs_and_stages_have_names_of_their_own(name: str) -> None:
    runs = runs_of(name)
    assert len({run.key for run in runs}) == len(runs)
    stages = grids.stages_of(grids.load(name), runs)
    assert len({stage.key for stage in stages}) == len(stages)
    assert {run.key for run in runs} <= {stage.key for stage in stages}


@pytest.mark.parametrize("name", grids.names())
def test_every_cell_has_the_same_seeds(name: str) -> None:
    """But for those in which a seed changes nothing: a plan that needs no chance, and no fine-tuning."""
    seeds: dict[object, list[int]] = defaultdict(list)
    for run in runs_of(name):
        seeds[cell(run)].append(run.seed)
    untrained = {cell(run) for run in runs_of(name) if run.finetune.epochs == 0}
    expected = SEEDS.get(name, 3 if name in ABLATIONS else len(next(iter(seeds.values()))))
    for where, found in seeds.items():
        assert sorted(found) == list(range(expected)) or (where in untrained and found == [0])


@pytest.mark.parametrize("name", grids.names())
def test_smoke_is_one_seed_and_one_budget_of_every_method_on_embedded_data(name: str) -> None:
    runs, small = runs_of(name), runs_of(name, smoke=True)
    assert {(run.base.data, run.seed, run.base.seed, run.smoke) for run in small} == {("digits", 0, 0, True)}
    assert all(run.base.schedule is not None and run.base.schedule.epochs == 1 for run in small)
    methods = [(run.base.model, run.described) for run in small]
    assert len(set(methods)) == len(methods)
    assert {(run.base.model, run.method) for run in small} == {(run.base.model, run.method) for run in runs}
    sampled = {run.method for run in runs if any(hasattr(run.settings, name) for name in grids.SAMPLE_SIZES)}
    plain = [run for run in runs if run.method not in sampled]
    assert {(run.base.model, run.described) for run in plain} <= set(methods)


def test_smoke_takes_the_small_samples_of_the_embedded_data() -> None:
    (small,) = (run.settings for run in runs_of("cifar10_oneshot", smoke=True) if run.method == "eagle_eye")
    least = methods.get("eagle_eye").for_task("digits", "resnet20_a")
    assert small == least


def test_paper_table1_has_the_released_cuts_for_every_method() -> None:
    cuts = {"resnet20": {2: 0.6017, 3: 0.6135, 4: 0.6247}, "resnet56": {2: 0.6290, 3: 0.6378, 4: 0.6474}}
    runs = runs_of("paper_table1")
    for model, expected in cuts.items():
        of_model = [run for run in runs if run.base.model == model]
        dsp = {(run.settings.groups, run.budget.share) for run in of_model if run.method == "dsp"}
        assert dsp == set(expected.items())
        for method in {run.method for run in of_model} - {"dsp", "dense_control"}:
            rival = {run.budget.share for run in of_model if run.method == method}
            assert rival == set(expected.values()), method
        assert {run.budget.scope for run in of_model} == {"network"}


def test_paper_table1_trains_with_the_released_schedules() -> None:
    run = runs_of("paper_table1")[0]
    assert run.learned is not None
    assert run.base.schedule is not None
    epochs = (run.base.schedule.epochs, run.learned.schedule.epochs, run.finetune.epochs, run.finetune.cycles)
    assert epochs == (164, 120, 400, 5)


@pytest.mark.parametrize(("keep", "split"), [("best_test", "all"), ("best_validation", "held_out")])
def test_the_released_recipe_keeps_the_best_epoch_of_every_stage(keep: str, split: str) -> None:
    runs = runs_of(f"dsp_{keep}")
    assert {run.base.split for run in runs} == {split}
    assert {run.budget.scope for run in runs} == {"prunable"}
    cuts = {(run.base.model, run.settings.groups): run.budget.share for run in runs}
    assert (cuts["resnet20", 2], cuts["resnet56", 4]) == (0.6123, 0.6511)
    assert {s.keep for run in runs for s in (run.base.schedule, run.learning, run.finetune) if s} == {keep}
    assert {run.learning.keep_after for run in runs if run.learning} == {8}


@pytest.mark.parametrize("name", ABLATIONS)
def test_ablation_varies_what_it_says_and_reads_no_test_image(name: str) -> None:
    count, (field, values) = ABLATIONS[name]
    runs = runs_of(name)
    assert len(runs) == count
    assert {run.base.split for run in runs} == {"tuning"}
    assert {run.method for run in runs} == {"dsp"}
    schedules = [s for run in runs for s in (run.base.schedule, run.learning, run.finetune) if s]
    assert all(schedule.keep != "best_test" for schedule in schedules)
    of_one = [run.settings for run in runs if run.base.model == runs[0].base.model]
    assert {getattr(settings, field) for settings in of_one} == values


@pytest.mark.parametrize("name", [name for name in ABLATIONS if name != "ablation_digits"])
def test_ablation_changes_nothing_else(name: str) -> None:
    field = ABLATIONS[name][1][0]
    assert len({(run.base.model, without(run.settings, field)) for run in runs_of(name)}) == len(
        {run.base.model for run in runs_of(name)}
    )


def without(settings: Pruner, field: str) -> tuple[object, ...]:
    return tuple(value for key, value in vars(settings).items() if key != field)


def test_ablations_share_the_runs_that_they_have_in_common() -> None:
    names = [name for name in ABLATIONS if name != "ablation_digits"]
    common = set.intersection(*({run.key for run in runs_of(name)} for name in names))
    labels = {describe(run.settings) for run in runs_of("ablation_groups") if run.key in common}
    assert labels == {"dsp(groups=4)"}
    assert len(common) == 6  # three seeds at two budgets


def test_learning_is_done_once_for_all_budgets() -> None:
    stages = grids.stages_of(grids.load("ablation_groups"), runs_of("ablation_groups"))
    assert sum(isinstance(stage, Learned) for stage in stages) == 5 * 2 * 3  # groups, models, seeds


# ---- runs that follow others -----------------------------------------------------------------------------------------


def references() -> list[Pruned]:
    short = Schedule(epochs=2, lr=0.05, weight_decay=5e-4)
    bases = [Base(data="digits", model="resnet8", schedule=short, seed=seed) for seed in (0, 1)]
    return grids.cross(bases=bases, method="l1_filter", budgets=(0.3, 0.5), finetune=short)


def test_a_follower_shares_all_with_its_reference_but_the_method() -> None:
    followers = grids.follow(references(), "random_rates")
    assert len({run.key for run in followers}) == 4
    for run, reference in zip(followers, references(), strict=True):
        assert run.reference == reference
        assert (run.base, run.budget, run.finetune, run.seed) == (
            reference.base,
            reference.budget,
            reference.finetune,
            reference.seed,
        )
        assert run.described == f"random_rates(like={describe(reference.settings)})"


def test_a_follower_may_have_a_schedule_of_its_own() -> None:
    longer = Schedule(epochs=9, lr=0.1, weight_decay=0)
    (run,) = grids.follow(references()[:1], "scratch", finetune=lambda reference: longer)
    assert run.finetune == longer
    with pytest.raises(ValueError, match="unknown method 'scrach'"):
        grids.follow(references(), "scrach")


def test_a_method_that_follows_nobody_cannot_be_told_to() -> None:
    with pytest.raises(ValueError, match="l1_filter follows no other run"):
        grids.follow(references(), "l1_filter")


def test_references_are_done_first_and_once() -> None:
    """Also those of `--smoke`, and those that the grid does not list."""
    for smoke in (False, True):
        grid = grids.Grid(
            title="followers",
            about="",
            runs=lambda: grids.follow(references(), "random_rates") + grids.follow(references(), "scratch"),
        )
        runs = grids.runs_of(grid, smoke=smoke)
        stages = [stage for stage in grids.stages_of(grid, runs, smoke=smoke) if not isinstance(stage, Timed)]
        keys = [stage.key for stage in stages]
        assert len(runs) == (2 if smoke else 8)
        assert len(keys) == len(set(keys)) == (4 if smoke else 2 + 4 + 8)
        for run in runs:
            assert run.reference is not None
            assert keys.index(run.reference.key) < keys.index(run.key)
            assert run.smoke == run.reference.smoke == smoke
            assert run.reference.base == run.base


def test_controls_follow_runs_of_the_grid() -> None:
    runs = runs_of("controls")
    keys = {run.key for run in runs}
    followers = [run for run in runs if run.reference is not None]
    assert {run.reference.key for run in followers if run.reference} <= keys
    assert {run.budget.share for run in runs if run.method == "dense_control"} == {0}
    runs = [run for run in runs if run.method != "dense_control"]
    counts = Counter((run.method, run.reference.method if run.reference else "") for run in runs)
    cells = 2 * 3 * 5  # models, budgets, seeds
    assert counts == {
        ("dsp", ""): cells,
        ("l1_filter", ""): cells,
        ("random_filter", ""): cells,
        ("uniform_width", ""): cells,
        ("random_rates", "dsp"): cells,
        ("random_rates", "l1_filter"): cells,
        ("l1_rates", "dsp"): cells,
        ("scratch", "dsp"): cells,
        ("scratch", "l1_filter"): cells,
    }


def test_scratch_trains_under_the_finetuning_recipe_for_the_whole_training() -> None:
    epochs: dict[str, set[int]] = defaultdict(set)
    for run in runs_of("controls"):
        if run.method == "scratch":
            assert run.reference is not None
            fine = run.reference.finetune
            assert (run.finetune.lr, run.finetune.weight_decay, run.finetune.shape) == (
                fine.lr,
                fine.weight_decay,
                fine.shape,
            )
            epochs[run.reference.method].add(run.finetune.epochs)
    assert epochs == {"l1_filter": {164 + 650}, "dsp": {164 + 252 + 400}}


def test_smoke_of_controls_follows_runs_of_the_smoke_grid() -> None:
    runs = runs_of("controls", smoke=True)
    keys = {run.key for run in runs}
    followers = [run for run in runs if run.reference is not None]
    assert len(followers) == 2 * 5  # of two networks
    assert {run.reference.key for run in followers if run.reference} <= keys


# ---- controls and equal training -------------------------------------------------------------------------------------

COMPARISONS = (
    *("cifar10_fair", "cifar10_short", "cifar10_study", "cifar10_study_length", "cifar10_study_dose", "controls"),
    *("paper_table1", "paper_table2", "quickstart", "cifar10_oneshot"),
    *("ablation_scope", "ablation_scope_short", "dose_scan", "dose_scan_short", "retraining", "rivals_published"),
    *("latency_budget", "latency_budget_short"),
)


@pytest.mark.parametrize("name", COMPARISONS)
def test_a_comparison_grid_has_its_dense_control_on_every_base(name: str) -> None:
    runs = runs_of(name)
    dense = [run for run in runs if not run.settings.removes]
    assert {run.base for run in dense} == {run.base for run in runs}
    for run in dense:
        assert run.budget.share == 0
        assert run.learned is not None
    with pytest.raises(ValueError, match="dense_control removes nothing: give it a budget of 0"):
        dataclasses.replace(dense[0], budget=Budget(share=0.5))


def test_a_comparison_without_dense_control_is_warned_of_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    short = Schedule(epochs=2, lr=0.05, weight_decay=5e-4)
    bases = [Base(data="digits", model="resnet8", schedule=short, seed=0)]
    compared = [
        run
        for m in ("l1_filter", "l2_filter")
        for run in grids.cross(bases=bases, method=m, budgets=(0.5,), finetune=short)
    ]
    control = grids.dense_control(bases=bases, finetune=short, learning=short)
    without_learning = grids.dense_control(bases=bases, finetune=short)
    assert [run.plain_epochs for run in without_learning] == [compared[0].plain_epochs]
    for runs, lines in ((compared, 1), (compared + control, 0), (compared + without_learning, 0), (compared[:1], 0)):
        caplog.clear()
        grids.runs_of(grids.Grid(title="mine", about="", runs=lambda runs=runs: runs))  # type: ignore[misc]
        messages = [record.getMessage() for record in caplog.records]
        assert len(messages) == lines
        assert all("'mine' has no dense control on digits/resnet8" in m and "\n" not in m for m in messages)


def test_the_study_declares_one_variant_of_dsp_alone() -> None:
    grid = grids.load("cifar10_study")
    declared = {run.described for run in grids.runs_of(grid) if grid.declares(run)}
    variants = {run.described for run in grids.runs_of(grid) if run.method == "dsp"}
    assert len(declared) == 1 < len(variants)
    assert "groups=4" in declared.pop()


def test_several_texts_choose_their_runs() -> None:
    grid = grids.load("quickstart")
    runs = grids.runs_of(grid, only="resnet8 fpgm_once|dense_control|resnet8 fpgm")
    assert {run.method for run in runs} == {"fpgm_once", "dense_control"}
    assert runs == [run for run in grids.runs_of(grid) if run.key in {run.key for run in runs}], "in the grid's order"


@pytest.mark.parametrize(
    ("only", "words"),
    [("fpgm|typo", "'typo' fits none of the"), *((only, "no text on one side") for only in ("|", "fpgm|", "|fpgm"))],
)
def test_a_text_that_fits_no_run_is_refused(only: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        grids.runs_of(grids.load("quickstart"), only=only)


@pytest.mark.parametrize("family", ["nobody", "dsp(groups=77)", "dsp(grops=4)", "dsp(groups)", "dsp (groups=4)"])
def test_a_family_without_runs_is_refused_in_one_line(family: str) -> None:
    grid = dataclasses.replace(grids.load("quickstart"), family=family)
    with pytest.raises(
        ValueError, match=r"declares the family .*, but has no such run; its methods: dense_control, "
    ) as raised:
        grids.runs_of(grid)
    assert family in str(raised.value)
    assert "\n" not in str(raised.value)


REFUSED = ("the source trains from scratch", "another variant: the suite has the method, but not this form")
"""Beginnings of the report's reasons against a row, which no run can remove."""


def test_published_cuts_and_points_of_the_rivals_meet() -> None:
    """Each run lies beside a row that the report accepts, and no such row is without a run."""
    runs = [run for run in runs_of("rivals_published") if run.settings.removes]
    lines = pd.DataFrame(
        {
            **{"data": run.base.data, "model": run.base.model, "method": run.method, "groups": run.settings.groups},
            **{"series": run.described, "settings": run.described, "n": 5, "split": "all", "selection": "last"},
            **dict.fromkeys(reproduction.CUT.values(), 100 * run.budget.share),
            **dict.fromkeys(CONDITIONS, ""),
            **{"fields": fields(run), "top1_mean_pct": 90.0},
        }
        for run in runs
        if run.seed == 0
    )
    met: set[Any] = set()
    far = []
    for row in published.load().to_dict("records"):
        if row["ours"] not in methods.rivals() or pd.isna(row["flops_cut_pct"]):
            continue
        if isinstance(methods.get(row["ours"]).recipe(row["data"], row["model"]), OptOut):
            continue
        place = row["data"], row["model"], row["ours"]
        own = lines[lines[["data", "model", "method"]].eq(list(place)).all(axis=1)]
        near, reason = reproduction._nearest(row, own)
        met |= set(near.index)
        if not reason.startswith(REFUSED) and near.empty:
            far.append((*place, row["flops_cut_pct"], reason))
    assert not far
    assert lines.drop(index=list(met))["series"].tolist() == []


EQUAL = (
    "cifar10_fair",
    "cifar10_short",
    "cifar10_study",
    "cifar10_study_dose",
    "controls",
    "latency_budget",
    "paper_table1",
    "paper_table2",
    "quickstart",
)


@pytest.mark.parametrize("name", EQUAL)
def test_every_method_of_a_comparison_trains_equally(name: str) -> None:
    """In plain-step equivalents after the base network; from scratch, learning replaces the base network's training."""
    spent: dict[str, dict[str, float]] = {}
    for run in runs_of(name):
        if run.method == "scratch":  # trains for the base network's epochs, too
            continue
        learned = run.learned.schedule.epochs * run.settings.step_cost if run.learned else 0
        from_scratch = run.learned if run.settings.start == "init" else None
        before = (run.base.schedule or from_scratch.schedule).epochs if from_scratch else 0
        spent.setdefault(run.base.data, {})[run.label] = max(0, learned - before) + run.finetune.epochs
    for own in spent.values():
        total = statistics.median(own.values())
        assert {label: epochs for label, epochs in own.items() if abs(epochs - total) > fairness.tolerance(total)} == {}


@pytest.mark.parametrize("name", ["cifar10_fair", "cifar10_study"])
def test_penalties_keep_the_authors_product_of_coefficient_and_rates(name: str) -> None:
    seen = set()
    for run in runs_of(name):
        if run.settings.penalty is None or run.learned is None:
            continue
        seen.add(run.method)
        setting, authors = run.settings.penalty
        default = getattr(methods.get(run.method).for_task(run.base.data, run.base.model), setting)
        summed = sum(run.learned.schedule.rates(50_000 // run.learned.schedule.batch))
        assert getattr(run.settings, setting) * summed == pytest.approx(default * authors, rel=0.01), run.label
    assert seen == {"depgraph", "resrep", "slimming"}


def test_learning_that_costs_more_than_the_total_is_refused() -> None:
    short = Schedule(epochs=10, lr=0.05, weight_decay=5e-4)
    base = Base(data="digits", model="resnet8", schedule=short, seed=0)
    with pytest.raises(ValueError, match="learning of dsp costs 21 plain epochs, more than the total 20"):
        grids.cross(bases=[base], method="dsp", budgets=[0.5], finetune=short, learning=short, total=20)


def test_methods_fix_fields_of_the_learning_schedule() -> None:
    learning = {run.method: run.learned.schedule for run in runs_of("cifar10_fair") if run.learned}
    assert learning["greg"].lr == 1e-3
    assert (learning["depgraph"].lr, learning["depgraph"].weight_decay) == (0.01, 0)
    assert (learning["slimming"].epochs, learning["slimming"].lr, learning["slimming"].shape) == (164, 0.1, "steps")
    base = Base(data="cifar10", model="resnet20_a", schedule=None, weights="cifar10_resnet20_a", seed=0)
    with pytest.raises(
        ValueError, match=r"slimming trains from initial weights, and .* has no schedule: give `scratch`"
    ):
        grids.cross(
            bases=[base], method="slimming", budgets=[0.5], finetune=learning["greg"], learning=learning["greg"]
        )


@pytest.mark.parametrize(
    ("grid", "reason"),
    [
        ({"runs": lambda: None}, "the runs of 'x' are one list, as .*; got a NoneType"),
        ({"runs": lambda: ["l1_filter"]}, "the runs of 'x' are one list, as .*; got a str"),
        ({"runs": lambda: [[]]}, "the runs of 'x' are one list, as .*; got a list"),
        ({"runs": []}, r"write runs=runs, not runs=runs\(\)"),
        ({"runs": list, "timings": Timing()}, "GRID's timings is a tuple, such as"),
    ],
)
def test_a_grid_of_wrong_parts_is_refused_in_one_line(grid: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as raised:
        grids.runs_of(grids.Grid(title="x", about="", **grid))
    assert "\n" not in str(raised.value)
