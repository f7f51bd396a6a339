"""The idea of CHIP, EagleEye, 1xN, TMI-GKP, ResRep, Group Fisher and HSPG, each on a case worked out by hand."""

from __future__ import annotations

import copy
import dataclasses
import gc
import itertools
import weakref

import numpy as np
import pytest
import torch
from learning_cases import continued, one_step, train, trainer_of, two_layers, zero_gradients
from method_cases import network_of, one_layer, task_of
from test_baselines_criteria import task_with
from torch import nn

from baselines.chip import independence
from baselines.eagle_eye import EagleEye, re_estimate
from baselines.group_fisher import Fisher, GroupFisher, fisher_per_mac
from baselines.hspg import HSPG, ZeroInvariantGroups
from baselines.one_by_n import OneByN, blocks
from baselines.resrep import ResRep, inner_layers
from baselines.tmi_gkp import TMIGKP, _chain, _cost, mutual_neighbours, preferred
from suite.contract import Budget, ConvPlan, PruningPlan
from suite.graph import Graph
from suite.select import meet

HALF = Budget(share=0.5)


# ---- CHIP ------------------------------------------------------------------------------------------------------------


def test_chip_lets_the_map_go_that_is_a_combination_of_the_others() -> None:
    a, b, c = torch.eye(16)[:3].double()
    maps = torch.stack([3 * a, 3 * b, 2 * (a + b), 2 * c]).view(1, 4, 4, 4)  # the last is the smallest, and independent
    assert independence(maps)[0].argmin() == 2


@pytest.mark.parametrize("shape", [(2, 5, 4, 4), (2, 9, 2, 2)])
def test_chip_is_the_nuclear_norm_that_is_lost_with_a_row(shape: tuple[int, ...]) -> None:
    maps = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scores = independence(maps)
    for image, o in itertools.product(range(shape[0]), range(shape[1])):
        rows = maps[image].flatten(1).clone()
        whole = torch.linalg.matrix_norm(rows, "nuc")
        rows[o] = 0
        torch.testing.assert_close(
            scores[image, o], whole - torch.linalg.matrix_norm(rows, "nuc"), rtol=1e-6, atol=1e-6
        )


# ---- 1xN -------------------------------------------------------------------------------------------------------------


def test_one_by_n_blocks_are_filters_of_neighbouring_norms() -> None:
    w = torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0])[:, None, None, None]
    assert blocks(w, 2).tolist() == [0, 2, 0, 1, 1]


def test_one_by_n_removes_the_block_with_the_smallest_norm_for_all_its_filters() -> None:
    first = torch.tensor([[9.0, 1.0], [9.0, 2.0], [1.0, 4.0], [2.0, 4.0]])
    model, graph = two_layers(torch.eye(2), first)
    plan = OneByN(n=2).planner(model.eval(), graph, {}, task_of(0))
    # blocks: filters 0, 1 read 18 and 3; filters 2, 3 read 3 and 8; two equal ones, the first goes first
    smallest = [plan(knob)["3"].mask_OI.tolist() for knob in (0.2, 0.45)]
    assert smallest[0] == [[True, False], [True, False], [True, True], [True, True]]
    assert smallest[1] == [[True, False], [True, False], [False, True], [False, True]]


@pytest.mark.parametrize("rate", [0.25, 0.5])
def test_one_by_n_masks_the_smallest_sums_of_n_filters_over_each_channel(rate: float) -> None:
    """Filters in the order of their norms, as the authors' code has them after the rearrangement."""
    w = torch.rand(8, 6, generator=torch.Generator().manual_seed(0)) * torch.arange(8, 0, -1)[:, None]
    model, graph = two_layers(torch.eye(6), w)
    order = w.sum(1).argsort(descending=True)
    sums = w[order].T.reshape(6, 4, 2).sum(2).flatten()  # channels times blocks
    gone = torch.zeros(24, dtype=torch.bool).scatter_(0, sums.topk(int(24 * rate), largest=False).indices, True)
    expected = torch.empty(8, 6, dtype=torch.bool)
    expected[order] = ~gone.view(6, 4, 1).expand(-1, -1, 2).reshape(6, 8).T
    assert torch.equal(OneByN(n=2).planner(model.eval(), graph, {}, task_of(0))(rate)["3"].mask_OI, expected)


