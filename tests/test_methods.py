"""The checks that every method passes, found by name: `pytest -k NAME` runs those of one. Then the idea of each."""

from __future__ import annotations

import ast
import copy
import dataclasses
import functools
import inspect
import itertools
import json
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import baselines
from baselines.fpgm_once import FPGMOnce
from baselines.l1_filter import L1Filter
from baselines.random_filter import RandomFilter
from baselines.slimming import Slimming
from suite import data, grids, methods, records
from suite.contract import (
    Batch,
    Budget,
    Criterion,
    Granularity,
    OptOut,
    Planner,
    Pruner,
    PruningPlan,
    Recipe,
    State,
    Step,
    Task,
)  # fmt: skip
from suite.data.base import Indices, Part
from suite.data.resident import Resident
from suite.graph import Graph
from suite.methods import Broken
from suite.models import build
from suite.pack import load, pack
from suite.run import Context, execute, failure
from suite.schedule import Schedule
from suite.select import COARSE, meet
from suite.stages import Base, Pruned, describe, in_order
from suite.train import load_checkpoint, save_checkpoint, seed_everything
from suite.trainer import Trainer

NETWORKS = {"resnet8": "resnet8", "resnet8_a": "resnet8_a", "bottleneck": "resnet50", "vgg6": "vgg6"}
"""Network -> the model whose recipe it takes."""
SCORE_LINES = 30
FOUND = methods.discover()
USABLE = sorted(name for name, kind in FOUND.items() if not isinstance(kind, Broken))

every_method = pytest.mark.parametrize("method", USABLE)
everywhere = pytest.mark.parametrize(
    ("method", "network"),
    [pytest.param(method, network, id=f"{method}-{network}") for method in USABLE for network in NETWORKS],
)


# ---- what a method gets ----------------------------------------------------------------------------------------------


class TrainingOnly(Resident):
    """A data set whose test images nobody may read."""

    def plain(self, part: Part, order_N: Indices, *, batch: int, device: torch.device) -> Iterator[Batch]:
        if part == "test":
            raise AssertionError("the test images were read")
        return super().plain(part, order_N, batch=batch, device=device)


@functools.cache
def images() -> TrainingOnly:
    digits = data.load("digits")
    assert isinstance(digits, Resident)
    return TrainingOnly(
        **{field.name: getattr(digits, field.name) for field in dataclasses.fields(digits) if field.init}
    )


def batches(seed: int) -> data.Loader:
    return images().train("all", batch=16, seed=seed, device="cpu", limit=32)


def task_of(seed: int, budget: Budget | None = None, reference: PruningPlan | None = None) -> Task:
    return Task(
        train_epoch=lambda epoch: batches(seed).epoch(epoch),
        samples=lambda n: images().samples(min(n, 256), split="all", device="cpu"),
        seed=seed,
        budget=budget,
        reference=reference,
    )


def reference_plan(model: nn.Module, graph: Graph) -> PruningPlan:
    """What a method that follows another run is given: half of the MACs gone."""
    return meet(L1Filter().planner(model, graph, {}, task_of(0)), graph, Budget(share=0.5)).plan


class Bottleneck(nn.Module):
    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or channels != 4 * width:
            conv = nn.Conv2d(channels, 4 * width, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(4 * width))

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))
        return torch.relu(self.bn3(self.conv3(out)) + self.shortcut(x))


def network_of(name: str) -> nn.Module:
    """The network with random weights, batch-norm scales included."""
    torch.manual_seed(0)
    if name == "bottleneck":
        stem = [nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True)]
        blocks = [Bottleneck(16, 6, 1), Bottleneck(24, 6, 1), Bottleneck(24, 10, 2)]
        model: nn.Module = nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(40, 10))
    else:
        model = build(name, 10)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    return model


@dataclass(frozen=True)
class Learned:
    """A method on a network, as it is when it is to plan."""

    settings: Pruner
    model: nn.Module
    graph: Graph
    state: State
    task: Task

    def planner(self, state: State | None = None) -> Planner:
        seed_everything(self.task.seed)
        return self.settings.planner(self.model, self.graph, self.state if state is None else state, self.task)


