"""The idea of each method that learns, on cases worked out by hand; and that each goes on just as if it had not stopped."""

from __future__ import annotations

import copy

import pytest
import torch
from test_methods import images, network_of, one_layer, task_of
from torch import nn

from baselines.sfp import SFP
from suite import methods
from suite.contract import Budget, Pruner, PruningPlan
from suite.graph import Graph
from suite.schedule import Schedule
from suite.select import meet
from suite.train import Trainer

SCHEDULE = Schedule(epochs=4, lr=0.05, weight_decay=1e-4, batch=16, epoch_images=64)
LEARNING = ("sfp",)


def trainer_of(method: str, settings: Pruner | None = None, schedule: Schedule = SCHEDULE) -> Trainer:
    """Training of a ResNet-8 on digits with the method's hooks, not begun."""
    settings = settings or methods.get(method).for_task("digits", "resnet8")
    model = network_of("resnet8")
    graph = Graph(model, images().input_shape)
    learner = settings.learner(model, graph, task_of(0, Budget(share=0.5)))
    batches = images().train("all", batch=schedule.batch, seed=0, device="cpu", limit=schedule.epoch_images)
    return Trainer(model.train(), batches, schedule, learner=learner)


def train(trainer: Trainer, *, until: int) -> None:
    """Train to this step."""
    while trainer.step < until:
        epoch, done = divmod(trainer.step, trainer.steps_per_epoch)
        for x, labels in trainer.batches.epoch(epoch, start=done):
            trainer.advance(x, labels)
            if trainer.step == until:
                break
        if trainer.step % trainer.steps_per_epoch == 0:
            trainer.end_epoch()


def filter_norms(model: nn.Module, name: str = "0") -> list[float]:
    norms: list[float] = model.get_parameter(f"{name}.weight").detach().flatten(1).norm(dim=1).tolist()
    return norms


@pytest.mark.parametrize("method", LEARNING)
def test_learning_goes_on_with_the_same_bits(method: str) -> None:
    """After a stop in the middle of the second epoch."""
    whole = trainer_of(method)
    train(whole, until=6)
    state = copy.deepcopy(whole.state_dict())
    again = trainer_of(method)
    for parameter in again.model.parameters():
        nn.init.normal_(parameter)
    again.load_state_dict(state)
    for trainer in (whole, again):
        train(trainer, until=whole.total)
    torch.testing.assert_close(again.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(again.learner.state_dict(), whole.learner.state_dict(), rtol=0, atol=0)
    assert again.history == whole.history


# ---- soft filter pruning ---------------------------------------------------------------------------------------------


def test_sfp_zeroes_the_least_filters_and_lets_one_grow_again() -> None:
    model, graph = one_layer([[3.0, 0.0], [0.0, 2.0], [0.5, 0.0], [0.0, 1.0]])
    learner = SFP().learner(model, graph, task_of(0, Budget(share=0.5)))
    bn = {key: tensor.clone() for key, tensor in model[1].state_dict().items()}  # type: ignore[index]
    learner.after_epoch(model)
    assert filter_norms(model) == [3, 2, 0, 0]
    assert all(torch.equal(tensor, bn[key]) for key, tensor in model[1].state_dict().items())  # type: ignore[index]
    assert learner.metrics() == {"zeroed_share": 0.5, "returned_share": 0.0}
    with torch.no_grad():
        model.get_parameter("0.weight")[2] = torch.tensor([0.0, 2.5])[:, None, None]  # it has grown past filter 1
    learner.after_epoch(model)
    assert filter_norms(model) == [3, 0, 2.5, 0]
    assert learner.metrics() == {"zeroed_share": 0.5, "returned_share": 0.5}


def test_sfp_grows_filters_again_while_training_and_ends_at_the_budget() -> None:
    trainer, settings, budget = trainer_of("sfp"), SFP(), Budget(share=0.5)
    train(trainer, until=trainer.steps_per_epoch)
    zeroed = PruningPlan.from_tensors(trainer.learner.state_dict()["zeroed"])
    weights = {name: trainer.model.get_parameter(f"{name}.weight") for name in zeroed}
    assert all(bool((weights[name][~layer.kept_O] == 0).all()) for name, layer in zeroed.items())
    train(trainer, until=trainer.step + 1)
    assert all(
        bool((weights[name][~layer.kept_O] != 0).any()) for name, layer in zeroed.items() if not layer.kept_O.all()
    )
    train(trainer, until=trainer.total)
    graph = Graph(trainer.model, images().input_shape)
    scores = settings.score(trainer.model, graph, {}, task_of(0))
    plan = meet(settings.planner(trainer.model, graph, {}, task_of(0, budget)), graph, budget).plan
    assert all(bool((scores[name][~layer.kept_O] == 0).all()) for name, layer in plan.items())
    assert budget.share <= graph.cut(plan) < budget.share + 0.1