def test_one_by_n_refuses_a_layer_that_is_too_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("baselines.one_by_n.MOST_FILTERS", 3)
    model, graph = two_layers(torch.eye(2), torch.ones(4, 2))
    with pytest.raises(ValueError, match=r"one_by_n takes layers of at most 3 filters; 3 has more"):
        OneByN(n=2).planner(model.eval(), graph, {}, task_of(0))


# ---- TMI-GKP ---------------------------------------------------------------------------------------------------------


def test_tmi_gkp_prefers_the_clustering_whose_clusters_grew_alike() -> None:
    growth = torch.tensor([1.0, 9.0, 1.0, 9.0, 5.0, 5.0])
    together, mixed = torch.tensor([0, 1, 0, 1, 2, 2]), torch.tensor([0, 0, 1, 1, 2, 2])
    assert preferred([together, mixed], growth) == 1
    assert preferred([mixed, together], growth) == 0


def test_tmi_gkp_joins_mutual_neighbours_alone() -> None:
    """At 0, 10, 30 and 90 degrees the third filter's nearest is the second, whose nearest is the first."""
    angles = np.deg2rad([0.0, 10.0, 30.0, 90.0])
    graph = mutual_neighbours(np.stack([np.cos(angles), np.sin(angles)], axis=1), near=1)
    expected = np.eye(4)
    expected[0, 1] = expected[1, 0] = 1
    assert (graph == expected).all()


def test_tmi_gkp_takes_the_kernel_that_is_least_like_those_taken() -> None:
    points = torch.tensor([[0.0, 0.0], [0.1, 0.0], [10.0, 0.0], [0.0, 7.0]]).double()
    like = (1 - torch.cdist(points, points)).numpy()
    assert _chain(like, 0) == [0, 2, 3, 1]
    stay, gone = [0, 2], [3, 1]
    near = [max(like[g][s] for s in stay) for g in gone]
    assert _cost(like, [*stay, *gone], 2, 0.5, 8.0) == pytest.approx(like[0][2] - 8 * sum(near))


@pytest.mark.filterwarnings("ignore:k >= N")  # the spectral embedding of four filters
def test_tmi_gkp_plans_the_planted_groups_and_one_kernel_of_each_pair() -> None:
    """Pairs of alike channels tell two groups of filters.

    Filters 0 and 2 read channels that are alike in the pairs 03, 14, 25; filters 1 and 3 in the pairs 01, 23, 45.
    Since the initial weights the filters grew by 1, 2, 9 and 8, so the groups 02 and 13 grew alike.
    """
    apart, shift = 0.01 * torch.arange(6), torch.tensor([1.0, 1.0, -8.0])
    first, other = torch.tensor([9.0, -9.0, 0.0]), torch.tensor([-9.0, 9.0, 0.0])
    filters = [first.repeat(2), other.repeat_interleave(2)]
    second_OI = torch.stack([*filters, filters[0] + shift.repeat(2), filters[1] - shift.repeat_interleave(2)]) + apart
    model, graph = two_layers(torch.randn(6, 2), second_OI)
    grown_OI = second_OI.abs() - torch.tensor([[1.0, 2.0, 9.0, 8.0]]).T / 6
    planner = TMIGKP(groups=2).planner(model, graph, {"taken": [{"3": grown_OI}]}, task_of(0, HALF))
    layer = planner(0.5)["3"]
    groups = [layer.kept_GI[layer.filter_group_O[o]] for o in range(4)]
    assert torch.equal(groups[0], groups[2])
    assert torch.equal(groups[1], groups[3])
    assert layer.filter_group_O[0] != layer.filter_group_O[1]
    assert [int(groups[0][[a, a + 3]].sum()) for a in (0, 1, 2)] == [1, 1, 1]
    assert [int(groups[1][[a, a + 1]].sum()) for a in (0, 2, 4)] == [1, 1, 1]


