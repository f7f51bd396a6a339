"""Common checks of every method, by name: `pytest -k NAME` runs those of one."""

from __future__ import annotations

import ast
import copy
import dataclasses
import inspect
import itertools
import json
import textwrap
from pathlib import Path
from typing import get_args

import pytest
import torch
from method_cases import (
    FOUND,
    USABLE,
    every_method,
    everywhere,
    images,
    learn,
    learned,
    network_of,
)
from safetensors.torch import load_file, save_file

from baselines.l1_filter import L1Filter
from suite import methods, records
from suite.contract import (
    Budget,
    Criterion,
    Granularity,
    OptOut,
    PruningPlan,
    Recipe,
)  # fmt: skip
from suite.methods import Broken
from suite.pack import load, pack
from suite.run import Context, execute, failure
from suite.schedule import Schedule
from suite.select import COARSE, meet
from suite.stages import Base, Pruned, describe, in_order
from suite.train import load_checkpoint, save_checkpoint

SCORE_LINES = 30


@pytest.fixture(autouse=True)
def _expected_failures_fail(request: pytest.FixtureRequest) -> None:
    """Mark a check as a strict xfail if the method lists it in `expected_failures`."""
    kind = FOUND.get(request.node.callspec.params.get("method", "")) if hasattr(request.node, "callspec") else None
    reasons = {} if kind is None or isinstance(kind, Broken) else kind.expected_failures
    if (reason := reasons.get(request.node.originalname)) is not None:
        request.applymarker(pytest.mark.xfail(reason=reason, strict=True))


@pytest.mark.parametrize("method", sorted(FOUND))
def test_the_method_can_be_used_and_says_what_it_is(method: str) -> None:
    kind = FOUND[method]
    assert not isinstance(kind, Broken), kind
    assert kind.granularity in get_args(Granularity)
    assert kind.source.strip()
    assert isinstance(kind.deviations, str)
    assert kind.__doc__
    settings = kind()
    assert settings.method_name() == method
    assert describe(settings) == method
    assert hash(settings) == hash(kind())
    assert settings.step_cost >= 1
    assert settings.groups >= 1
    assert settings.groups == 1 or kind.granularity == "intra_channel"
    names = {field.name for field in dataclasses.fields(kind)}
    for name, choices in kind.search.items():
        assert name in names
        assert len(choices) >= 2
        for value in choices:
            hash(kind(**{name: value}))
    for check, reason in kind.expected_failures.items():
        assert check in globals(), check
        assert reason.strip()
    for field in dataclasses.fields(kind):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(settings, field.name, getattr(settings, field.name))


@every_method
def test_recipes_are_settings_with_a_source_or_opt_out_with_a_reason(method: str) -> None:
    kind = methods.get(method)
    for where, recipe in kind.all_recipes().items():
        if isinstance(recipe, OptOut):
            assert recipe.reason.strip(), where
        else:
            assert recipe.source.strip(), where
            hash(kind(**recipe.settings))


@pytest.mark.parametrize("method", [name for name in USABLE if issubclass(methods.get(name), Criterion)])
def test_a_criterion_is_short(method: str) -> None:
    score = getattr(methods.get(method), "score")  # noqa: B009 (only a Criterion has it)
    (function,) = ast.parse(textwrap.dedent(inspect.getsource(score))).body
    assert isinstance(function, ast.FunctionDef)
    body = [node for node in function.body if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))]
    assert (body[-1].end_lineno or 0) - body[0].lineno + 1 <= SCORE_LINES


@everywhere
def test_plans_fit_the_network_and_grow_with_the_knob(method: str, network: str) -> None:
    case = learned(method, network)
    planner = case.planner
    assert planner(0.0) == PruningPlan({})
    plans = [planner(knob) for knob in (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)]
    for plan in plans:
        case.graph.check(plan)
        for name, layer in plan.canonical().items():
            assert len(layer.kept_GI) <= case.settings.groups, name
            if case.settings.granularity == "filter":
                assert bool((layer.mask_OI.all(1) | ~layer.mask_OI.any(1)).all()), name
    for less, more in itertools.pairwise(plans):
        assert (less & more) == more
        assert case.graph.macs(more).total <= case.graph.macs(less).total
    assert plans[-1] != plans[0]


@everywhere
def test_budgets_are_met_as_closely_as_the_method_can(method: str, network: str) -> None:
    case = learned(method, network)
    planner, graph = case.planner, case.graph
    found = [meet(planner, graph, Budget(share=share)) for share in (0.3, 0.55)]
    for share, selection in zip((0.3, 0.55), found, strict=True):
        assert selection.cut >= share
        assert selection.cut == graph.cut(selection.plan)
        assert selection.coarse == (selection.cut - share > COARSE * (1 - share))
        assert graph.cut(planner(selection.knob * (1 - 1e-9))) < share
    assert graph.macs(found[1].plan).total < graph.macs(found[0].plan).total
    assert meet(planner, graph, Budget(share=0)).plan == PruningPlan({})