def learn(method: str, network: str, seed: int = 0) -> Learned:
    """Let the method learn for two steps, if it learns at all. Skips where it opts out."""
    kind = methods.get(method)
    recipe = kind.recipe("digits", NETWORKS[network])
    if isinstance(recipe, OptOut):
        assert recipe.reason
        pytest.skip(f"{method} opts out: {recipe.reason}")
    settings = kind.for_task("digits", NETWORKS[network])
    model = network_of(network)
    graph = Graph(model, images().input_shape)
    budget = Budget(share=0.5) if kind.needs_budget else None
    task = task_of(seed, budget, reference_plan(model, graph) if kind.needs_reference else None)
    seed_everything(seed)
    learner = settings.learner(model, graph, task)
    assert (learner is not None) == settings.learns
    if learner is None:
        return Learned(settings, model.eval(), graph, {}, task)
    trainer = Trainer(model, batches(seed), Schedule(epochs=1, lr=0.01, weight_decay=1e-4), learner=learner)
    model.train()
    for x, labels in batches(seed).epoch(0):
        trainer.advance(x, labels)
    trainer.end_epoch()
    learner.finish(model)
    assert all(isinstance(value, float) for value in learner.metrics().values())
    return Learned(settings, model.eval(), graph, learner.state_dict(), task)


@functools.cache
def learned(method: str, network: str) -> Learned:
    """Shared by tests that change nothing in it."""
    return learn(method, network)


# ---- the checks ------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _expect_what_the_method_says(request: pytest.FixtureRequest) -> None:
    """A check that a method says it cannot pass must fail."""
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
    assert methods.name_of(settings) == method
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
    planner = case.planner()
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
    planner, graph = case.planner(), case.graph
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
    for knob in (0.2, 0.6):
        assert first.planner()(knob) == first.planner()(knob) == second.planner()(knob)
    assert all(torch.equal(tensor, second.model.state_dict()[key]) for key, tensor in first.model.state_dict().items())


@everywhere
def test_planning_changes_no_weight_and_packed_equals_masked(method: str, network: str) -> None:
    case = learned(method, network)
    before = {key: tensor.clone() for key, tensor in case.model.state_dict().items()}
    plan = meet(case.planner(), case.graph, Budget(share=0.5)).plan
    assert all(torch.equal(tensor, before[key]) for key, tensor in case.model.state_dict().items())
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
    plan = case.planner()(0.4)
    assert case.planner(state)(0.4) == plan
    save_file(plan.to_tensors(), tmp_path / "plan.safetensors")
    assert PruningPlan.from_tensors(load_file(tmp_path / "plan.safetensors")) == plan
    if case.settings.learns:
        again = case.settings.learner(network_of(network), case.graph, case.task)
        assert again is not None
        again.load_state_dict(state)
        save_checkpoint(tmp_path / "again.pt", again.state_dict())
        torch.testing.assert_close(load_checkpoint(tmp_path / "again.pt"), state, rtol=0, atol=0)


@every_method
def test_a_small_run_gives_a_good_row(method: str, tmp_path: Path) -> None:
    """The whole way on real images: base, learning, planning, fine-tuning, measuring, the row."""
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


# ---- the idea of each ------------------------------------------------------------------------------------------------


def one_layer(weight_OI: list[list[float]]) -> tuple[nn.Module, Graph]:
    """A 1x1 convolution with these weights, and a classifier."""
    weight = torch.tensor(weight_OI)[:, :, None, None]
    filters, channels = weight.shape[:2]
    conv, head = nn.Conv2d(channels, filters, 1), nn.Linear(filters, 2)
    conv.weight.data.copy_(weight)
    layers = [conv, nn.BatchNorm2d(filters), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(1), head]
    return nn.Sequential(*layers).eval(), Graph(nn.Sequential(*layers), (channels, 4, 4))


def order_of_removal(settings: Pruner, model: nn.Module, graph: Graph) -> list[int]:
    """The filters of the one layer in the order in which they go; what stays is last."""
    planner = settings.planner(model, graph, {}, task_of(0))
    order: list[int] = []
    for step in range(101):
        if layer := planner(step / 100).get("0"):
            order += [o for o in (~layer.kept_O).nonzero()[:, 0].tolist() if o not in order]
    return order + [o for o in range(graph.convs["0"].filters) if o not in order]