def test_tmi_gkp_takes_its_snapshots_over_the_whole_stage_and_resumes() -> None:
    trainer = trainer_of("tmi_gkp", TMIGKP(tickets=2))
    train(trainer, until=trainer.total)
    state = trainer.learner.state_dict()
    assert len(state["taken"]) == 2
    first, second = (taken["stage_1.0.conv_a"] for taken in state["taken"])
    assert not torch.equal(first, second)
    torch.testing.assert_close(first, network_of("resnet8").get_parameter("stage_1.0.conv_a.weight").abs().flatten(1))


# ---- EagleEye --------------------------------------------------------------------------------------------------------


def test_eagle_eye_needs_re_estimated_statistics_to_tell_a_broken_network() -> None:
    """Filters 0 and 1 tell the classes; 2 and 3 are the same for all images.

    Removing 2 shifts the next layer's mean.
    """
    first = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.01, 0.01]])
    second = torch.tensor([[1.0, 0.0, 40.0, 0.0], [0.0, 1.0, 40.0, 0.0]])
    model, graph = two_layers(first, second)
    x = torch.zeros(64, 2, 4, 4)
    x[:32, 0], x[32:, 1] = 1.0, 1.0
    labels = torch.cat([torch.zeros(32), torch.ones(32)]).long()
    model.get_parameter("8.weight").data, model.get_parameter("8.bias").data = torch.eye(2), torch.zeros(2)
    with torch.no_grad():
        model.get_parameter("1.bias")[2] = 1.0  # its batch norm gives 1 for every image
        for norm in (model.get_submodule("1"), model.get_submodule("4")):  # statistics of the whole network
            assert isinstance(norm, nn.BatchNorm2d)
            norm.momentum, norm.training = None, True
        model.train()(x)
    task = dataclasses.replace(task_with(x, labels), train_epoch=lambda epoch: iter([(x, labels)]))
    settings = EagleEye(candidates=1, batches=1, images=64)

    def without(*filters: int) -> PruningPlan:
        kept = torch.ones(4, dtype=torch.bool)
        kept[list(filters)] = False
        return PruningPlan({"0": dataclasses.replace(ConvPlan.full(4, 2), kept_O=kept)})

    good, broken = without(2), without(0, 1)
    seen = {
        adapt: [settings.accuracy(model.eval(), graph, plan, task, adapt=adapt) for plan in (good, broken)]
        for adapt in (False, True)
    }
    assert seen[True] == [1.0, 0.5]
    assert seen[False] == [0.5, 0.5], "without new statistics both are at chance"


