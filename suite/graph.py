"""Channel graph of a network: readers, tied filters, MACs, live channels of a plan.

Shapes: O filters, I input channels, G filter groups, C channels of one tensor of the network.

The network is traced with torch.fx. An operation without a rule for its channels (`_kind`) raises a ValueError with its name.
"""

from __future__ import annotations

import copy
import math
import operator
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from suite.models._layers import PaddedShortcut
from suite.plan import Budget, ConvPlan, PruningPlan

Kind = Literal["input", "conv", "bn", "shortcut", "linear", "sum", "flatten", "pass", "output"]
Role = Literal["stem", "inner", "closing", "shortcut"]

_PASS_MODULES = (
    nn.ReLU,
    nn.ReLU6,
    nn.Identity,
    nn.Dropout,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
)
_PASS_FUNCTIONS = {torch.relu, nn.functional.relu, nn.functional.max_pool2d}
_PASS_FUNCTIONS |= {nn.functional.avg_pool2d, nn.functional.adaptive_avg_pool2d}
_SUM_FUNCTIONS = {operator.add, operator.iadd, torch.add}


@dataclass(frozen=True, kw_only=True)
class Conv:
    """One convolution of the network.

    role "stem" reads the image; "shortcut" is the single convolution of a residual shortcut; "closing" is the last
    convolution of a residual branch; "inner" is any other.
    """

    name: str
    bn: str | None
    filters: int
    channels: int
    kernel: int
    """Weights of one kernel w[o, i]."""
    positions: int
    """Output pixels of one image."""
    input_elements: int
    """Elements of the input of one image."""
    role: Role

    @property
    def macs_per_kernel(self) -> int:
        """MACs of one kernel w[o, i] on one image."""
        return self.positions * self.kernel

    @property
    def macs(self) -> int:
        """MACs of the whole convolution on one image."""
        return self.macs_per_kernel * self.filters * self.channels

    @property
    def prunable(self) -> bool:
        """Neither stem nor shortcut."""
        return self.role in ("inner", "closing")


@dataclass(frozen=True, kw_only=True)
class Macs:
    """Multiply-accumulates of one image.

    total     of all convolutions and linear layers
    prunable  of the convolutions that are neither the stem nor a shortcut
    """

    total: int
    prunable: int


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(module, PaddedShortcut) or super().is_leaf_module(module, module_qualified_name)


