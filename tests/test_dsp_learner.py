"""A step of group learning against a slow one written out with autograd and copies; what it leaves untouched; resuming.

Shapes: G filter groups, O filters.
"""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsp import DSP
from dsp import groups as maths
from dsp.learner import GroupLearner, Settings
from suite.contract import Step, Task
from suite.graph import Graph
from suite.models import build

TASK = Task(train_epoch=lambda epoch: iter(()), samples=lambda n: (torch.empty(0), torch.empty(0)), seed=3)
SGD = {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3}


class Training:
    """A small network with its optimizer, data and learner."""

    def __init__(
        self,
        *,
        model_name: str = "resnet8",
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        sgd: dict[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        torch.manual_seed(0)
        self.model = build(model_name, 10).to(device, dtype).train()
        self.graph = Graph(self.model, (3, 16, 16))
        self.optimizer = torch.optim.SGD(self.model.parameters(), **(SGD if sgd is None else sgd))
        self.method = DSP(**{"groups": 3, "lam": 0.1, **settings})
        self.learner = self.method.learner(self.model, self.graph, TASK)
        generator = torch.Generator().manual_seed(1)
        self.images = torch.randn(8, 3, 16, 16, generator=generator, dtype=dtype).to(device)
        self.labels = torch.randint(10, (8,), generator=generator).to(device)
        self.index = 0

    def plain(self) -> None:
        self.optimizer.zero_grad()
        F.cross_entropy(self.model(self.images), self.labels).backward()
        self.optimizer.step()

    def group(self) -> None:
        self.learner.after_step(
            Step(self.model, self.optimizer, self.images, self.labels, SGD["lr"], self.index, total=10)
        )
        self.index += 1

    def step(self) -> None:
        self.plain()
        self.group()

    def state(self) -> dict:
        return copy.deepcopy(
            {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "learner": self.learner.state_dict(),
            }
        )

    def scales(self) -> dict[str, float]:
        return {
            conv.name: maths.penalty_scale(
                conv.filters, conv.kernel, self.method.groups, maths.input_size(conv, self.graph.input_shape)
            )
            for conv in self.graph.convs.values()
            if conv.prunable
        }


def penalty_of(p_GO: Tensor, weight: Tensor) -> Tensor:
    size_G = p_GO.sqrt().sum(1).square()
    square_GI = (p_GO[:, :, None, None, None] * weight).square().sum((1, 3, 4))
    norm_GI = torch.where(square_GI > 0, square_GI, 1).sqrt() * (square_GI > 0)  # sqrt has no gradient at 0
    return (size_G * norm_GI.sum(1)).sum()


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, Tensor) else one == other


def slow_logit_gradients(training: Training, noise: dict[str, Tensor], rate: float) -> dict[str, Tensor]:
    """The gradient of the relaxed penalty by the logits through the unrolled step, with copies and autograd only."""
    model, optimizer = copy.deepcopy((training.model, training.optimizer))
    scales, temperature = training.scales(), training.method.temperature
    logits = {name: value.clone().requires_grad_() for name, value in training.learner.state_dict()["logits"].items()}
    p = {name: torch.softmax(value / temperature + noise[name], 0) for name, value in logits.items()}
    weights = {name: model.get_parameter(f"{name}.weight") for name in logits}
    start = {name: weight.detach().clone().requires_grad_() for name, weight in weights.items()}

    def penalty_step() -> None:
        for name, weight in weights.items():
            (gradient,) = torch.autograd.grad(penalty_of(p[name].detach(), weight), weight)
            weight.data -= rate * scales[name] * gradient

    penalty_step()
    w1 = {name: weight.detach().clone() for name, weight in weights.items()}
    optimizer.zero_grad()
    F.cross_entropy(model(training.images), training.labels).backward()
    optimizer.step()
    w2 = {name: weight.detach().clone() for name, weight in weights.items()}
    penalty_step()
    found = {}
    for name, weight in weights.items():
        change = (weight.detach() - w1[name]).detach()
        (first,) = torch.autograd.grad(penalty_of(p[name], w2[name]), p[name], retain_graph=True)
        (slope,) = torch.autograd.grad(penalty_of(p[name], start[name]), start[name], create_graph=True)
        (second,) = torch.autograd.grad((slope * change).sum(), p[name], retain_graph=True)
        (found[name],) = torch.autograd.grad(p[name], logits[name], first + second)
    return found


@pytest.mark.parametrize(
    "sgd",
    [
        SGD,
        {"lr": 0.05},
        {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-3},
        {"lr": 0.05, "momentum": 0.9, "dampening": 0.3},
    ],
)
def test_a_step_agrees_with_the_slow_one(sgd: dict[str, Any]) -> None:
    training = Training(dtype=torch.float64, sgd=sgd)
    training.step()
    training.plain()
    rate = training.method.lam * SGD["lr"] * 2 / 10
    noise = {name: torch.randn_like(value) for name, value in training.learner.state_dict()["logits"].items()}
    training.learner._noise = lambda: noise
    expected = slow_logit_gradients(training, noise, rate)
    before = training.state()
    training.group()

    got = training.learner._logits.grad
    assert got is not None
    gradients = got.split([layer.numel() for layer in training.learner._layers.values()])
    for (name, layer), gradient in zip(training.learner._layers.items(), gradients, strict=True):
        torch.testing.assert_close(gradient.view_as(layer), expected[name], rtol=1e-9, atol=1e-9)

    after = training.model.state_dict()
    hard = training.learner.state_dict()["logits"]
    for key, value in before["model"].items():
        name = key.removesuffix(".weight")
        if name in hard:
            one_hot_GO = F.one_hot(hard[name].argmax(0), 3).T.double()
            weight = value.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(penalty_of(one_hot_GO, weight), weight)
            value = value - rate * training.scales()[name] * gradient
            torch.testing.assert_close(after[key], value, rtol=1e-12, atol=1e-12)
        else:
            assert torch.equal(after[key], value), f"{key} is not pruned, so it must stay as it was"


@pytest.mark.parametrize("rate", [1e-3, 0.03])
def test_the_first_step_moves_logits_by_their_rate(rate: float) -> None:
    training = Training(dtype=torch.float64, logit_lr=rate)
    training.step()
    largest = max(float(logits.abs().max()) for logits in training.learner.state_dict()["logits"].values())
    assert largest == pytest.approx(rate, rel=1e-6)


@pytest.mark.parametrize("mode", ["exact", "released", "none"])
def test_without_lambda_only_the_logits_move(mode: str) -> None:
    training = Training(lam=0.0, second_order=mode)
    training.plain()
    gradients = copy.deepcopy([parameter.grad for parameter in training.model.parameters()])
    before = training.state()
    training.group()
    after = training.state()
    assert same(before["model"], after["model"])
    assert same(before["optimizer"], after["optimizer"])
    assert not same(before["learner"]["logits"], after["learner"]["logits"])
    assert same(gradients, [parameter.grad for parameter in training.model.parameters()])
    assert all(m.track_running_stats for m in training.model.modules() if isinstance(m, nn.BatchNorm2d))


@pytest.mark.parametrize(("settings", "passes"), [({}, 2), ({"second_order": "none"}, 1), ({"grouping": "random"}, 1)])
def test_forward_passes_of_a_step(settings: dict[str, Any], passes: int) -> None:
    training = Training(**settings)
    seen = []
    training.model.get_submodule("classifier").register_forward_hook(lambda *_: seen.append(1))
    training.step()
    assert len(seen) == passes


@pytest.mark.parametrize("settings", [{}, {"second_order": "none"}, {"grouping": "kmeans"}, {"groups": 1}])
def test_a_resumed_run_ends_with_the_same_bits(settings: dict[str, Any]) -> None:
    whole, first, second = (Training(**settings) for _ in range(3))
    for _ in range(4):
        whole.step()
    for _ in range(2):
        first.step()
    file = io.BytesIO()
    torch.save(first.state(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    second.model.load_state_dict(state["model"])
    second.optimizer.load_state_dict(state["optimizer"])
    second.learner.load_state_dict(state["learner"])
    second.index = 2
    assert same(first.state(), second.state())
    torch.manual_seed(99)  # nothing depends on the global generator
    for _ in range(2):
        second.step()
    assert same(whole.state(), second.state())
    assert whole.learner.metrics() == second.learner.metrics()


def test_a_state_of_another_network_is_refused() -> None:
    state = Training(model_name="resnet20").learner.state_dict()
    with pytest.raises(ValueError, match=r"another network: stage_1\.1"):
        Training().learner.load_state_dict(state)
    with pytest.raises(ValueError, match=r"logits of stage_1\.0\.conv_a are \[2, 16\], expected \[3, 16\]"):
        Training().learner.load_state_dict(Training(groups=2).learner.state_dict())
    own = Training().learner.state_dict()
    with pytest.raises(ValueError, match="saved on cuda"):
        Training().learner.load_state_dict({**own, "noise": {"cuda": own["noise"]["cpu"]}})


@pytest.mark.parametrize("mode", ["exact", "released", "none"])
def test_zeroed_layers_channels_and_filters_never_give_nan(mode: str) -> None:
    training = Training(second_order=mode, lam=1.0)
    with torch.no_grad():
        training.model.get_parameter("stage_1.0.conv_a.weight").zero_()
        training.model.get_parameter("stage_2.0.conv_a.weight")[:, 3] = 0
        training.model.get_parameter("stage_2.0.conv_b.weight")[5] = 0
    for logits_GO in training.learner._layers.values():
        logits_GO[1] = -100.0  # a group that stays empty
    training.optimizer.param_groups[0]["lr"] = 0.0
    for _ in range(3):
        training.step()
        assert all(bool(tensor.isfinite().all()) for tensor in training.model.state_dict().values())
        assert all(bool(logits.isfinite().all()) for logits in training.learner.state_dict()["logits"].values())
    assert all(value == value for value in training.learner.metrics().values())


def test_metrics() -> None:
    training = Training()
    names = training.scales()
    assert training.learner.metrics()["group_entropy_nats"] == pytest.approx(torch.tensor(3.0).log().item(), rel=1e-5)
    training.plain()
    weights = {name: training.model.get_parameter(f"{name}.weight").detach().clone() for name in names}
    training.group()
    found = training.learner.metrics()
    assert 0 < found["changed_share"] <= 1
    assert training.learner.metrics()["changed_share"] == 0
    hard = {name: F.one_hot(training.learner._layers[name].argmax(0), 3).T.float() for name in names}
    expected = sum(scale * penalty_of(hard[name], weights[name]).item() for name, scale in names.items())
    assert found["penalty"] == pytest.approx(expected, rel=1e-5)


def test_penalty_scales() -> None:
    """ "size" leaves out the share of activations; both carry over from one image size to another."""
    model = build("resnet8", 10)
    small, large = Graph(model, (3, 16, 16)), Graph(model, (3, 64, 64))
    for name, conv in small.convs.items():
        assert maths.input_size(conv, (3, 16, 16)) == maths.input_size(large.convs[name], (3, 64, 64))

    def penalty(scale: maths.PenaltyScale) -> dict[str, float]:
        settings = Settings(groups=2, lam=0.0, temperature=0.5, logit_lr=1e-3, penalty_scale=scale, second_order="none")
        learner = GroupLearner(model, small, settings, seed=0)
        return {
            name: float(s) for stack in learner._stacks for name, s in zip(stack.names, stack.scale_L11, strict=True)
        }

    activations, size = penalty("activations"), penalty("size")
    assert size["stage_1.0.conv_a"] == pytest.approx(3 * (2 / 16) ** 1.5)
    assert activations["stage_1.0.conv_a"] == pytest.approx(size["stage_1.0.conv_a"])
    assert activations["stage_3.0.conv_b"] == pytest.approx(size["stage_3.0.conv_b"] * 0.5)


def test_no_loop_over_layers() -> None:
    """A deeper network of the same shapes costs no more small operations but for stacking its layers."""

    def operations(model_name: str) -> int:
        training = Training(model_name=model_name, second_order="none")
        training.step()
        with torch.profiler.profile() as profile:
            training.group()
        return sum(event.name in ("aten::matmul", "aten::softmax", "aten::sqrt") for event in profile.events())

    assert operations("resnet8") == operations("resnet20") > 0


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("mode", ["exact", "released", "none"])
def test_a_captured_step_equals_an_eager_one(mode: str) -> None:
    eager, captured = (Training(device="cuda", dtype=torch.float64, second_order=mode) for _ in range(2))
    index = torch.zeros((), device="cuda")
    for training in (eager, captured):
        for _ in range(3):
            training.step()
    step = Step(captured.model, captured.optimizer, captured.images, captured.labels, SGD["lr"], index, 10)
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(captured.learner.generator)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        captured.plain()
        captured.learner.after_step(step)
    for _ in range(3):
        index.fill_(eager.index)
        eager.step()
        graph.replay()
    torch.cuda.synchronize()
    for name, logits_GO in eager.learner.state_dict()["logits"].items():
        torch.testing.assert_close(captured.learner.state_dict()["logits"][name], logits_GO, rtol=0, atol=1e-6)
    for key, value in eager.model.state_dict().items():
        torch.testing.assert_close(captured.model.state_dict()[key], value, rtol=0, atol=1e-6)
