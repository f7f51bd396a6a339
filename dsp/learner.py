"""Learning of filter groups with the weights (Park et al. 2023, section 3).

Shapes: L layers of equal shape, G filter groups, O filters, I input channels, K kernel positions.

Layers of equal shape are stacked, so that a step loops over shapes and never over layers or groups. Nothing in a step
waits for the device, so that a training loop can capture it in a CUDA graph: the learning rate and the index of the step
may then be tensors on the device, and the graph has to register `GroupLearner.generator`.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsp import groups as maths
from dsp.dose import doses_per_rate
from dsp.groups import GroupPenalty, PenaltyScale, SecondOrder
from dsp.layers import check_logits, prunable_convs
from suite.contract import Learner, State, Step
from suite.graph import Conv, Graph

Noise = Callable[[], Mapping[str, Tensor]]
"""Layer name -> Gumbel noise [G, O] for the next step."""

_ADAM_STATE = ("step", "exp_avg", "exp_avg_sq")

SPARSE = 0.01
"""Norm of a kernel w[o, i] as a share of its layer's mean norm before learning, below which the kernel is sparse."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of group learning; the fields are those of `dsp.DSP`."""

    groups: int
    lam: float
    temperature: float
    penalty_scale: PenaltyScale
    second_order: SecondOrder
    logit_lr: float = 1e-3


@dataclass(frozen=True)
class _Stack:
    """Layers of equal shape; `logits_LGO` is a view of the one vector that Adam updates."""

    names: tuple[str, ...]
    kernel_size: tuple[int, ...]
    scale_L11: Tensor
    logits_LGO: Tensor

    def weights(self, model: nn.Module) -> list[Tensor]:
        return [model.get_parameter(f"{name}.weight") for name in self.names]

    def stacked(self, layers: Mapping[str, Tensor]) -> Tensor:
        """Return the stack's entries of `layers` as one tensor [L, O, I, K]."""
        return torch.stack([layers[f"{name}.weight"] for name in self.names]).flatten(3)

    def unstacked(self, w_LOIK: Tensor) -> tuple[Tensor, ...]:
        """Return the layers of `w_LOIK`, shaped like the weights."""
        return w_LOIK.unflatten(-1, self.kernel_size).unbind()