def test_l1_filter_removes_small_weights_first() -> None:
    model, graph = one_layer([[3.0, -3.0], [0.0, 5.0], [1.0, -1.0], [-4.0, -4.0]])
    scores = L1Filter().score(model, graph, {}, task_of(0))
    assert scores["0"].tolist() == [6, 5, 2, 8]
    assert order_of_removal(L1Filter(), model, graph) == [2, 1, 0, 3]


def test_fpgm_removes_the_filter_that_the_others_surround_although_its_norm_is_largest() -> None:
    model, graph = one_layer([[9.0, 0.9], [10.0, 0.0], [9.0, -0.9]])
    side = (1 + 0.81) ** 0.5
    scores = FPGMOnce().score(model, graph, {}, task_of(0))["0"]
    torch.testing.assert_close(scores, torch.tensor([side + 1.8, 2 * side, side + 1.8]), rtol=1e-6, atol=1e-6)
    assert order_of_removal(FPGMOnce(), model, graph)[0] == 1
    assert order_of_removal(L1Filter(), model, graph)[-1] == 1


def test_random_filter_depends_on_the_seed_only() -> None:
    model, graph = one_layer([[1.0], [2.0], [3.0], [4.0]])
    other, _ = one_layer([[9.0], [1.0], [7.0], [2.0]])
    settings = RandomFilter()
    score = settings.score(model, graph, {}, task_of(0))["0"]
    torch.rand(3)
    assert torch.equal(settings.score(other, graph, {"x": 1}, task_of(0))["0"], score)
    assert not torch.equal(settings.score(model, graph, {}, task_of(1))["0"], score)


def test_slimming_drives_the_scale_of_a_useless_channel_to_zero() -> None:
    """Channel 0 tells the classes apart; the classifier does not read channel 1, so only the penalty moves its scale."""
    torch.manual_seed(0)
    model, graph = one_layer([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    model.get_parameter("5.weight").data.copy_(torch.tensor([[3.0, 0.0], [-3.0, 0.0]]))
    scale = model.get_parameter("1.weight")
    scale.data.fill_(1.0)
    model.train()
    settings, lr = Slimming(lam=0.05), 0.1
    learner = settings.learner(model, graph, task_of(0))
    optimizer = torch.optim.SGD([p for name, p in model.named_parameters() if not name.startswith("5")], lr=lr)
    for index in range(300):
        labels = torch.randint(2, (32,))
        x = torch.randn(32, 3, 4, 4) + torch.tensor([2.0, 0.0, 0.0])[:, None, None] * (
            1 - 2 * labels[:, None, None, None]
        )
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), labels).backward()
        learner.before_step(Step(model, optimizer, x, labels, lr, index, 300))
        optimizer.step()
    useful, useless = scale.detach().abs().tolist()
    assert useless <= lr * settings.lam + 1e-6
    assert useful > 0.5
    planner = settings.planner(model, graph, learner.state_dict(), task_of(0))
    assert planner(1.0)["0"].kept_O.tolist() == [True, False]
    assert learner.metrics()["scales_below_0.01"] == 0.5


def test_slimming_without_batch_norm_is_refused_by_layer() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(4, 2))
    with pytest.raises(ValueError, match="slimming needs a batch norm behind every convolution; 0 has none"):
        Slimming().learner(model, Graph(model, (3, 4, 4)), task_of(0))
    with pytest.raises(ValueError, match="lam must be at least 0, got -1"):
        Slimming(lam=-1)


# ---- how methods are found -------------------------------------------------------------------------------------------

