"""TMI-GKP: equal clusters of filters chosen by the weights' growth; diverse kernels stay.

Shapes: O filters, I input channels, G filter groups, T snapshots.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from baselines.equal_gkp import equal_groups
from suite.contract import Learner, OptOut, Planner, Pruner, Recipe, State, Step, Task
from suite.graph import Graph
from suite.select import channel_planner

NEIGHBOURS = 16
PRUNING_RATE = 0.4375
"""The authors' rate, at which kernels are chosen if no budget is given."""


class _Snapshots(Learner):
    """Keeps absolute weights at the ends of some epochs."""

    def __init__(self, tickets: int, model: nn.Module, graph: Graph) -> None:
        self.tickets = tickets
        self.weights = {name: model.get_parameter(f"{name}.weight") for name, c in graph.convs.items() if c.prunable}
        self.taken: list[dict[str, Tensor]] = [self._absolute()]
        self.share = 0.0

    def _absolute(self) -> dict[str, Tensor]:
        return {name: w.detach().abs().flatten(1).cpu().clone() for name, w in self.weights.items()}

    def after_step(self, step: Step) -> None:
        """Note how much of the stage is done."""
        self.share = float(step.index + 1) / step.total

    def after_epoch(self, model: nn.Module) -> None:
        """Take a snapshot if one is due."""
        if self.share < 1 and self.share * self.tickets >= len(self.taken):
            self.taken.append(self._absolute())

    def metrics(self) -> dict[str, float]:
        """Return the number of snapshots."""
        return {"snapshots": float(len(self.taken))}

    def state_dict(self) -> State:
        """Return the snapshots, and the share of the stage that is done."""
        return {"taken": [dict(each) for each in self.taken], "share": self.share}

    def load_state_dict(self, state: State) -> None:
        """Restore what `state_dict` returned."""
        self.taken, self.share = [dict(each) for each in state["taken"]], state["share"]


@dataclass(frozen=True, kw_only=True)
class TMIGKP(Pruner):
    """Equal filter groups by growth of magnitude; a diverse set of kernels in each.

    groups    filter groups of a layer, at most
    tickets   snapshots of the training, from the initial weights on
    ratio     share of the kept kernels that a removed one is compared with
    balance   weight of the likeness between removed and kept kernels against the unlikeness among the kept
    """

    granularity = "intra_channel"
    source = (
        "Zhong et al., Revisit Kernel Pruning with Lottery Regulated Grouped Convolutions (TMI-GKP), ICLR 2022, section 3; the "
        "authors' utils.py and kernel_group_pruning.py: 8 groups, kernel ratio 0.2, balance 8"
    )
    deviations = (
        "of three clusterings, kernel PCA and spectral are compared, and the authors' same-size DBSCAN is left out; clusters are "
        "made equal by an optimal assignment of filters to k-means centres; the first kernel of a group is chosen at the run's "
        "budget, all others follow greedily; layers lose their n-th channels one after the other; stem and shortcut "
        "convolutions are left; packing keeps filters in place, so no permutation is needed"
    )
    learns = True
    start = "init"
    version = 2
    recipes: ClassVar[Mapping[tuple[str, str], Recipe | OptOut]] = {
        ("imagenet", "*"): OptOut(reason="snapshots of a ResNet-50 take a gigabyte"),
    }
    lowest: ClassVar[Mapping[str, float]] = {"groups": 1, "tickets": 1}
    search: ClassVar[Mapping[str, tuple[Any, ...]]] = {"groups": (2, 4, 8)}

    groups: int = 8
    tickets: int = 8
    ratio: float = 0.2
    balance: float = 8.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.ratio <= 1 or self.balance < 0:
            raise ValueError(f"tmi_gkp needs 0 < ratio <= 1 and balance >= 0, got {self.ratio} and {self.balance}")

    def learner(self, model: nn.Module, graph: Graph, task: Task) -> Learner:
        """Return the snapshots of a training from the initial weights."""
        return _Snapshots(self.tickets, model, graph)

    def planner(self, model: nn.Module, graph: Graph, state: State, task: Task) -> Planner:
        """Return a planner whose knob is the share of channels that each group loses."""
        rate = task.budget.share if task.budget else PRUNING_RATE
        orders, groups = {}, {}
        for name, conv in graph.convs.items():
            if conv.prunable:
                w_OIK = model.get_parameter(f"{name}.weight").detach().flatten(2).cpu().double()
                now = w_OIK.flatten(1).abs()
                growth_TO = torch.stack([(now - taken[name].double()).abs().sum(1) for taken in state["taken"]])
                group_O = groups[name] = self._preferred(w_OIK.flatten(1), growth_TO, task.seed)
                orders[name] = torch.stack(
                    [self._order(w_OIK[group_O == g], rate) for g in range(int(group_O.max()) + 1)]
                )
        return channel_planner(orders, groups)

    def _preferred(self, w_OK: Tensor, growth_TO: Tensor, seed: int) -> Tensor:
        """Return the groups [O] of the clustering that most snapshots prefer.

        Among equals, the clustering with the longest run wins.
        """
        labels = [equal_groups(embed(w_OK), self.groups, seed) for embed in CLUSTERINGS]
        winners = [preferred(labels, growth_O) for growth_O in growth_TO]
        count = Counter(winners)
        return labels[max(count, key=lambda which: (count[which], _longest_run(winners, which), -which))]

    def _order(self, w_OIK: Tensor, rate: float) -> Tensor:
        """Return a group's channels [I] in the order of removal, the reverse of selection."""
        kernels = w_OIK.transpose(0, 1).flatten(1).numpy()
        from scipy.spatial.distance import cdist  # 0.1 s to import

        like_II = 1 - cdist(kernels, kernels)
        kept = min(len(like_II), max(1, int((1 - rate) * (len(like_II) + 1))))
        chains = [_chain(like_II, first) for first in range(len(like_II))]
        best = min(chains, key=lambda chain: _cost(like_II, chain, kept, self.ratio, self.balance))
        return torch.tensor(best[::-1])


