"""Norms and medians of filters, pruned once or softly, on cases worked out by hand."""

from __future__ import annotations

import torch
from learning_cases import filter_norms, one_step, train, trainer_of
from method_cases import (
    images,
    one_layer,
    order_of_removal,
    task_of,
)

from baselines.fpgm import FPGM
from baselines.fpgm_once import FPGMOnce
from baselines.l1_filter import L1Filter
from baselines.random_filter import RandomFilter
from baselines.sfp import SFP
from suite.contract import (
    Budget,
    PruningPlan,
)  # fmt: skip
from suite.graph import Graph
from suite.select import meet


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


CENTRAL = [[9.0, 0.9], [10.0, 0.0], [9.0, -0.9]]
"""Filters of one layer; the second is the nearest to the median of all."""


def test_fpgm_zeroes_the_central_filters_and_removes_the_zeroed_ones() -> None:
    model, graph = one_layer(CENTRAL)
    learner = FPGM().learner(model, graph, task_of(0, Budget(share=0.25)))
    assert filter_norms(model)[1] == 0, "zero before the first step"
    plan = FPGM().planner(model, graph, learner.state_dict(), task_of(0))(0.25)
    assert plan["0"].kept_O.tolist() == [True, False, True], "although the zero filter is far from the others"


def test_fpgm_holds_a_zero_filter_at_zero_and_leaves_it_the_rest_of_its_momentum() -> None:
    """SGD with rate 0.1, momentum 0.5 and gradients of 1.

    Filter 1 is zero from the start and stays at zero. Filter 0 has velocity 1.5 after two steps; once filter 0 is zeroed, it
    moves by 0.1 * 0.5 * 1.5.
    """
    model, graph = one_layer(CENTRAL)
    learner = FPGM().learner(model, graph, task_of(0, Budget(share=0.25)))
    weight = model.get_parameter("0.weight")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)

    def step() -> None:
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        learner.before_step(one_step(model))
        optimizer.step()

    step()
    step()
    assert filter_norms(model)[1] == 0
    torch.testing.assert_close(weight[0].flatten(), torch.tensor([8.75, 0.65]))
    weight.data[1:] = torch.tensor([[20.0, 0.0], [0.0, 20.0]])[
        :, :, None, None
    ]  # filter 0 is the nearest to the median
    learner.after_epoch(model)
    assert [norm == 0 for norm in filter_norms(model)] == [True, False, False]
    step()
    torch.testing.assert_close(weight[0].flatten(), torch.tensor([-0.075, -0.075]))
    torch.testing.assert_close(weight[1].flatten(), torch.tensor([19.9, -0.1]), msg="its mask is lifted")