def test_eagle_eye_re_estimates_mean_and_variance_of_the_batches() -> None:
    model, _ = two_layers(torch.eye(2), torch.eye(2))
    batches = torch.randn(3, 8, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        re_estimate(model, iter(batches))
    norm = model.get_submodule("1")
    assert isinstance(norm, nn.BatchNorm2d)
    torch.testing.assert_close(norm.running_mean, batches.mean((0, 1, 3, 4)))
    torch.testing.assert_close(norm.running_var, batches.transpose(1, 2).flatten(2).var(2).mean(0))
    assert norm.momentum == 0.1


def test_eagle_eye_refuses_networks_without_batch_norm_and_epochs_without_batches() -> None:
    bare = nn.Sequential(nn.Conv2d(2, 2, 1), nn.Flatten(1), nn.Linear(32, 2))
    with pytest.raises(ValueError, match="eagle_eye needs a batch norm behind every convolution; 0 has none"):
        EagleEye().planner(bare, Graph(bare, (2, 4, 4)), {}, task_of(0, HALF))
    model, graph = two_layers(torch.rand(4, 2), torch.rand(4, 4))
    none = dataclasses.replace(
        task_with(torch.rand(4, 2, 4, 4), torch.zeros(4).long()), train_epoch=lambda epoch: iter(())
    )
    with pytest.raises(ValueError, match="re-estimates batch norms on training batches, and an epoch has none"):
        EagleEye(candidates=1).accuracy(model, graph, PruningPlan({}), none)


def test_eagle_eye_refuses_a_budget_out_of_reach() -> None:
    model, graph = one_layer([[1.0, 1.0], [2.0, 1.0]])
    with pytest.raises(ValueError, match="random rate vectors reaches a budget of 99"):
        EagleEye(candidates=2).planner(model, graph, {}, task_of(0, Budget(share=0.99)))


# ---- ResRep ----------------------------------------------------------------------------------------------------------


def test_resrep_resets_the_task_for_the_least_row_alone() -> None:
    """The task pulls all rows outward; the one row that is reset has the lasso only, and goes to zero."""
    model, graph = two_layers(torch.randn(4, 2), torch.randn(4, 4))
    settings = ResRep(lam=0.5, momentum=0.0, interval=1, start_share=0.0, full_share=0.1)
    learner = settings.learner(model, graph, task_of(0, Budget(share=0.2)))
    matrix = learner.matrix["0"]
    with torch.no_grad():
        matrix[2] *= 0.5  # the planted useless row
    for index in range(10, 40):
        for each in learner.matrix.values():
            each.grad = -each.detach().clone()
        zero_gradients(model)
        step = one_step(model, index, 100)
        learner.before_step(step)
        learner.after_step(step)
    norms = matrix.detach().norm(dim=1)
    assert norms[2] < 0.05
    assert bool((norms[[0, 1, 3]] > 1).all()), "without the reset the task wins over the lasso"


@pytest.mark.parametrize("steps", [5, 100, 201])
def test_resrep_resets_rows_in_a_stage_of_any_length(steps: int) -> None:
    model = network_of("vgg6")
    learner = ResRep().learner(model, Graph(model, (3, 32, 32)), task_of(0, HALF))
    for index in range(steps):
        learner.before_step(one_step(model, index, steps))
    assert learner.metrics()["reset_share"] > 0.2


def test_resrep_takes_the_scale_of_the_loss_off_its_gradients() -> None:
    moved = []
    for scale in (1.0, 8.0):
        model, graph = one_layer([[1.0, 0.0], [0.0, 1.0]])
        learner = ResRep().learner(model, graph, task_of(0, HALF))
        learner.matrix["0"].grad = scale * torch.ones(2, 2)
        learner.after_step(dataclasses.replace(one_step(model), loss_scale=scale))
        moved.append(learner.state_dict()["matrix"]["0"])
    assert torch.equal(*moved)


def test_resrep_folds_its_compactors_into_the_same_function() -> None:
    model = network_of("resnet8").double()
    graph = Graph(model, (3, 32, 32))
    images = torch.rand(32, 3, 32, 32, dtype=torch.float64)
    task = dataclasses.replace(task_of(0, HALF), samples=lambda n: (images, torch.zeros(32).long()))
    learner = ResRep().learner(model, graph, task)
    generator = torch.Generator().manual_seed(0)
    for matrix in learner.matrix.values():
        matrix.data = (matrix + 0.3 * torch.randn(matrix.shape, generator=generator)).detach().double()
        matrix.data[0] = 0
    with torch.no_grad():
        model.train()(images)  # some statistics
        before = model.eval()(images)
        learner.finish(model)
        after = model(images)
    torch.testing.assert_close(after, before, rtol=1e-6, atol=1e-6)
    for name in learner.matrix:
        assert not bool(model.get_parameter(f"{name}.weight")[0].any())
        bn = graph.convs[name].bn
        zero = copy.deepcopy(model).get_submodule(bn or "")
        assert isinstance(zero, nn.BatchNorm2d)
        assert torch.allclose(
            zero(torch.zeros(1, len(zero.weight), 1, 1).double())[0, 0], torch.tensor(0.0).double(), atol=1e-9
        )


def test_resrep_moves_a_compactor_as_sgd_on_the_reset_gradient_and_the_lasso() -> None:
    model, graph = two_layers(torch.randn(4, 2), torch.randn(4, 4))
    learner = ResRep(lam=0.3, momentum=0.99).learner(model, graph, task_of(0, HALF))
    matrix = learner.matrix["0"]
    learner.kept_O["0"].copy_(torch.tensor([1.0, 0.0, 1.0, 1.0]))
    twin = nn.Parameter(matrix.detach().clone())
    sgd = torch.optim.SGD([twin], lr=0.1, momentum=0.99)
    generator = torch.Generator().manual_seed(0)
    for index in range(1, 4):
        task_gradient = torch.randn(4, 4, generator=generator)
        matrix.grad = task_gradient.clone()
        learner.after_step(one_step(model, index, 100))
        twin.grad = (
            task_gradient * learner.kept_O["0"][:, None] + 0.3 * twin.detach() / twin.detach().norm(dim=1)[:, None]
        )
        sgd.step()
    torch.testing.assert_close(matrix.detach(), twin.detach())


class Paired(nn.Module):
    """A convolution in two groups: the filters that one group reads are tied. A sum reads the others."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1, groups=2)
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return self.head((x + self.b(self.a(x))).mean((2, 3)))


class Sum(nn.Module):
    """A residual sum that reads every convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1), nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head((self.a(x) + self.b(x)).mean((2, 3)))


