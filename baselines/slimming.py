"""Network slimming: an L1 penalty on channel scales while training from scratch.

Shapes: O filters, I input channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from baselines._ranks import filter_and_channel_planner
from suite.contract import Learner, OptOut, Planner, Pruner, Recipe, State, Step, Task
from suite.graph import Graph
from suite.select import sets_of_scope

INITIAL_SCALE = 0.5
"""Of batch norms and readers' scales, as the authors set it."""


class _ScalePenalty(Learner):
    """Adds the subgradient of lam * sum |scale| and takes weight decay off the scales.

    A filter of scope "inner" has the scale of its batch norm. A layer that reads a residual stream has a scale for each
    channel that it reads, which belongs to the learner: a forward hook applies it, and `finish` folds it into the weights.
    """

    def __init__(self, lam: float, model: nn.Module, graph: Graph) -> None:
        self.lam = lam
        norms = {name: model.get_parameter(f"{bn}.weight") for name, bn in graph.batch_norms("slimming").items()}
        for scale in norms.values():
            nn.init.constant_(scale, INITIAL_SCALE)
        inner, readers = selectors(graph)
        self.free = [scale for name, scale in norms.items() if name not in inner]
        """Scales of batch norms that select nothing."""
        self.scales = [norms[name] for name in inner]
        device = next(model.parameters()).device
        self.read = {
            name: torch.full((graph.convs[name].channels,), INITIAL_SCALE, device=device, requires_grad=True)
            for name in readers
        }
        self.momentum = {name: torch.zeros_like(scale) for name, scale in self.read.items()}
        self.handles = [
            model.get_submodule(name).register_forward_pre_hook(_scaled(scale)) for name, scale in self.read.items()
        ]

    @torch.no_grad()
    def before_step(self, step: Step) -> None:
        """Add the penalty's subgradient to the loss's gradient."""
        decay = {id(p): group["weight_decay"] for group in step.optimizer.param_groups for p in group["params"]}
        for lam, scales in ((self.lam, self.scales), (0.0, self.free)):
            for scale in scales:
                if scale.grad is not None:
                    scale.grad.add_(scale.sign(), alpha=lam).sub_(scale, alpha=decay[id(scale)])

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        """Move the readers' scales by the same SGD, without decay."""
        gradients = {name: step.unscaled(scale.grad) for name, scale in self.read.items() if scale.grad is not None}
        step.average(list(gradients.values()))
        for name, gradient in gradients.items():
            scale = self.read[name]
            velocity = self.momentum[name].mul_(step.optimizer.param_groups[0]["momentum"])
            velocity.add_(gradient + self.lam * scale.sign())
            scale.sub_(velocity * step.lr)
            scale.grad = None

    @torch.no_grad()
    def metrics(self) -> dict[str, float]:
        """Return the penalty and the share of selecting scales below 0.01."""
        flat = torch.cat([scale.abs() for scale in (*self.scales, *self.read.values())])
        return {"penalty": float(flat.sum()) * self.lam, "scales_below_0.01": float((flat < 0.01).float().mean())}

    @torch.no_grad()
    def finish(self, model: nn.Module) -> None:
        """Fold the readers' scales into their weights; the network computes the same function."""
        for handle in self.handles:
            handle.remove()
        for name, scale_I in self.read.items():
            model.get_parameter(f"{name}.weight").mul_(scale_I[:, None, None])

    def state_dict(self) -> State:
        """Return the readers' scales and their momenta [I]."""
        parts = {"read": self.read, "momentum": self.momentum}
        return {key: {name: tensor.detach().clone() for name, tensor in part.items()} for key, part in parts.items()}

    @torch.no_grad()
    def load_state_dict(self, state: State) -> None:
        """Restore the output of `state_dict` in place, since the hooks hold the scales."""
        for key in ("read", "momentum"):
            for name, tensor in getattr(self, key).items():
                tensor.copy_(state[key][name])


def _scaled(scale_I: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    """Return a forward hook that multiplies the channels of a layer's input."""
    return lambda module, inputs: (inputs[0] * scale_I.to(inputs[0].dtype)[:, None, None],)


def selectors(graph: Graph) -> tuple[list[str], list[str]]:
    """Return the layers that select filters, and the layers that select channels.

    The first are those of scope "inner"; the second read a residual stream.
    Shortcut convolutions read the whole stream, as in the authors' networks.
    """
    inner = list(sets_of_scope(graph, "inner"))
    own = torch.cat([graph.filter_sets[name] for name in inner])
    readers = [
        name
        for name, conv in graph.convs.items()
        if conv.role not in ("stem", "shortcut") and not bool(torch.isin(graph.input_sets[name], own).any())
    ]
    return inner, readers


@dataclass(frozen=True, kw_only=True)
class Slimming(Pruner):
    """Removes channels of smallest scales, after penalised training from scratch.

    lam      weight of the penalty on the scales
    ranking  "raw": one order of all scales; "global": after division by the layer's mean
    """

    granularity = "channel"
    source = (
        "Liu et al., Learning Efficient Convolutional Networks through Network Slimming, ICCV 2017, equation 1; in residual "
        "networks each reader of a stream selects its channels by its own scales, and the stream keeps its width"
    )
    deviations = (
        "the authors' residual networks are pre-activation, so the scales of a reader are its batch norm's; here a reader of a "
        "residual stream gets scales of its own on its input, trained as the others and folded into its weights; scales have the "
        "penalty of equation 1 only, where the authors' main.py also decays them by 1e-4; batches are those of the grid, not of "
        "64, and epochs those of the base network, not 160"
    )
    learns = True
    penalty: ClassVar = ("lam", 782 * (80 * 0.1 + 40 * 0.01 + 40 * 0.001))
    start: ClassVar[Literal["base", "init"]] = "init"
    version = 3
    training: ClassVar[Mapping[str, Any]] = {"lr": 0.1, "weight_decay": 1e-4, "shape": "steps"}
    search: ClassVar = {"lam": (1e-5, 1e-4, 3e-4, 1e-3), "ranking": ("raw", "global")}
    recipes: ClassVar[Mapping[tuple[str, str], Recipe | OptOut]] = {
        ("cifar10", "vgg16"): Recipe(settings={"lam": 1e-4}, source="the authors' README: VGG-19 on CIFAR-10"),
        ("cifar10", "*"): Recipe(
            settings={"lam": 1e-5}, source="the authors' README: ResNet-164 with pre-activation on CIFAR-10"
        ),
    }
    lowest: ClassVar = {"lam": 0}

    lam: float = 1e-4
    ranking: Literal["raw", "global"] = "raw"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ranking not in ("raw", "global"):
            raise ValueError(f"slimming's ranking {self.ranking!r} is unknown; choose raw, global")

    def learner(self, model: nn.Module, graph: Graph, task: Task) -> Learner:
        """Return the penalty on all scales; set them to 0.5."""
        return _ScalePenalty(self.lam, model, graph)

    def planner(self, model: nn.Module, graph: Graph, state: State, task: Task) -> Planner:
        """Remove filters by the scales of batch norms, readers' channels by scales of their own."""
        norms = graph.batch_norms("slimming")
        scales = {name: model.get_parameter(f"{bn}.weight").abs() for name, bn in norms.items()}
        channels = {name: scale_I.abs() for name, scale_I in state["read"].items()}
        return filter_and_channel_planner(
            graph, scales, channels, normalise=self.ranking == "global", scope="inner"
        )  # fmt: skip