BAD = {
    "syntax_error": ("def score(:\n", "SyntaxError"),
    "missing_import": ("import a_library_that_is_not_there\n", "No module named 'a_library_that_is_not_there'"),
    "fails": ("1 / 0\n", "ZeroDivisionError"),
    "leaves": ("import sys\nsys.exit('bye')\n", "SystemExit: bye"),
    "empty": ("", "exactly one subclass of Pruner or Criterion, found 0"),
    "borrowed": ("from baselines.l1_filter import L1Filter\n", "exactly one subclass of Pruner or Criterion, found 0"),
    "two": (
        "from suite.contract import Pruner\nclass A(Pruner):\n    pass\nclass B(Pruner):\n    pass\n",
        "exactly one subclass of Pruner or Criterion, found 2",
    ),
    "no_source": (
        "from suite.contract import Pruner\nclass A(Pruner):\n    granularity = 'filter'\n",
        "A lacks source",
    ),
    "wrong_signature": (
        "from dataclasses import dataclass\nfrom suite.contract import Criterion\n@dataclass(frozen=True, kw_only=True)\n"
        "class A(Criterion):\n    granularity, source = 'filter', 'x'\n    def score(self, model):\n        pass\n",
        "A.score takes (self, model); the contract requires (self, model, graph, state, task)",
    ),
    "brackets": ("raise ValueError('want [O], not [/oops]')\n", "want [O], not [/oops]"),
    "no_dataclass": (
        "from suite.contract import Criterion\nclass A(Criterion):\n    granularity, source = 'filter', 'x'\n"
        "    power: float = 1\n    def score(self, model, graph, state, task):\n        pass\n",
        "A needs @dataclass(frozen=True, kw_only=True) above it",
    ),
    "unknown_granularity": (
        "from suite.contract import Criterion\nclass A(Criterion):\n    granularity, source = 'filtre', 'x'\n",
        "A.granularity is 'filtre'; choose from: filter, channel, intra_channel",
    ),
    "no_score": (
        "from dataclasses import dataclass\nfrom suite.contract import Criterion\n@dataclass(frozen=True, kw_only=True)\n"
        "class A(Criterion):\n    granularity, source = 'filter', 'x'\n",
        "A does not define score",
    ),
    "unknown_search": (
        "from dataclasses import dataclass\nfrom suite.contract import Criterion\n@dataclass(frozen=True, kw_only=True)\n"
        "class A(Criterion):\n    granularity, source, search = 'filter', 'x', {'pwr': (1, 2)}\n",
        "A.search names 'pwr', which is no setting; it has: ranking, scope",
    ),
    "nothing_said": (
        "from suite.contract import Pruner\nclass A(Pruner):\n    pass\n",
        "A lacks granularity and source",
    ),
}