@pytest.mark.parametrize(
    ("network", "words"),
    [(Sum, "scope 'inner' removes no filter of this network"), (Paired, "whose filters are tied to no others; this")],
)
def test_resrep_refuses_a_network_without_free_filters(network: type[nn.Module], words: str) -> None:
    model = network()
    graph = Graph(model, (2, 4, 4))
    with pytest.raises(ValueError, match=words):
        ResRep().learner(model, graph, task_of(0, HALF))


def test_resrep_leaves_residual_sums_alone() -> None:
    model = network_of("resnet8")
    assert inner_layers(Graph(model, (3, 32, 32))) == [f"stage_{stage}.0.conv_a" for stage in (1, 2, 3)]


# ---- Group Fisher ----------------------------------------------------------------------------------------------------


def test_group_fisher_orders_channels_as_their_true_loss_change_for_each_mac() -> None:
    """At the optimum of a small linear case, half the Fisher information is the loss that a channel's removal costs."""
    channels = 4
    model = nn.Sequential(
        nn.Conv2d(channels, channels, 1, bias=False), nn.Flatten(1), nn.Linear(channels, 2, bias=False)
    )
    conv, head = model[0], model[2]
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(head, nn.Linear)
    conv.weight.data = torch.eye(channels)[:, :, None, None]
    effect = torch.tensor([0.4, 0.1, 0.3, 0.2])
    head.weight.data = torch.stack([effect / 2, -effect / 2])
    graph = Graph(model, (channels, 1, 1))
    model.double().train()
    # each image shows one channel; labels as often as the network's own probabilities, so that the mean gradient is 0
    images = torch.eye(channels, dtype=torch.float64).repeat_interleave(1000, 0)[:, :, None, None]
    with torch.no_grad():
        often = (1000 * model(images[::1000]).softmax(1)[:, 0]).round().long()
    labels = torch.cat([torch.arange(1000) >= count for count in often]).long()
    fisher = Fisher(model, graph)
    loss = nn.functional.cross_entropy(model(images), labels)
    loss.backward()
    fisher.take(one_step(model))
    true = []
    for channel in range(channels):
        without = images.clone()
        without[:, channel] = 0
        with torch.no_grad():
            true.append(float(nn.functional.cross_entropy(model(without), labels) - loss))
    half = fisher.total_S[graph.filter_sets["0"]] / len(images) / 2
    torch.testing.assert_close(half, torch.tensor(true).double(), rtol=0.1, atol=1e-6)
    slope = torch.tensor([8.0, 1.0, 1.0, 1.0])  # the first channel saves eight times the MACs
    assert fisher_per_mac(half, slope).argsort().tolist() == (torch.tensor(true) / slope).argsort().tolist()
    assert fisher_per_mac(half, slope).argsort().tolist() != half.argsort().tolist()


def test_group_fisher_takes_the_gradient_of_each_reader_alone() -> None:
    """A channel that a convolution reads and a sum passes on: only what the convolution does with it is masked."""
    model = network_of("resnet8").train()
    graph = Graph(model, (3, 32, 32))
    fisher = Fisher(model, graph)
    x = torch.rand(4, 3, 32, 32)
    nn.functional.cross_entropy(model(x), torch.arange(4)).backward()
    (part_BS,) = fisher.parts_BS
    slopes = part_BS.sum(0)
    name = "stage_1.0.conv_a"  # its input is read by conv_a and by the shortcut's sum; the readers of the sum follow
    readers = [other for other, ids in graph.input_sets.items() if torch.isin(ids, graph.input_sets[name]).any()]
    total = torch.zeros_like(slopes)
    for reader in readers:
        w = model.get_parameter(f"{reader}.weight")
        assert w.grad is not None
        channel_I = (w * w.grad).flatten(2).sum(2).sum(0) if w.dim() == 4 else (w * w.grad).sum(0)
        ids = graph.input_sets[reader]
        total.index_add_(0, ids[ids >= 0], channel_I.detach().double()[ids >= 0])
    sets = graph.input_sets[name].unique()
    torch.testing.assert_close(slopes[sets], total[sets], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("parts", "scale"), [(2, 1.0), (1, 8.0), (4, 0.5)])
