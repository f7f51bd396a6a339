"""Conversion of a network and its plan to a packed network, and back.

The masked network is the full one with weights of 0 outside of the settled plan. The batch norm of a removed filter has scale and
shift 0. `pack` builds a network whose tensors hold live channels only; masked and packed network compute the same function.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from suite.graph import Graph
from suite.pack.builder import Builder, Slot
from suite.pack.modules import PackedConv
from suite.plan import PruningPlan


class PackedNetwork(nn.Module):
    """An ordinary module: images [N, C, H, W] -> logits [N, classes].

    plan   the settled plan of this network
    slots  for each tensor of this network its entries in the full network
    input_shape  (C, H, W) of the images that the network was traced with
    """

    def __init__(
        self, body: fx.GraphModule, plan: PruningPlan, slots: list[Slot], input_shape: tuple[int, int, int]
    ) -> None:
        super().__init__()
        self.body = body
        self.plan = plan
        self.slots = slots
        self.input_shape = input_shape

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images)

    def convs(self) -> Iterator[PackedConv]:
        """Return the packed convolutions in the order of execution."""
        return (module for module in self.body.modules() if isinstance(module, PackedConv))

    def split(self) -> None:
        """Train wide layers by one convolution a filter group.

        The choice follows from the shapes alone, so a resumed training makes it again.
        """
        for conv in self.convs():
            conv.split()


def pack(model: nn.Module, graph: Graph, plan: PruningPlan) -> PackedNetwork:
    """Build the network of live channels with the weights of `model`.

    An empty plan gives the dense network. Raises ValueError if the plan does not fit the network.
    """
    builder = Builder(model, graph, plan)
    device = next(model.parameters()).device
    packed = PackedNetwork(builder.build(), builder.plan.canonical(), builder.slots, graph.input_shape)
    if device.type != "cpu":
        packed.to(device)
    return packed.train(model.training)


@torch.no_grad()
def check_dense(model: nn.Module, graph: Graph) -> None:
    """Compare the packed network without any cut with the network itself.

    Both are compared in float64: in eval mode on one image and on three, in train mode on three. If the network returns further
    tensors in train mode, the first ones are compared. The state of random generators does not change.
    Raises ValueError with the mode, the largest difference and the probable reason, or with a tensor that is not finite.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if not torch.isfinite(tensor).all():
            raise ValueError(
                f"{name} of {type(model).__name__} has values that are not finite (NaN or infinite): train it again"
            )
    own = copy.deepcopy(model).cpu().double()
    images = torch.randn(3, *graph.input_shape, generator=torch.Generator().manual_seed(0)).double()
    with torch.random.fork_rng(devices=[]):
        dense = pack(own, graph, PruningPlan({}))
        for training, count in ((False, 1), (False, 3), (True, 3)):
            try:
                error = _difference(own.train(training), dense.train(training), images[:count])
            except RuntimeError as reason:
                text = str(reason).splitlines()[0]
                raise ValueError(
                    f"{type(model).__name__} does not run on float64 images, as checks need: {text}"
                ) from reason
            if not error <= 1e-6:
                raise ValueError(
                    f"{type(model).__name__} in {'train' if training else 'eval'} mode is not what its trace computes (largest "
                    f"difference {error:.2g} of the largest output): {_reason(own, graph)}"
                )


def _difference(own: nn.Module, other: nn.Module, images: Tensor) -> float:
    """Return the largest difference of outputs, as a share of the largest output.

    Both networks draw equal random numbers.
    """
    outputs = []
    for network in (own, other):
        torch.manual_seed(0)
        outputs.append(tree_leaves(network(images)))
    expected, got = outputs[0][: len(outputs[1])], outputs[1]
    if [tensor.shape for tensor in expected] != [tensor.shape for tensor in got]:
        return math.inf
    scale = max(1.0, *(float(tensor.abs().max()) for tensor in expected))
    return max(float((a - b).abs().max()) for a, b in zip(got, expected, strict=True)) / scale


def _reason(model: nn.Module, graph: Graph) -> str:
    for name, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            return f"{name or 'the network'} has a forward hook, which packing removes; write it in the forward method"
    if graph.trace.mode_reads:
        return (
            f"control flow reads self.training in {graph.trace.mode_reads[0]}; write it with nn.Dropout or without it"
        )
    return "tensors that change in place, random numbers or control flow by the batch; write such operators as modules"


@torch.no_grad()
def load_full(packed: PackedNetwork, state: Mapping[str, Tensor]) -> None:
    """Copy the tensors of a full network's state to the packed network, in place."""
    own = packed.body.state_dict()
    for slot in packed.slots:
        own[slot.packed].copy_(slot.read(state[slot.full]).view_as(own[slot.packed]))


@torch.no_grad()
def unpack(packed: PackedNetwork, model: nn.Module) -> None:
    """Copy the packed weights to `model`, which becomes the masked network, in place."""
    own = packed.body.state_dict()
    state = model.state_dict()
    for name, tensor in state.items():
        if isinstance(tensor, Tensor) and tensor.is_floating_point():  # an extra state is any object
            tensor.fill_(1.0 if name.endswith("running_var") else 0.0)
    for slot in packed.slots:
        slot.write(state[slot.full], own[slot.packed].to(state[slot.full].device))


def masks(packed: PackedNetwork, model: nn.Module) -> dict[str, Tensor]:
    """Return parameter name -> bool mask of the entries that the plan keeps."""
    result = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in model.named_parameters()}
    for slot in packed.slots:
        if slot.full in result:
            slot.write(result[slot.full], True)
    return result