@pytest.fixture
def more_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Adds a file to the folder of methods, for the length of a test."""
    monkeypatch.setattr(baselines, "__path__", [*baselines.__path__, str(tmp_path)])
    methods.discover.cache_clear()
    names = set(sys.modules)

    def add(name: str, text: str) -> None:
        (tmp_path / f"{name}.py").write_text(text)
        methods.discover.cache_clear()

    yield add
    methods.discover.cache_clear()
    for name in [name for name in sys.modules if name not in names and name.startswith("baselines.")]:
        del sys.modules[name]
        vars(baselines).pop(name.removeprefix("baselines."), None)


def test_files_that_are_no_method_stop_only_themselves(
    more_methods: Callable[[str, str], None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = methods.discover()
    for name, (text, _) in BAD.items():
        more_methods(name, text)
    found = methods.discover()
    assert {name: kind for name, kind in found.items() if name not in BAD} == before
    for name, (_, reason) in BAD.items():
        broken = found[name]
        assert isinstance(broken, Broken)
        assert broken.file == f"baselines/{name}.py"
        assert reason in broken.reason
        with pytest.raises(ValueError, match=f"method {name} cannot be used: baselines/{name}.py: ") as error:
            methods.get(name)
        assert reason in str(error.value)
    base = Base(data="digits", model="vgg6", schedule=Schedule(epochs=1, lr=0.1, weight_decay=0), seed=0)
    with pytest.raises(ValueError, match=r"baselines/two\.py: it must define exactly one"):
        grids.cross(bases=[base], method="two", budgets=[0.5], finetune=Schedule(epochs=1, lr=0.1, weight_decay=0))
    monkeypatch.setattr(sys, "argv", ["methods"])
    assert methods.main() == 1
    shown = capsys.readouterr().out
    for name in BAD:
        assert f"not usable: baselines/{name}.py" in shown
    assert "l1_filter" in shown


def test_all_methods_are_listed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["methods"])
    monkeypatch.setenv("COLUMNS", "60")  # names are never cut
    assert methods.main() == 0
    shown = capsys.readouterr().out
    for name in FOUND:
        assert name in shown


def test_a_copy_of_the_template_is_a_method(more_methods: Callable[[str, str], None]) -> None:
    template = Path(baselines.__path__[0]) / "_template.py"
    assert "template" not in FOUND
    assert "_template" not in FOUND
    more_methods("my_own", template.read_text())
    assert set(methods.discover()) == {*FOUND, "my_own"}
    kind = methods.get("my_own")
    settings = kind.for_task("digits", "vgg6")
    assert methods.name_of(settings) == "my_own"
    model, graph = one_layer([[3.0, -1.0], [0.0, 5.0], [1.0, -1.0]])
    assert order_of_removal(settings, model, graph) == [2, 0, 1]


COMPARISONS = ("cifar10_fair", "cifar10_oneshot", "tuning", "tuning_digits")
"""Grids that compare all methods of a kind."""


def test_a_file_that_is_dropped_in_is_in_every_comparison_grid(more_methods: Callable[[str, str], None]) -> None:
    text = (Path(baselines.__path__[0]) / "_template.py").read_text()
    before = {name: {run.method for run in grids.runs_of(grids.load(name))} for name in COMPARISONS}
    more_methods("my_own", text)
    more_methods("my_abstract", text.replace("    granularity =", '    evidence = "abstract"\n    granularity ='))
    for name in COMPARISONS:
        abstract = {"my_abstract"} if name.startswith("tuning") else set()
        now = {run.method for run in grids.runs_of(grids.load(name))}
        assert now - before[name] == {"my_own"} | abstract


def test_rivals_are_chosen_by_their_class_attributes() -> None:
    assert set(methods.rivals(control=True)) == {"random_filter", "uniform_width"}
    assert set(methods.rivals(control=True, needs_reference=True)) == {"random_rates", "l1_rates", "scratch"}
    assert set(methods.rivals(evidence="abstract")) == {"lapp", "group_sparse"}
    assert methods.rivals(evidence="latency") == ("random_groups",)
    assert not set(methods.rivals()) & {"random_groups", "lapp", "group_sparse", "scratch", "dsp"}
    assert "slimming" in methods.rivals(learns=True)
    assert methods.rivals(learns=True, control=True) == ()


@pytest.mark.parametrize("method", USABLE)
def test_a_method_describes_itself(
    method: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["methods", method])
    assert methods.main() == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert methods.get(method).granularity in shown
    for field in dataclasses.fields(methods.get(method)):
        assert f"{field.name} = {field.default!r}" in shown


def test_an_unknown_setting_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ValueError, match="L1Filter has no setting 'power'; it has: ranking, scope"):
        methods.get("l1_filter").for_task("digits", "vgg6", power=2)


def test_an_unknown_method_is_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match=r"unknown method 'fpmg' \(did you mean fpgm\?\); choose from: dsp, "):
        methods.get("fpmg")


# ---- scopes and notes ------------------------------------------------------------------------------------------------

SCOPES = {
    **dict.fromkeys(("chip", "fpgm", "fpgm_once", "hrank", "l2_filter", "random_filter", "sfp"), "untied"),
    **dict.fromkeys(("centrality", "greg", "l1_filter", "resrep", "similarity", "taylor", "taylor_once"), "inner"),
    **dict.fromkeys(("depgraph", "group_fisher", "group_sparse", "hspg", "lapp", "uniform_width"), "coupled"),
}
"""Default scope of each criterion: that of its authors, with the evidence in `source`."""


def test_the_default_scope_of_each_criterion_is_that_of_its_authors() -> None:
    kinds = {name: kind for name, kind in FOUND.items() if not isinstance(kind, Broken) and issubclass(kind, Criterion)}
    assert {name: kind().scope for name, kind in kinds.items()} == SCOPES


def test_notes_have_source_and_deviations_of_each_method_once() -> None:
    first, second, third = methods.notes(["l1_filter", "lapp", "l1_filter", "no_method", "random_filter"])
    assert (first.method, first.source) == ("l1_filter", L1Filter.source)
    assert L1Filter.deviations in first.signed
    assert Criterion.shared_deviations in first.signed
    assert second.signed.startswith("no: written from the abstract")
    assert third.signed == "control, without authors"


def test_a_rows_settings_give_the_cost_of_a_learning_step() -> None:
    assert methods.step_cost({"method": "dsp", "groups": 3}) == 2.1
    assert methods.step_cost({"method": "dsp", "second_order": "none"}) == 1.05
    assert methods.step_cost({"method": "leanflex_gkp"}) == methods.get("equal_gkp")().step_cost