def test_group_fisher_squares_the_gradients_of_single_images(parts: int, scale: float) -> None:
    """Without batch norm, parts of a batch and the scale of the loss do not change the Fisher information."""

    def total_of(parts: int, scale: float) -> torch.Tensor:
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Flatten(1), nn.Linear(4, 2)
        ).double()
        fisher = Fisher(model, Graph(model, (2, 3, 3)))
        x, labels = torch.rand(8, 2, 3, 3).double(), torch.arange(8) % 2
        for images_BCHW, labels_B in zip(x.chunk(parts), labels.chunk(parts), strict=True):
            (nn.functional.cross_entropy(model(images_BCHW), labels_B) * scale / parts).backward()
        fisher.take(dataclasses.replace(one_step(model), loss_scale=scale))
        assert not fisher.parts_BS
        return fisher.total_S

    torch.testing.assert_close(total_of(parts, scale), total_of(1, 1.0))


def test_group_fisher_frees_the_activations_of_a_step() -> None:
    model = network_of("resnet8").train()
    fisher = Fisher(model, Graph(model, (3, 32, 32)))
    inputs = []
    model.get_submodule("stage_1.0.conv_b").register_forward_hook(lambda module, x, y: inputs.append(weakref.ref(x[0])))
    model(torch.rand(2, 3, 32, 32)).sum().backward()
    fisher.take(one_step(model))
    gc.collect()
    (activations,) = inputs
    assert activations() is None


def test_group_fisher_forgets_a_step_that_is_left_out() -> None:
    model = network_of("resnet8").train()
    learner = GroupFisher(interval=100).learner(model, Graph(model, (3, 32, 32)), task_of(0, HALF))
    model(torch.rand(2, 3, 32, 32)).sum().backward()
    learner.skip_step()
    learner.after_step(one_step(model, 0, 1000))
    assert not learner.state_dict()["fisher_S"].any()


def test_group_fisher_reads_linear_layers_of_positions() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.mix, self.head = nn.Conv2d(2, 3, 1), nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.mix(self.conv(x).flatten(2).transpose(1, 2)).mean(1))

    model = Tokens().train()
    fisher = Fisher(model, Graph(model, (2, 4, 5)))
    nn.functional.cross_entropy(model(torch.rand(6, 2, 4, 5)), torch.arange(6) % 2).backward()
    (part_BS,) = fisher.parts_BS
    w = model.mix.weight
    assert w.grad is not None
    torch.testing.assert_close(part_BS.sum(0)[:3], (w * w.grad).sum(0).detach().double())


def test_group_fisher_meets_its_budget_while_training() -> None:
    trainer = trainer_of("group_fisher", GroupFisher(interval=2))
    train(trainer, until=trainer.total)
    left = trainer.learner.metrics()["macs_left"]
    assert 0.4 < left <= 0.5
    state = trainer.learner.state_dict()
    assert bool((state["fisher_S"][state["order_S"] == 0] > 0).any()), "sets that are left have an order"
    graph = Graph(trainer.model, (3, 32, 32))
    planner = GroupFisher().planner(trainer.model.eval(), graph, trainer.learner.state_dict(), task_of(0))
    plan = meet(planner, graph, HALF).plan
    gone = {name for name, layer in plan.items() if not bool(layer.kept_O.all())}
    for name in gone:
        assert not bool(trainer.model.get_parameter(f"{name}.weight")[~plan[name].kept_O].any())


# ---- HSPG ------------------------------------------------------------------------------------------------------------


