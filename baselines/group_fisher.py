"""Group Fisher: coupled channels of least Fisher information per saved MAC go while fine-tuning.

Shapes: B images of one part of a batch, I input channels, S filter sets (coupled channels share one).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from baselines._behind import LayersBehind
from baselines._macs import MaskedMacs
from suite.contract import Criterion, Learner, Ranking, State, Step, Task
from suite.graph import Graph


class Fisher:
    """Sums, over images, of the squared gradient of the loss by each set's mask [S].

    A mask multiplies the channels that convolutions and linear layers read; a set's masks in all its readers are one. Hooks
    on the readers collect while the network trains. Each forward pass reads a part of the batch and has its own gradients [B, S].
    """

    def __init__(self, model: nn.Module, graph: Graph) -> None:
        device = next(model.parameters()).device
        self.total_S = torch.zeros(graph.set_count, dtype=torch.float64, device=device)
        self.parts_BS: list[Tensor] = []
        model.register_forward_pre_hook(self._begin)
        for name, ids in graph.input_sets.items():
            if bool((ids >= 0).any()):
                model.get_submodule(name).register_forward_pre_hook(self._hook(ids.to(device)))

    def _begin(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if module.training and torch.is_grad_enabled():
            self.parts_BS.append(self.total_S.new_zeros(len(inputs[0]), len(self.total_S)))

    def _hook(self, ids: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...] | None]:
        inside, sets = ids >= 0, ids[ids >= 0]

        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            if not (module.training and torch.is_grad_enabled()):
                return None
            read = inputs[0].view_as(inputs[0])  # its gradient is that of this reader alone
            if not read.requires_grad:
                return None
            # the hook holds no reference to the tensor that holds it: such a cycle would never be freed
            part_BS, value, channels = self.parts_BS[-1], read.detach(), -1 if isinstance(module, nn.Linear) else 1

            def collect(gradient: Tensor) -> None:
                slope_BI = (value * gradient).movedim(channels, 1)
                slope_BI = slope_BI.flatten(2).sum(2) if slope_BI.dim() > 2 else slope_BI
                part_BS.index_add_(1, sets, slope_BI[:, inside].double())

            read.register_hook(collect)
            return (read,)

        return hook

    def take(self, step: Step) -> None:
        """Add the batch's squared gradients.

        Gradients of a mean over the batch are scaled back to gradients of single images.
        """
        if self.parts_BS:
            images = sum(map(len, self.parts_BS))
            squares_S = torch.cat([step.unscaled(part_BS) * images for part_BS in self.parts_BS]).square().sum(0)
            step.average([squares_S])
            self.total_S += squares_S
            self.forget()

    def forget(self) -> None:
        """Drop the batch's gradients."""
        self.parts_BS = []