class GroupLearner(Learner):
    """Learns filter groups of prunable convolutions and applies the group penalty to weights.

    fixed_groups  layer name -> int64 [O]: groups that are given and not learned; None learns them, from equal logits
    noise         where the Gumbel noise comes from; None draws it from the learner's own generator, seeded by `seed`
    Raises ValueError when the network has no prunable convolution or a layer has fewer filters than there are groups.
    """

    capturable = True

    def __init__(
        self,
        model: nn.Module,
        graph: Graph,
        settings: Settings,
        *,
        seed: int,
        fixed_groups: Mapping[str, Tensor] | None = None,
        noise: Noise | None = None,
    ) -> None:
        convs = prunable_convs(graph, settings.groups)
        weight = model.get_parameter(f"{convs[0].name}.weight")
        self.settings = settings
        self.learning = fixed_groups is None and settings.groups > 1  # a single group has nothing to learn
        self.generator = torch.Generator(weight.device).manual_seed(seed)
        self.generators = (self.generator,)
        self._noise = noise
        self._epsilon = maths.RELEASED_EPSILON if settings.second_order == "released" else 0.0
        count = settings.groups * sum(conv.filters for conv in convs)
        self._logits = torch.zeros(count, device=weight.device, dtype=weight.dtype, requires_grad=True)
        self._adam = torch.optim.Adam([self._logits], lr=settings.logit_lr, eps=1e-12, capturable=weight.is_cuda)
        self._penalty = torch.zeros((), device=weight.device, dtype=weight.dtype)
        self._rate_sum = torch.zeros((), device=weight.device, dtype=torch.float64)
        per_rate = doses_per_rate(model, graph, settings.groups, settings.penalty_scale)
        self._lam = settings.lam
        self._dose_per_rate = settings.lam * median(per_rate.values())
        self._stacks = self._stack(model, graph, convs)
        self._model = model
        self._sparse_below = [SPARSE * norm_LOI.mean((1, 2)) for norm_LOI in self._kernel_norms()]
        self._layers = {
            name: logits_GO
            for stack in self._stacks
            for name, logits_GO in zip(stack.names, stack.logits_LGO, strict=True)
        }
        if fixed_groups is not None:
            for name, logits_GO in self._layers.items():
                logits_GO.copy_(F.one_hot(fixed_groups[name], settings.groups).T)
        self._last_epoch = self._assignments()

    def _stack(self, model: nn.Module, graph: Graph, convs: list[Conv]) -> list[_Stack]:
        shapes: dict[torch.Size, list[Conv]] = {}
        for conv in convs:
            shapes.setdefault(model.get_parameter(f"{conv.name}.weight").shape, []).append(conv)
        counts = [self.settings.groups * len(members) * shape[0] for shape, members in shapes.items()]
        return [
            _Stack(
                names=tuple(conv.name for conv in members),
                kernel_size=tuple(shape[2:]),
                scale_L11=logits.new_tensor([self._scale(conv, graph) for conv in members])[:, None, None],
                logits_LGO=logits.view(len(members), self.settings.groups, shape[0]),
            )
            for (shape, members), logits in zip(shapes.items(), self._logits.detach().split(counts), strict=True)
        ]

    def _scale(self, conv: Conv, graph: Graph) -> float:
        activations = self.settings.penalty_scale == "activations"
        input_size = maths.input_size(conv, graph.input_shape) if activations else 1.0
        return maths.penalty_scale(conv.filters, conv.kernel, self.settings.groups, input_size)

    # ---- one step ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        """Update logits by the relaxed groups, then weights by the penalty of hard groups.

        The penalty grows linearly over the whole stage.
        """
        plain_rate = step.lr * (step.index + 1) / step.total
        self._rate_sum += plain_rate
        rate = self._lam * plain_rate
        weights = [stack.weights(step.model) for stack in self._stacks]
        w = [torch.stack(layers).flatten(3) for layers in weights]
        energies = [w_LOIK.square().sum(-1) for w_LOIK in w]
        if self.learning:
            self._learn(step, rate, weights, w, energies)
        moved: list[Tensor] = []
        self._penalty.zero_()
        for stack, w_LOIK, energy_LOI in zip(self._stacks, w, energies, strict=True):
            penalty = GroupPenalty(maths.hard_groups(stack.logits_LGO), energy_LOI, self._epsilon)
            moved += stack.unstacked(_penalty_step(w_LOIK, penalty, stack.scale_L11 * rate))
            self._penalty += (penalty.value_L() * stack.scale_L11[:, 0, 0]).sum()
        for layer, value in zip(itertools.chain(*weights), moved, strict=True):
            layer.copy_(value)

    def _learn(
        self, step: Step, rate: float | Tensor, weights: list[list[Tensor]], w: list[Tensor], energies: list[Tensor]
    ) -> None:
        """Apply one Adam step to the logits, by the penalty's gradient after a trial step."""
        temperature, mode = self.settings.temperature, self.settings.second_order
        noise = self._draw()
        at_weights = [
            GroupPenalty(maths.relaxed_groups(stack.logits_LGO, noise_LGO, temperature), energy_LOI, self._epsilon)
            for stack, noise_LGO, energy_LOI in zip(self._stacks, noise, energies, strict=True)
        ]
        if mode == "none":
            gradients = [penalty.first_order_LGO() for penalty in at_weights]
        else:
            scales = [stack.scale_L11 * rate for stack in self._stacks]
            w1 = [_penalty_step(*layers) for layers in zip(w, at_weights, scales, strict=True)]
            w2 = self._trial_step(step, weights, w1)
            gradients = []
            for start, before, after, penalty, scale in zip(w, w1, w2, at_weights, scales, strict=True):
                at_trial = GroupPenalty(penalty.p_LGO, after.square().sum(-1), self._epsilon)
                change_LOIK = _penalty_step(after, at_trial, scale) - before
                second_LGO = penalty.second_order_LGO((start * change_LOIK).sum(-1), mode)
                gradients.append(at_trial.first_order_LGO() + second_LGO)
        moves = [
            maths.logit_gradient(gradient_LGO, penalty.p_LGO, temperature).flatten()
            for gradient_LGO, penalty in zip(gradients, at_weights, strict=True)
        ]
        self._logits.grad = torch.cat(moves)
        self._adam.step()

    def _trial_step(self, step: Step, weights: list[list[Tensor]], w1: list[Tensor]) -> list[Tensor]:
        """Return weights [L, O, I, K] after another SGD step on the batch.

        Only these weights matter to the groups, so no other gradient is computed, and neither the model, its BN
        statistics nor the optimizer's momentum is touched: there is nothing to restore.
        """
        trial = {
            f"{name}.weight": layer.detach().requires_grad_()
            for stack, w1_LOIK in zip(self._stacks, w1, strict=True)
            for name, layer in zip(stack.names, stack.unstacked(w1_LOIK), strict=True)
        }
        with _frozen_statistics(step.model):
            gradients = step.gradients(trial)
        return [
            _sgd_step(w1_LOIK, stack.stacked(gradients), layers, step.optimizer, step.lr)
            for stack, w1_LOIK, layers in zip(self._stacks, w1, weights, strict=True)
        ]

    def _draw(self) -> list[Tensor]:
        """Gumbel noise [L, G, O] for each stack."""
        if self._noise is not None:
            noise_by_layer = self._noise()
            return [torch.stack([noise_by_layer[name] for name in stack.names]) for stack in self._stacks]
        noise = torch.empty_like(self._logits).exponential_(generator=self.generator)
        noise = noise.clamp_(min=torch.finfo(noise.dtype).tiny).log_().neg_()
        parts = noise.split([stack.logits_LGO.numel() for stack in self._stacks])
        return [part.view_as(stack.logits_LGO) for part, stack in zip(parts, self._stacks, strict=True)]

    # ---- what is logged and kept -------------------------------------------------------------------------------------

    def metrics(self) -> dict[str, float]:
        """Numbers of the epoch that ends; of groups that are not learned, the penalty alone.

        group_entropy_nats   entropy of softmax(logits / temperature), mean over filters
        changed_share        share of filters whose group is another than at the last call
        penalty              sum over layers of c R with hard groups, at the last step
        dose                 of the penalty up to here (`dsp.dose`), median over layers
        sparse_share         share of prunable kernels w[o, i] whose norm is below `SPARSE`
        """
        penalty = {"penalty": float(self._penalty), "dose": self.dose, "sparse_share": self._sparse_share()}
        if not self.learning:
            return penalty
        now = self._assignments()
        changed = sum(int((now[name] != before).sum()) for name, before in self._last_epoch.items())
        self._last_epoch = now
        return {
            "group_entropy_nats": self._entropy(),
            "changed_share": changed / sum(len(groups) for groups in now.values()),
            **penalty,
        }

    def _entropy(self) -> float:
        """Return the mean entropy of softmax(logits / temperature) over filters; ln G at first."""
        entropies = [
            torch.special.entr(torch.softmax(stack.logits_LGO / self.settings.temperature, -2)).sum(-2).flatten()
            for stack in self._stacks
        ]
        return float(torch.cat(entropies).mean())

    @torch.no_grad()
    def _kernel_norms(self) -> list[Tensor]:
        """Return the norm of each kernel w[o, i] [L, O, I] for each stack."""
        return [torch.stack(stack.weights(self._model)).flatten(3).norm(dim=-1) for stack in self._stacks]

    def _sparse_share(self) -> float:
        """Return the share of kernels that the penalty has made sparse."""
        sparse = [
            (norm_LOI < below_L[:, None, None]).flatten()
            for norm_LOI, below_L in zip(self._kernel_norms(), self._sparse_below, strict=True)
        ]
        return float(torch.cat(sparse).double().mean())

    @property
    def dose(self) -> float:
        """Dose of the penalty up to the last step, median over layers."""
        return self._dose_per_rate * float(self._rate_sum)

    def _assignments(self) -> dict[str, Tensor]:
        return {name: logits_GO.argmax(0).cpu() for name, logits_GO in self._layers.items()}

    def state_dict(self) -> State:
        """Return logits [G, O] by layer, Adam's and the generator's state, groups and dose."""
        adam = self._adam.state[self._logits]
        return {
            "logits": {name: logits_GO.clone() for name, logits_GO in self._layers.items()},
            "adam": {key: adam[key].clone() for key in _ADAM_STATE if key in adam},
            "noise": {self._logits.device.type: self.generator.get_state()},
            "last_epoch": dict(self._last_epoch),
            "lam": self._lam,
            "penalty": float(self._penalty),
            "rate_sum": float(self._rate_sum),
            "dose_per_rate": self._dose_per_rate,
            "group_entropy_nats": self._entropy(),
            "sparse_below": [below_L.clone() for below_L in self._sparse_below],
            "sparse_share": self._sparse_share(),
        }

    def load_state_dict(self, state: State) -> None:
        """Restore the output of `state_dict`.

        Raises ValueError when it is of another network or number of groups, or was saved on another kind of device.
        """
        logits = check_logits(state, {name: tuple(logits_GO.shape) for name, logits_GO in self._layers.items()})
        device = self._logits.device
        if device.type not in state["noise"]:
            raise ValueError(f"group learning that was saved on {', '.join(state['noise'])} cannot go on on {device}")
        for name, logits_GO in self._layers.items():
            logits_GO.copy_(logits[name])
        # Adam takes an empty state for a fresh start; its step counter stays on the CPU unless it is capturable
        self._adam.state[self._logits] = {key: value.to(device, copy=True) for key, value in state["adam"].items()}
        self.generator.set_state(state["noise"][device.type].cpu())
        self._last_epoch = {name: groups.cpu() for name, groups in state["last_epoch"].items()}
        self._penalty.fill_(state["penalty"])
        self._lam = state.get("lam", self._lam)
        self._rate_sum.fill_(state.get("rate_sum", 0.0))
        self._dose_per_rate = state.get("dose_per_rate", self._dose_per_rate)
        self._sparse_below = [below_L.to(device) for below_L in state.get("sparse_below", self._sparse_below)]