def test_hspg_projects_a_planted_redundant_group_to_exactly_zero() -> None:
    torch.manual_seed(0)
    model, graph = two_layers(torch.rand(4, 2) + 1, torch.rand(4, 4) + 1)
    with torch.no_grad():  # the planted group: tiny, and descending
        for name in ("0.weight", "1.weight", "1.bias"):
            model.get_parameter(name)[1] *= 0.02
    settings = HSPG(lam=0.01, pick_share=0.0, project_share=0.0)
    learner = settings.learner(model, graph, task_of(0, Budget(share=0.1)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for index in range(200):
        zero_gradients(model)
        step = dataclasses.replace(one_step(model, index, 200), optimizer=optimizer)
        learner.before_step(step)
        optimizer.step()
        learner.after_step(step)
    state = learner.state_dict()
    planted = int(graph.filter_sets["0"][1])
    assert bool(state["redundant_S"][planted])
    assert bool(state["zero_S"][planted])
    assert not bool(model.get_parameter("0.weight")[1].any())
    assert not bool(model.get_parameter("1.weight")[1].any())
    kept = ~state["redundant_S"][graph.filter_sets["0"]]
    assert bool((model.get_parameter("0.weight")[kept].flatten(1).norm(dim=1) > 1).all())


def test_hspg_takes_the_step_of_the_published_algorithm() -> None:
    """A group is one vector x.

    The step is x - lr * (g + lam * x / |x|), then 0 if its product with x is negative.
    """
    model, graph = two_layers(torch.rand(4, 2) + 0.5, torch.rand(4, 4))
    learner = HSPG(lam=0.5, pick_share=0.0, project_share=0.0).learner(model, graph, task_of(0, HALF))
    ids = graph.filter_sets["0"]
    learner.redundant_S[ids[:2]] = True
    parts = [model.get_parameter(name) for name in ("0.weight", "1.weight", "1.bias")]

    def vectors() -> torch.Tensor:
        return torch.cat([part.detach().reshape(4, -1) for part in parts], 1).clone()

    x = vectors()
    zero_gradients(model)
    for part in parts:
        part.grad = torch.cat([0.1 * part.detach()[:1], 20 * part.detach()[1:2], 0.1 * part.detach()[2:]])
    gradient = torch.cat([part.grad.reshape(4, -1) for part in parts if part.grad is not None], 1)
    step = one_step(model, 50, 100)
    learner.before_step(step)
    step.optimizer.step()
    learner.after_step(step)
    expected = x - 0.1 * gradient
    expected[:2] -= 0.1 * 0.5 * x[:2] / x[:2].norm(dim=1, keepdim=True)
    expected[:2] *= ((expected[:2] * x[:2]).sum(1) >= 0)[:, None]
    assert not bool(expected[1].any())
    assert bool(expected[0].any())
    torch.testing.assert_close(vectors(), expected)


def test_hspg_raises_the_penalty_only_where_a_group_would_grow() -> None:
    model, graph = two_layers(torch.ones(2, 2), torch.ones(2, 2))
    learner = HSPG(lam=0.1).learner(model, graph, task_of(0, HALF))
    groups = ZeroInvariantGroups(model, graph)
    values = [value.clone() for value in groups.values()]
    learner.before, norm_S = values, groups.dot(values, values).sqrt()
    shrinking = learner.weights(norm_S, [0.01 * value for value in values], 0.1)
    growing = learner.weights(norm_S, [-0.01 * value for value in values], 0.1)
    torch.testing.assert_close(shrinking, torch.full_like(norm_S, 0.1))
    torch.testing.assert_close(growing, 0.1 * norm_S)  # what just stops them


# ---- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ResRep(full_share=0.0), "start_share < full_share"),
        (lambda: HSPG(pick_share=0.5, project_share=0.1), "pick_share <= project_share"),
        (lambda: GroupFisher(interval=0), "interval must be at least 1"),
        (lambda: EagleEye(max_rate=0.0), "max_rate must be above 0"),
        (lambda: OneByN(n=0), "n must be at least 1"),
        (lambda: TMIGKP(ratio=0.0), "0 < ratio <= 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=message):
        make()


# ---- killed and continued --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["resrep", "group_fisher", "hspg", "tmi_gkp"])
def test_learning_goes_on_with_the_same_bits(method: str) -> None:
    continued(method)