@everywhere
def test_the_same_seed_gives_the_same_plan(method: str, network: str) -> None:
    first, second = learned(method, network), learn(method, network)
    assert first.settings == second.settings
    again = first.plan_anew(first.state)
    for knob in (0.2, 0.6):
        assert first.planner(knob) == again(knob) == second.planner(knob)
    assert all(torch.equal(tensor, second.model.state_dict()[key]) for key, tensor in first.model.state_dict().items())


@everywhere
def test_planning_changes_no_weight_and_packed_equals_masked(method: str, network: str) -> None:
    case = learned(method, network)
    plan = meet(case.planner, case.graph, Budget(share=0.5)).plan
    assert all(torch.equal(tensor, case.before[key]) for key, tensor in case.model.state_dict().items())
    model = copy.deepcopy(case.model)
    case.settings.reconstruct(model, case.graph, plan, case.task)
    model = model.double().eval()
    packed = pack(model, case.graph, plan)
    state = model.state_dict()
    for name, layer in case.graph.settle(plan).items():
        state[f"{name}.weight"].mul_(layer.mask_OI[:, :, None, None])
        for key in (f"{case.graph.convs[name].bn}.weight", f"{case.graph.convs[name].bn}.bias"):
            state[key].mul_(layer.kept_O)
    x = images().samples(4, split="all", device="cpu")[0].double()
    with torch.no_grad():
        torch.testing.assert_close(packed(x), model(x), rtol=1e-10, atol=1e-10)


@everywhere
def test_state_and_plan_survive_their_files(method: str, network: str, tmp_path: Path) -> None:
    case = learned(method, network)
    save_checkpoint(tmp_path / "state.pt", case.state)
    state = load_checkpoint(tmp_path / "state.pt")
    assert state is not None, "the state does not load with weights_only=True"
    plan = case.planner(0.4)
    assert case.plan_anew(state)(0.4) == plan
    save_file(plan.to_tensors(), tmp_path / "plan.safetensors")
    assert PruningPlan.from_tensors(load_file(tmp_path / "plan.safetensors")) == plan
    if case.settings.learns:
        again = case.settings.learner(network_of(network), case.graph, case.task)
        assert again is not None
        again.load_state_dict(state)
        save_checkpoint(tmp_path / "again.pt", again.state_dict())
        torch.testing.assert_close(load_checkpoint(tmp_path / "again.pt"), state, rtol=0, atol=0)
        assert (tmp_path / "again.pt").read_bytes() == (tmp_path / "state.pt").read_bytes(), "equal states, equal files"


@every_method
def test_a_small_run_gives_a_good_row(method: str, tmp_path: Path) -> None:
    """Base, learning, planning, fine-tuning, measuring and the row, on real images."""
    kind, short = methods.get(method), Schedule(epochs=1, lr=0.01, weight_decay=1e-4, batch=16, epoch_images=32)
    model = next((name for name in ("vgg6", "resnet8") if isinstance(kind.recipe("digits", name), Recipe)), None)
    if model is None:
        pytest.skip(f"{method} opts out of both small networks")
    base = Base(data="digits", model=model, schedule=short, seed=0)
    context = Context(results=tmp_path, threads=1)
    learning = short if kind.learns else None
    budget = Budget(share=0.5)
    settings, reference = kind.for_task("digits", model), None
    if kind.needs_reference:
        reference = Pruned(
            base=base, settings=L1Filter(), learning=None, budget=budget, finetune=short, seed=0, smoke=True
        )
    stage = Pruned(
        base=base, settings=settings, learning=learning, budget=budget,
        finetune=short, seed=0, smoke=True, reference=reference,
    )  # fmt: skip
    for each in in_order([stage]):
        assert execute(each, context) == "done", failure(each, context)
    rows = {path.stem: path for path in records.rows_folder(tmp_path).glob("pruned-*.json")}
    assert rows.keys() == {run.key for run in (stage, reference) if run is not None}
    row = json.loads(rows[stage.key].read_text())
    assert (row["status"], row["method"], row["granularity"]) == ("done", method, kind.granularity)
    assert 50 <= row["macs_cut_pct"] < 100
    assert 0 <= row["pruned_top1_pct"] <= 100
    assert row["params"] < row["dense_params"]
    packed = load(tmp_path / "work" / stage.key / "packed.safetensors")
    assert packed.plan.sha256 == row["plan_sha256"]


def test_the_test_images_are_guarded() -> None:
    with pytest.raises(AssertionError, match="the test images were read"):
        images().test(10, "cpu")
