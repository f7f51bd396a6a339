"""The dose of the group penalty, against the closed form and against the learner's steps."""

from __future__ import annotations

import dataclasses
import math
from statistics import median

import pytest
import torch
from method_cases import images, network_of, task_of
from torch import nn

from dsp import DSP
from dsp.dose import doses_per_rate, lam_for, summed_rate
from dsp.learner import GroupLearner
from suite.graph import Graph
from suite.schedule import Schedule
from suite.train import Trainer

SCHEDULE = Schedule(epochs=2, lr=0.05, weight_decay=1e-4, batch=16, epoch_images=64)


def trained(settings: DSP, learner: GroupLearner | None = None, model: nn.Module | None = None) -> Trainer:
    model = model or network_of("resnet8")
    learner = learner or settings.learner(model, Graph(model, images().input_shape), task_of(0))
    batches = images().train("all", batch=16, seed=0, device="cpu", limit=64)
    trainer = Trainer(model.train(), batches, SCHEDULE, learner=learner)
    for epoch in range(SCHEDULE.epochs):
        for x, labels in trainer.batches.epoch(epoch):
            trainer.advance(x, labels)
        trainer.end_epoch()
    return trainer


def rates() -> list[float]:
    return [SCHEDULE.lr_at(step, 4) for step in range(8)]


def test_dose_is_the_closed_form() -> None:
    model = network_of("resnet8")
    graph = Graph(model, images().input_shape)
    name, conv = next((name, conv) for name, conv in graph.convs.items() if conv.role == "inner")
    w = model.get_parameter(f"{name}.weight").detach()
    norm = sum(math.sqrt(float(w[:, i].square().sum()) / 4) for i in range(conv.channels)) / conv.channels
    c = math.sqrt(conv.kernel) * (4 / conv.filters) ** 1.5
    expected = c * (conv.filters / 4) ** 2 / norm
    assert doses_per_rate(model, graph, 4, "size")[name] == pytest.approx(expected, rel=1e-5)
    assert summed_rate([1.0, 1.0, 0.5, 0.5]) == pytest.approx(0.25 + 0.5 + 0.375 + 0.5)


def test_lambda_for_a_dose_gives_that_dose_in_the_learned_state() -> None:
    model = network_of("resnet8")
    graph = Graph(model, images().input_shape)
    lam = lam_for(3.0, model, graph, rates(), groups=2)
    settings = DSP(groups=2, lam=lam)
    trainer = trained(settings)
    facts = settings.facts(trainer.learner.state_dict())
    assert facts["dose"] == pytest.approx(3.0, rel=1e-5)
    assert trainer.history[-1]["dose"] == pytest.approx(3.0, rel=1e-5)
    assert trainer.history[0]["dose"] < trainer.history[1]["dose"]
    assert median(doses_per_rate(model, graph, 2, "activations").values()) > 0


def test_a_wanted_dose_is_reached_on_the_schedule_of_the_stage() -> None:
    settings = DSP(groups=2, dose=2.5)
    model = network_of("resnet8")
    task = dataclasses.replace(task_of(0), rates=lambda: SCHEDULE.rates(4))
    learner = settings.learner(model, Graph(model, images().input_shape), task)
    trainer = trained(settings, learner, model)
    assert settings.facts(trainer.learner.state_dict())["dose"] == pytest.approx(2.5, rel=1e-5)
    resumed = settings.learner(model, Graph(model, images().input_shape), task)  # the weights have changed
    resumed.load_state_dict(trainer.learner.state_dict())
    assert resumed.dose == pytest.approx(2.5, rel=1e-5)
    assert DSP(dose=1.0, lam=0.5) == DSP(dose=1.0), "a recipe's lambda is not part of it"
    with pytest.raises(ValueError, match="dose = -1 must be a number of at least 0"):
        DSP(dose=-1)
    with pytest.raises(ValueError, match=r"a dose of 2\.5 cannot be reached with learning rates that sum to 0"):
        settings.learner(model, Graph(model, images().input_shape), task_of(0))


def test_the_entropy_is_that_of_equal_groups_if_nothing_is_learned() -> None:
    settings = DSP(groups=3)
    model = network_of("resnet8")
    learner = settings.learner(model, Graph(model, images().input_shape), task_of(0))
    facts = settings.facts(learner.state_dict())
    assert facts["group_entropy_nats"] == pytest.approx(math.log(3), rel=1e-6)
    assert facts["dose"] == 0


def test_sparse_kernels_are_those_that_learning_makes_small() -> None:
    settings = DSP(groups=2)
    model = network_of("resnet8")
    graph = Graph(model, images().input_shape)
    learner = settings.learner(model, graph, task_of(0))
    assert settings.facts(learner.state_dict())["sparse_share"] == 0
    weights = [model.get_parameter(f"{conv.name}.weight") for conv in graph.convs.values() if conv.prunable]
    with torch.no_grad():
        for weight in weights:
            weight[:, 0] *= 1e-4
    planted = sum(weight.shape[0] for weight in weights) / sum(weight.shape[0] * weight.shape[1] for weight in weights)
    resumed = settings.learner(model, graph, task_of(0))
    resumed.load_state_dict(learner.state_dict())  # norms before learning come from the state
    for each in (learner, resumed):
        assert settings.facts(each.state_dict())["sparse_share"] == pytest.approx(planted)
        assert each.metrics()["sparse_share"] == pytest.approx(planted)


def test_a_dose_that_cannot_be_reached_is_refused() -> None:
    model = network_of("resnet8")
    graph = Graph(model, images().input_shape)
    with pytest.raises(ValueError, match="a dose of 2 cannot be reached with learning rates that sum to 0"):
        lam_for(2, model, graph, [0.0, 0.0], groups=2)
    for dose in (-1, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"a dose of {dose} cannot be reached"):
            lam_for(dose, model, graph, rates(), groups=2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    with pytest.raises(ValueError, match="a dose of 2 cannot be reached: the channel norms of most layers are 0"):
        lam_for(2, model, graph, rates(), groups=2)


def test_dose_grows_with_lambda_and_falls_with_the_weights() -> None:
    model = network_of("resnet8")
    graph = Graph(model, images().input_shape)
    before = doses_per_rate(model, graph, 2, "size")
    with torch.no_grad():
        for name in before:
            model.get_parameter(f"{name}.weight").mul_(2)
    after = doses_per_rate(model, graph, 2, "size")
    assert all(after[name] == pytest.approx(before[name] / 2) for name in before)