class Graph:
    """The channel graph of `model` for one input shape (C, H, W).

    convs         layer name -> `Conv`, in the order of execution
    filter_sets   layer name -> int64 [O]: filters with the same number are tied through residual sums and can only
                  be removed together
    input_sets    layer name -> int64 [I]: the filter set that each input channel of a convolution or linear layer comes
                  from; -1 for the image and for padding

    Raises ValueError naming the operation if there is no rule for its channels, and if the network has no convolution, does not
    end in one linear layer, or does not accept images of this shape.
    """

    def __init__(self, model: nn.Module, input_shape: tuple[int, int, int]) -> None:
        self.input_shape = tuple(input_shape)
        skeleton = copy.deepcopy(model).to("meta", torch.float32).eval()
        try:
            self.fx_graph = _Tracer().trace(skeleton)
        except (fx.proxy.TraceError, TypeError) as error:
            raise ValueError(f"{type(model).__name__} cannot be traced by torch.fx: {error}") from error
        self.modules = dict(skeleton.named_modules())
        image = torch.zeros(1, *input_shape, device="meta")
        try:
            skeleton(image)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"{type(model).__name__} takes no images of shape {list(input_shape)}: {reason}"
            ) from error
        ShapeProp(fx.GraphModule(skeleton, self.fx_graph)).propagate(image)
        self.nodes = list(self.fx_graph.nodes)
        self.kinds: dict[fx.Node, Kind] = {node: self._kind(node) for node in self.nodes}
        self.width = {node: self._shape(node)[1] for node in self.nodes if self.kinds[node] != "output"}
        self.conv_nodes = {str(node.target): node for node in self.nodes if self.kinds[node] == "conv"}
        if not self.conv_nodes:
            raise ValueError(f"{type(model).__name__} has no convolution to prune")
        self._check_rules(type(model).__name__)
        roles = self._roles()
        self.convs = {name: self._conv(node, roles[node]) for name, node in self.conv_nodes.items()}
        self.filter_sets, self.input_sets = self._channel_sets()
        self.dense_macs = self.macs(PruningPlan({}))

    @property
    def set_count(self) -> int:
        """Number of filter sets S; sets are numbered 0..S-1."""
        return int(torch.cat(list(self.filter_sets.values())).max()) + 1

    def batch_norms(self, method: str) -> dict[str, str]:
        """Return layer -> the batch norm behind it.

        Raises ValueError, with the name of the method, if a layer has none.
        """
        if missing := [name for name, conv in self.convs.items() if conv.bn is None]:
            raise ValueError(f"{method} needs a batch norm behind every convolution; {missing[0]} has none")
        return {name: conv.bn for name, conv in self.convs.items() if conv.bn is not None}

    # ---- reading the trace -------------------------------------------------------------------------------------------

    def _kind(self, node: fx.Node) -> Kind:
        if node.op == "placeholder":
            return "input"
        if node.op == "output":
            return "output"
        target: Any = node.target
        if node.op == "call_module":
            module = self.modules[str(target)]
            if isinstance(module, nn.Conv2d) and isinstance(module.padding, str):
                raise ValueError(f"{target} has padding={module.padding!r}; give the padding as numbers, one a side")
            if isinstance(module, nn.Conv2d) and module.groups == 1 and module.padding_mode == "zeros":
                return "conv"
            if isinstance(module, nn.BatchNorm2d) and module.affine and module.track_running_stats:
                return "bn"
            if isinstance(module, PaddedShortcut):
                return "shortcut"
            if isinstance(module, nn.Linear):
                return "linear"
            if isinstance(module, _PASS_MODULES):
                return "pass"
            if isinstance(module, nn.Flatten) and module.start_dim == 1:
                return "flatten"
            target = module
        elif target in _SUM_FUNCTIONS and len(node.all_input_nodes) == 2 and not node.kwargs.get("alpha"):
            if len({self._shape(operand) for operand in node.all_input_nodes}) == 1:
                return "sum"
        elif target in _PASS_FUNCTIONS:
            return "pass"
        elif target is torch.flatten and node.args[1:] == (1,):
            return "flatten"
        raise ValueError(
            f"channels cannot be followed through {node.name!r} ({target}): write it with convolutions of one group, batch "
            "norm, ReLU, pooling, nn.Dropout, residual sums, flatten and linear layers, or add its rule to suite/graph.py"
        )

    def _check_rules(self, model: str) -> None:
        """Raise ValueError for a combination of operations that `live` and packing do not support."""
        called = Counter(str(node.target) for node in self.nodes if self.kinds[node] in ("conv", "bn", "linear"))
        for name, times in called.items():
            if times > 1:
                raise ValueError(f"{model} uses {name} {times} times; a layer with weights may be used once")
        for node in self.nodes:
            if self.kinds[node] == "bn" and self.kinds[node.all_input_nodes[0]] != "conv":
                raise ValueError(f"the batch norm {node.target} of {model} does not follow a convolution")
            if self.kinds[node] == "output" and (
                not isinstance(node.args[0], fx.Node) or self.kinds[node.args[0]] != "linear"
            ):
                raise ValueError(f"{model} must return the output of one linear layer, which gives the logits")

    def _shape(self, node: fx.Node) -> tuple[int, ...]:
        return tuple(node.meta["tensor_meta"].shape)

    def _conv(self, node: fx.Node, role: Role) -> Conv:
        module = self.modules[str(node.target)]
        assert isinstance(module, nn.Conv2d)
        bn = self.bn_of(node)
        return Conv(
            name=str(node.target),
            bn=str(bn.target) if bn else None,
            filters=module.out_channels,
            channels=module.in_channels,
            kernel=math.prod(module.kernel_size),
            positions=math.prod(self._shape(node)[2:]),
            input_elements=math.prod(self._shape(node.all_input_nodes[0])[1:]),
            role=role,
        )

    def bn_of(self, node: fx.Node) -> fx.Node | None:
        """Return the batch norm that is the only reader of a convolution."""
        users = list(node.users)
        return users[0] if len(users) == 1 and self.kinds[users[0]] == "bn" else None

    def _roles(self) -> dict[fx.Node, Role]:
        roles: dict[fx.Node, Role] = dict.fromkeys(self.conv_nodes.values(), "inner")
        for node in self.conv_nodes.values():
            if not any(earlier in roles for earlier in self._chain(node)[1:]):
                roles[node] = "stem"
        for node in self.nodes:
            if self.kinds[node] == "sum":
                chains = [self._chain(operand) for operand in node.all_input_nodes]
                common = set(chains[0]) & set(chains[1])
                branches = [[n for n in chain[: _first(chain, common)] if n in roles] for chain in chains]
                longer, shorter = sorted(branches, key=len, reverse=True)
                if longer:
                    roles[longer[0]] = "closing"
                if len(shorter) == 1 and len(longer) > 1:
                    roles[shorter[0]] = "shortcut"
        return roles

    def _chain(self, node: fx.Node) -> list[fx.Node]:
        """Return the nodes from `node` back to the input, through the first operand of each."""
        chain = [node]
        while chain[-1].all_input_nodes:
            chain.append(chain[-1].all_input_nodes[0])
        return chain

    def _channel_sets(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Tie the filters that meet in a residual sum; return `filter_sets` and `input_sets`."""
        channel_ids: dict[fx.Node, np.ndarray] = {}
        edges: list[np.ndarray] = []
        made: dict[str, np.ndarray] = {}
        read: dict[str, np.ndarray] = {}
        count = 0
        for node in self.nodes:
            kind = self.kinds[node]
            ids = [channel_ids[source] for source in node.all_input_nodes]
            if kind in ("conv", "linear"):
                read[str(node.target)] = ids[0]
            if kind == "conv":
                channel_ids[node] = made[str(node.target)] = np.arange(count, count + self.width[node])
                count += self.width[node]
            elif kind == "sum":
                both = (ids[0] >= 0) & (ids[1] >= 0)
                edges.append(np.stack([ids[0][both], ids[1][both]]))
                channel_ids[node] = np.maximum(ids[0], ids[1])
            elif kind == "shortcut":
                module = self.modules[str(node.target)]
                assert isinstance(module, PaddedShortcut)
                channel_ids[node] = np.pad(ids[0], (module.before, module.after), constant_values=-1)
            elif kind in ("bn", "pass"):
                channel_ids[node] = ids[0]
            elif kind == "flatten":
                channel_ids[node] = ids[0].repeat(self.width[node] // len(ids[0]))
            else:
                channel_ids[node] = np.full(0 if kind == "output" else self.width[node], -1)
        rows, columns = np.concatenate([*edges, np.zeros((2, 0), int)], axis=1)
        ties = coo_array((np.ones(len(rows)), (rows, columns)), shape=(count, count))
        labels = connected_components(ties, directed=False)[1].astype(np.int64)
        labels = np.append(labels, -1)  # of channel -1
        filter_sets, input_sets = (
            {name: torch.from_numpy(labels[ids]) for name, ids in layers.items()} for layers in (made, read)
        )
        return filter_sets, input_sets

    # ---- what a plan leaves ------------------------------------------------------------------------------------------

    def check(self, plan: PruningPlan) -> None:
        """Raise ValueError naming layer and shapes if the plan does not fit this network."""
        for name, layer in plan.items():
            if name not in self.convs:
                raise ValueError(f"the plan names {name!r}, which is no convolution of this network")
            conv, shape = self.convs[name], (len(layer.kept_O), layer.kept_GI.shape[1])
            if shape != (conv.filters, conv.channels):
                raise ValueError(
                    f"the plan of {name} is for {shape} filters and channels, it has {conv.filters, conv.channels}"
                )

    def live(self, plan: PruningPlan) -> Live:
        """Return the live layers and channels under `plan`.

        "Always zero" propagates forward, then "never read" backward. One pass each reaches the fixed point: a filter dropped in
        the backward pass has no readers, so that no other tensor becomes zero.
        """
        self.check(plan)
        layers = {
            name: plan[name] if name in plan else ConvPlan.full(c.filters, c.channels) for name, c in self.convs.items()
        }
        nonzero: dict[fx.Node, Tensor] = {}
        for node in self.nodes:
            kind, sources = self.kinds[node], node.all_input_nodes
            if kind == "conv":
                layer = layers[str(node.target)]
                kept_GI = layer.kept_GI & nonzero[sources[0]]
                kept_O = layer.kept_O & kept_GI.any(1)[layer.filter_group_O]
                layers[str(node.target)] = replace(layer, kept_GI=kept_GI, kept_O=kept_O)
                nonzero[node] = kept_O
            elif kind in ("bn", "pass"):
                nonzero[node] = nonzero[sources[0]]
            elif kind == "sum":
                nonzero[node] = nonzero[sources[0]] | nonzero[sources[1]]
            elif kind == "shortcut":
                nonzero[node] = self._pad(node, nonzero[sources[0]])
            elif kind == "flatten":
                nonzero[node] = nonzero[sources[0]].repeat_interleave(self.width[node] // self.width[sources[0]])
            elif kind != "output":
                nonzero[node] = torch.ones(self.width[node], dtype=torch.bool)
        read = {node: torch.zeros(width, dtype=torch.bool) for node, width in self.width.items()}
        for node in reversed(self.nodes):
            kind, sources = self.kinds[node], node.all_input_nodes
            if kind == "conv":
                layer = layers[str(node.target)]
                kept_O = layer.kept_O & read[node]
                used_G = torch.zeros(len(layer.kept_GI), dtype=torch.bool)
                used_G[layer.filter_group_O[kept_O]] = True
                kept_GI = layer.kept_GI & used_G[:, None]
                layers[str(node.target)] = replace(layer, kept_GI=kept_GI, kept_O=kept_O)
                read[sources[0]] |= kept_GI.any(0)
            elif kind in ("bn", "pass", "sum"):
                for source in sources:
                    read[source] |= read[node]
            elif kind == "shortcut":
                module = self.modules[str(node.target)]
                assert isinstance(module, PaddedShortcut)
                read[sources[0]] |= read[node][module.before : module.before + self.width[sources[0]]]
            elif kind == "flatten":
                read[sources[0]] |= read[node].view(self.width[sources[0]], -1).any(1)
            else:
                for source in sources:
                    read[source][:] = True
        return Live(layers, {node: nonzero[node] & read[node] for node in self.width})

    def _pad(self, node: fx.Node, mask_C: Tensor) -> Tensor:
        module = self.modules[str(node.target)]
        assert isinstance(module, PaddedShortcut)
        return nn.functional.pad(mask_C, (module.before, module.after))

    def settle(self, plan: PruningPlan) -> PruningPlan:
        """Return the canonical plan that also removes the dead channels of `plan`; idempotent."""
        return PruningPlan(self.live(plan).layers).canonical()

    def macs(self, plan: PruningPlan) -> Macs:
        """Return the MACs of one image if each group convolves its live channels."""
        macs_of_layer = self.layer_macs(self.live(plan))
        prunable = sum(macs_of_layer[name] for name, conv in self.convs.items() if conv.prunable)
        return Macs(total=sum(macs_of_layer.values()), prunable=prunable)

    def layer_macs(self, live: Live) -> dict[str, int]:
        """Return the MACs of each layer (convolution, linear) on one image, in order."""
        macs = {}
        for node in self.nodes:
            kind, name = self.kinds[node], str(node.target)
            if kind == "conv":
                macs[name] = live.layers[name].kernels * self.convs[name].macs_per_kernel
            elif kind == "linear":
                macs[name] = int(live.channels[node.all_input_nodes[0]].sum()) * self.width[node]
        return macs

    def cut(self, plan: PruningPlan, scope: Literal["network", "prunable"] = "network") -> float:
        """Return the share of MACs that `plan` removes, in the scope of a `Budget`."""
        left, dense = self.macs(plan), self.dense_macs
        return 1 - (left.total / dense.total if scope == "network" else left.prunable / dense.prunable)

    def meets(self, plan: PruningPlan, budget: Budget) -> bool:
        """Return True if `plan` removes at least the budget."""
        return self.cut(plan, budget.scope) >= budget.share


@dataclass(frozen=True)
class Live:
    """Live part of a network under a plan.

    layers    the settled plan of each layer
    channels  node -> bool [C], True for channels that are not always zero and have a reader
    """

    layers: Mapping[str, ConvPlan]
    channels: Mapping[fx.Node, Tensor]


def _first(chain: list[fx.Node], common: set[fx.Node]) -> int:
    return next((index for index, node in enumerate(chain) if node in common), len(chain))