@contextlib.contextmanager
def _frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Batch norm still normalises by the batch, but leaves its running statistics as they are."""
    tracking = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d) and m.track_running_stats]
    for module in tracking:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module in tracking:
            module.track_running_stats = True


def _penalty_step(w_LOIK: Tensor, penalty: GroupPenalty, rate_L11: Tensor) -> Tensor:
    """W - rate dR/dW."""
    return w_LOIK * (1 - rate_L11 * penalty.weight_factor_LOI())[..., None]


def _sgd_step(
    w_LOIK: Tensor, gradient_LOIK: Tensor, layers: list[Tensor], optimizer: torch.optim.SGD, lr: float | Tensor
) -> Tensor:
    """Return `w_LOIK` after an SGD step with the options and momentum of `layers`; both stay."""
    options = _options(optimizer, layers[0])
    move = -gradient_LOIK if options["maximize"] else gradient_LOIK
    move = move.add(w_LOIK, alpha=options["weight_decay"])
    if options["momentum"]:
        velocity = torch.stack([optimizer.state[layer]["momentum_buffer"] for layer in layers]).flatten(3)
        velocity.mul_(options["momentum"]).add_(move, alpha=1 - options["dampening"])
        move = move.add(velocity, alpha=options["momentum"]) if options["nesterov"] else velocity
    return w_LOIK - lr * move


def _options(optimizer: torch.optim.SGD, parameter: Tensor) -> dict[str, Any]:
    """Return the options of the optimizer's group that holds `parameter`."""
    return next(group for group in optimizer.param_groups if any(parameter is other for other in group["params"]))