def _kernel_pca(w_OK: Tensor) -> Tensor:
    """Return the filters in the components of a kernel, half polynomial, half Gaussian."""
    from sklearn.decomposition import KernelPCA  # takes seconds to import
    from sklearn.metrics.pairwise import rbf_kernel

    w = w_OK.numpy()
    return torch.from_numpy(KernelPCA(kernel="precomputed").fit_transform(0.5 * (w @ w.T) ** 2 + 0.5 * rbf_kernel(w)))


def _spectral(w_OK: Tensor) -> Tensor:
    """Return the spectral embedding of the graph of mutual nearest neighbours, by cosine."""
    from sklearn.manifold import SpectralEmbedding  # takes seconds to import

    near = min(NEIGHBOURS, len(w_OK) - 1)
    if near < 2:
        return w_OK
    embedding = SpectralEmbedding(min(8, near), affinity="precomputed", random_state=0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Graph is not fully connected", UserWarning)  # its parts are embedded apart
        return torch.from_numpy(embedding.fit_transform(mutual_neighbours(w_OK.numpy(), near)))


def mutual_neighbours(w_OK: np.ndarray, near: int) -> np.ndarray:
    """Return [O, O]: 1 if both filters are among each other's nearest by cosine."""
    from scipy.spatial.distance import cdist  # 0.1 s to import

    apart = cdist(w_OK, w_OK, "cosine")
    graph = np.zeros_like(apart)
    np.put_along_axis(graph, np.argsort(apart, axis=1)[:, : near + 1], 1, 1)
    return graph * graph.T


CLUSTERINGS: Sequence[Callable[[Tensor], Tensor]] = (_kernel_pca, _spectral)


def preferred(labels: Sequence[Tensor], growth_O: Tensor) -> int:
    """Return the clustering whose clusters have grown most alike.

    The growths of a clustering's clusters are sorted. Clusterings are ranked by the mean of the steps between neighbours, at
    half weight, and by their variance; the least sum of ranks wins, as in the authors' `rank_cluster_results`.
    """
    means, variances = [], []
    for label_O in labels:
        total_G = torch.zeros(int(label_O.max()) + 1, dtype=growth_O.dtype).index_add_(0, label_O, growth_O)
        steps = -total_G.sort(descending=True).values.diff() if len(total_G) > 1 else torch.zeros(1)
        means.append(float(steps.mean()))
        variances.append(float(steps.var(correction=0)))
    from scipy.stats import rankdata  # half a second that a launch of other methods need not pay

    rank = 0.5 * rankdata(means) + rankdata(variances)
    return int(rank.argmin())


def _longest_run(winners: Sequence[int], which: int) -> int:
    longest = run = 0
    for winner in winners:
        run = run + 1 if winner == which else 0
        longest = max(longest, run)
    return longest


def _chain(like_II: np.ndarray, first: int) -> list[int]:
    """Return all channels from `first` on, each least like the channels before it."""
    chain, cost_I = [first], like_II[first].copy()
    cost_I[first] = np.inf
    while len(chain) < len(like_II):
        chain.append(int(cost_I.argmin()))
        cost_I = cost_I + like_II[chain[-1]]
        cost_I[chain[-1]] = np.inf
    return chain


def _cost(like_II: np.ndarray, chain: list[int], kept: int, ratio: float, balance: float) -> float:
    """Return the likeness among kept channels minus `balance` times that to removed channels."""
    stay, cut = chain[:kept], chain[kept:]
    among = like_II[np.ix_(stay, stay)]
    alike = (among.sum() - np.trace(among)) / 2
    nearest = -np.sort(-like_II[np.ix_(cut, stay)], axis=1)[:, : int(ratio * kept)]
    return float(alike - balance * nearest.sum())