class _Gradual(Learner):
    """Removes sets while the network trains, and keeps those that are gone at zero."""

    def __init__(self, settings: GroupFisher, model: nn.Module, graph: Graph, task: Task) -> None:
        assert task.budget is not None
        self.settings, self.budget = settings, task.budget
        self.fisher = Fisher(model, graph)
        device = self.fisher.total_S.device
        self.macs = MaskedMacs(model, graph, task.budget, device)
        self.mask_S = torch.ones(graph.set_count, device=device)
        self.order_S = torch.zeros(graph.set_count, dtype=torch.int64, device=device)
        """The place of each removed set in the order of removal, from 1; 0 for those that are left."""
        self.ids = {name: ids.to(device) for name, ids in graph.filter_sets.items()}
        modules = {name: (name, conv.bn) if conv.bn else (name,) for name, conv in graph.convs.items()}
        self.parts = [
            (parameter, self.ids[name])
            for name, members in modules.items()
            for member in members
            for parameter in model.get_submodule(member).parameters(recurse=False)
        ]
        self.behind = LayersBehind(model, graph)

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        """Remove sets every `interval` steps until the due cut is met; zero removed sets."""
        self.fisher.take(step)
        index = int(step.index) + 1
        if index % self.settings.interval == 0 or index == step.total:
            due = self.budget.share * min(1.0, index / (self.settings.prune_share * step.total))
            while float(self.macs(self.mask_S)[0]) > 1 - due and self._remove_one():
                pass
            if index < step.total:
                self.fisher.total_S.zero_()
        for parameter, ids in self.parts:
            parameter.mul_(self.mask_S[ids].view(-1, *[1] * (parameter.dim() - 1)))
        self.behind.mask(self.mask_S)

    def skip_step(self) -> None:
        """Forget the batch's gradients."""
        self.fisher.forget()

    def _remove_one(self) -> bool:
        """Remove the set of least Fisher information per saved MAC; False if none may go."""
        gain_S = fisher_per_mac(self.fisher.total_S, self.macs(self.mask_S)[1])
        gain_S = gain_S.masked_fill(self.mask_S == 0, torch.inf)
        for ids in self.ids.values():  # the last set of a layer stays
            live = ids[self.mask_S[ids] > 0].unique()
            if len(live) == 1:
                gain_S[live] = torch.inf
        best = int(gain_S.argmin())
        if not bool(gain_S[best].isfinite()):
            return False
        self.mask_S[best] = 0
        self.order_S[best] = self.order_S.max() + 1
        return True

    def metrics(self) -> dict[str, float]:
        """Return the share of MACs that is left and of sets that are gone."""
        return {"macs_left": float(self.macs(self.mask_S)[0]), "removed_share": float(1 - self.mask_S.mean())}

    def state_dict(self) -> State:
        """Return order of removal, summed Fisher information and slope of the MACs [S]."""
        return {
            "order_S": self.order_S.clone(),
            "fisher_S": self.fisher.total_S.clone(),
            "slope_S": self.macs(self.mask_S)[1].clone(),
        }

    def load_state_dict(self, state: State) -> None:
        """Restore what `state_dict` returned."""
        self.order_S.copy_(state["order_S"])
        self.fisher.total_S.copy_(state["fisher_S"])
        self.mask_S.copy_(self.order_S == 0)


def fisher_per_mac(fisher_S: Tensor, slope_S: Tensor) -> Tensor:
    """Return each set's Fisher information over its saved share of MACs [S]."""
    return fisher_S / slope_S.double().clamp(min=torch.finfo(torch.float32).tiny)


@dataclass(frozen=True, kw_only=True)
class GroupFisher(Criterion):
    """Order in which sets went while fine-tuning; those left follow by Fisher information per MAC.

    interval     steps between two removals, over which the Fisher information is summed
    prune_share  share of the stage in which the budget falls due, linearly
    """

    scopes = ("coupled",)
    granularity = "filter"
    source = (
        "Liu et al., Group Fisher Pruning for Practical Network Compression, ICML 2021, equations 4 to 8; the authors' "
        'fisher_pruning.py with delta = "flops" and interval = 10'
    )
    deviations = (
        "as many sets as are due go every 10 steps, instead of one, so that schedules of any length meet the budget; the last "
        "set of each layer stays"
    )
    learns = True
    needs_budget = True
    lowest: ClassVar[Mapping[str, float]] = {"interval": 1}
    search: ClassVar[Mapping[str, tuple[Any, ...]]] = {"prune_share": (0.25, 0.5, 0.75)}

    interval: int = 10
    prune_share: float = 0.5
    ranking: Ranking = "raw"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.prune_share <= 1:
            raise ValueError(f"group_fisher's prune_share must be above 0 and at most 1, got {self.prune_share}")

    def learner(self, model: nn.Module, graph: Graph, task: Task) -> Learner:
        """Return the gradual removal at the task's budget."""
        return _Gradual(self, model, graph, task)

    def score(self, model: nn.Module, graph: Graph, state: State, task: Task) -> Mapping[str, Tensor]:
        """Return layer -> negative place in the order of removal, or Fisher information [O].

        The information is that per saved MAC.
        """
        order_S = state["order_S"].cpu().double()
        gain_S = fisher_per_mac(state["fisher_S"].cpu(), state["slope_S"].cpu())
        score_S = torch.where(order_S > 0, order_S - order_S.max() - 1, gain_S)
        return {name: score_S[ids] for name, ids in graph.filter_sets.items()}
