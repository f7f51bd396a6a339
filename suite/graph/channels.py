"""Channel graph of a network: readers, tied filters, MACs, live channels of a plan.

Shapes: O filters, I input channels, G filter groups, C channels of one tensor of the network.

The network is traced (`tracing`), and each operator has a rule for its channels (`table`). An operator without a rule raises a
ValueError with its name.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, fx, nn

from suite.graph import liveness, table
from suite.graph import operators as ops
from suite.graph.checks import check_read_once, check_used
from suite.graph.layers import make_pointwise, plain_layer
from suite.graph.liveness import Live
from suite.graph.names import named
from suite.graph.operators import Fixed, Grouped, Kind, Linear, Operator, Tie
from suite.graph.table import Reader
from suite.graph.tracing import trace
from suite.plan import Budget, BudgetScope, ConvPlan, PruningPlan

Role = Literal["stem", "inner", "closing", "shortcut"]


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
    """Output pixels of one image, of all calls."""
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


class Times(Protocol):
    """Times of layers on one device, such as `suite.measure.layer_times.LayerTable`."""

    def predict_ms(self, graph: Graph, plan: PruningPlan) -> float:
        """Return the predicted milliseconds of the packed network."""

    def cut(self, graph: Graph, plan: PruningPlan) -> float:
        """Return the predicted share of the dense network's time that `plan` removes."""


@dataclass(frozen=True, kw_only=True)
class Macs:
    """Multiply-accumulates of one image.

    total     of all convolutions and linear layers
    prunable  of the convolutions that are neither the stem nor a shortcut
    """

    total: int
    prunable: int


class Graph:
    """The channel graph of `model` for one input shape (C, H, W).

    convs         layer name -> `Conv`, in the order of execution
    filter_sets   layer name -> int64 [O]: filters with the same number are tied through residual sums and can only
                  be removed together
    input_sets    layer name -> int64 [I]: the filter set that each input channel of a convolution or linear layer comes
                  from; -1 for the image and for padding
    channel_sets  layer name -> int64 [C]: the filter set of each channel of a grouped convolution, or of a batch norm that is
                  not the one behind a convolution (`Conv.bn`); -1 without filter. These give a removed channel a constant
                  value unless they are zeroed with it

    unit_macs     layer name -> MACs on one image of each weight of a linear layer, or of each channel of a grouped convolution
    fixed_macs    MACs on one image of the layers that are computed on all channels

    operators     node -> the rule for its channels
    calls         name of a module with parameters -> its nodes, in order
    repeated      node -> name of its module, for modules that are called several times. All calls have one plan, and their
                  channels are tied: a channel is removed if it is in every call. Only convolutions and batch norms are cut.
    passing       nodes whose channels are zero or read as those of their operand
    times         layer times that latency budgets count in; None without such a budget

    Convolutions that make the result of the network or a gate, grouped and depthwise convolutions follow other layers: they are
    not scored, and not in `convs`.
    An nn.Linear that reads maps [N, H, W, C] becomes a 1x1 convolution in `model` itself (`layers.Pointwise`), so that methods
    score it. Its parameters stay the same objects, and its state has the same shapes.
    Raises ValueError naming operator and module if there is no rule for its channels, and if the network has no convolution, is
    a transformer, or does not accept images of this shape.
    """

    def __init__(self, model: nn.Module, input_shape: tuple[int, int, int]) -> None:
        self.title = title = type(model).__name__
        self.input_shape = cast(tuple[int, int, int], tuple(input_shape))
        self.trace = trace(model, input_shape)
        self.modules = self.trace.modules
        self.nodes = list(self.trace.graph.nodes)
        self.operators: dict[fx.Node, Operator] = {}
        reader = Reader(title, self.modules, self.operators, {}, self.trace.constants)
        for node in self.nodes:
            self.operators[node] = reader.operator(node)
        self.calls = _calls(self.nodes, self.modules)
        following = {str(node.target) for node in table.followers(self.operators)}
        for name, nodes in self.calls.items():
            for node in nodes:
                if len(nodes) > 1 and (name in following or not table.can_repeat(self.operators[node])):
                    self.operators[node] = reader.fixed(node)
                elif name in following:
                    self.operators[node] = table.as_linear(node, self.operators, reader.module(node))
        self.kinds: dict[fx.Node, Kind] = {node: rule.kind for node, rule in self.operators.items()}
        self.width = {node: rule.width for node, rule in self.operators.items() if rule.kind != "output"}
        self.conv_nodes = {name: nodes[0] for name, nodes in self.calls.items() if self.kinds[nodes[0]] == "conv"}
        self.repeated = {node: str(node.target) for node in self.nodes if len(self.calls.get(str(node.target), ())) > 1}
        self.passing = {n for n, rule in self.operators.items() if type(rule) in ops.PASSING and n not in self.repeated}
        if not self.conv_nodes:
            raise ValueError(f"{title} has no convolution to prune")
        check_read_once(self.trace.graph, self.modules, title)
        check_used(self.trace.graph, self.modules, title)
        roles = self._roles()
        self.convs = {name: self._conv(node, roles[node]) for name, node in self.conv_nodes.items()}
        self.unit_macs = {
            str(node.target): rule.macs_per_weight
            * (self.operators[rule.sources[0]].width // rule.groups if isinstance(rule, Grouped) else 1)
            for node, rule in self.operators.items()
            if isinstance(rule, Linear | Grouped)
        }
        self.fixed_macs = sum(rule.full_macs for rule in self.operators.values() if isinstance(rule, Fixed))
        self.full = {name: ConvPlan.full(conv.filters, conv.channels) for name, conv in self.convs.items()}
        self.filter_sets, self.input_sets, self.channel_sets = self._channel_sets()
        self.dense_macs = self.macs(PruningPlan({}))
        for name in self.trace.pointwise:
            make_pointwise(model.get_submodule(name))
        self.times: Times | None = None

    @property
    def classes(self) -> int:
        """Number of classes of a classifier: the width of its first output."""
        return self.width[self.nodes[-1].all_input_nodes[0]]

    @property
    def set_count(self) -> int:
        """Number of filter sets S; sets are numbered 0..S-1."""
        return int(torch.cat(list(self.filter_sets.values())).max()) + 1

    def check_gradient(self) -> None:
        """Raise ValueError if the network's result has no gradient, so that no training changes it."""
        (result, *_) = self.nodes[-1].all_input_nodes
        if named(result, self.modules) == "detach":
            raise ValueError(
                f"the result of {self.title} has no gradient, so it cannot be trained: its forward method computes under "
                "torch.no_grad() or torch.inference_mode(), or detaches the result; call the network inside of it instead"
            )

    def batch_norms(self, method: str) -> dict[str, str]:
        """Return layer -> the batch norm behind it.

        Raises ValueError, with the name of the method, if a layer has none.
        """
        if missing := [name for name, conv in self.convs.items() if conv.bn is None]:
            raise ValueError(f"{method} needs a batch norm behind every convolution; {missing[0]} has none")
        return {name: conv.bn for name, conv in self.convs.items() if conv.bn is not None}

    def bound(self, model: nn.Module) -> fx.GraphModule:
        """Return the traced network with the modules, parameters and buffers of `model`, which it shares."""
        targets: dict[str, Any] = {}
        for node in self.nodes:
            name = str(node.target)
            if node.op == "call_module":
                targets[name] = self.layer(node, model)
            elif node.op == "get_attr":
                targets[name] = self.trace.tensor(name, model)
        return fx.GraphModule(targets, self.trace.graph)

    def layer(self, node: fx.Node, model: nn.Module) -> nn.Module:
        """Return the module of `model` that a node calls.

        A dropout function or a switch of modes is a module of the trace.
        """
        name = str(node.target)
        try:
            own = model.get_submodule(name)
        except AttributeError:
            return self.modules[name]
        return plain_layer(own) if name in self.trace.functions else own

    # ---- reading the trace -------------------------------------------------------------------------------------------

    def _sources(self, node: fx.Node) -> list[fx.Node]:
        """Return the operands that are tensors of channels."""
        return [source for source in node.all_input_nodes if self.kinds[source] != "constant"]

    def _conv(self, node: fx.Node, role: Role) -> Conv:
        module = self.modules[str(node.target)]
        assert isinstance(module, nn.Conv2d)
        calls = self.calls[str(node.target)]
        norms = {bn and str(bn.target) for bn in map(self.bn_of, calls)}
        bn = self.bn_of(node) if len(norms) == 1 else None
        return Conv(
            name=str(node.target),
            bn=str(bn.target) if bn else None,
            filters=module.out_channels,
            channels=module.in_channels,
            kernel=math.prod(module.kernel_size),
            positions=sum(math.prod(table.shape(call)[2:]) for call in calls),
            input_elements=math.prod(table.shape(self._sources(node)[0])[1:]),
            role=role,
        )

    def bn_of(self, node: fx.Node) -> fx.Node | None:
        """Return the batch norm that is the only reader of a convolution."""
        users = list(node.users)
        return users[0] if len(users) == 1 and self.kinds[users[0]] == "bn" else None

    def _roles(self) -> dict[fx.Node, Role]:
        roles: dict[fx.Node, Role] = dict.fromkeys(self.conv_nodes.values(), "inner")
        behind: set[fx.Node] = set()
        first_source: dict[fx.Node, fx.Node] = {}
        for node in self.nodes:
            if sources := self._sources(node):
                first_source[node] = sources[0]
            if sources and (sources[0] in roles or sources[0] in behind):
                behind.add(node)
            elif node in roles:
                roles[node] = "stem"
        for node in self.nodes:
            if self.kinds[node] == "sum":
                chains = [_chain(operand, first_source) for operand in self._sources(node)]
                common = set.intersection(*map(set, chains))
                branches = [[n for n in chain[: _first(chain, common)] if n in roles] for chain in chains]
                longer, *_, shorter = sorted(branches, key=len, reverse=True)
                if longer:
                    roles[longer[0]] = "closing"
                if len(shorter) == 1 and len(longer) > 1:
                    roles[shorter[0]] = "shortcut"
        return roles

    def _channel_sets(self) -> tuple[dict[str, Tensor], ...]:
        """Tie the filters that meet in a residual sum; return `filter_sets`, `input_sets` and `channel_sets`."""
        behind = {conv.bn for conv in self.convs.values()}
        channel_ids: dict[fx.Node, np.ndarray] = {}
        edges: list[np.ndarray] = []
        made: dict[str, np.ndarray] = {}
        read: dict[str, np.ndarray] = {}
        passed: dict[str, np.ndarray] = {}
        inputs: dict[str, list[np.ndarray]] = {}
        count = 0

        def tie(first: np.ndarray, second: np.ndarray) -> None:
            edges.append(np.stack([first, second]))

        for node, rule in self.operators.items():
            ids = [channel_ids[source] for source in rule.sources]
            name = str(node.target)
            if node in self.repeated and rule.kind in ("conv", "bn"):
                ids = inputs[name] = [self._joined(ids[0], inputs[name][0], tie)] if name in inputs else ids
            if rule.kind in ("conv", "linear"):
                read[name] = ids[0]
            if name in made:
                channel_ids[node] = made[name]
            elif rule.kind == "conv":
                channel_ids[node] = made[name] = np.arange(count, count + rule.width)
                count += rule.width
            else:
                channel_ids[node] = rule.ids(ids, tie)
            if rule.kind in ("bn", "grouped") and name in self.modules and name not in behind:
                passed[name] = channel_ids[node]
        rows, columns = np.concatenate([*edges, np.zeros((2, 0), int)], axis=1)
        ties = coo_array((np.ones(len(rows)), (rows, columns)), shape=(count, count))
        labels = connected_components(ties, directed=False)[1].astype(np.int64)
        labels = np.append(labels, -1)  # of channel -1
        return tuple(
            {name: torch.from_numpy(labels[ids]) for name, ids in layers.items()} for layers in (made, read, passed)
        )

    @staticmethod
    def _joined(first: np.ndarray, second: np.ndarray, tie: Tie) -> np.ndarray:
        """Tie the input channels of two calls, and return their filters.

        -1 for a channel that has no filter in one of the calls.
        """
        both = (first >= 0) & (second >= 0)
        tie(first[both], second[both])
        return np.where(both, first, -1)

    # ---- what a plan leaves ------------------------------------------------------------------------------------------

    def check(self, plan: PruningPlan) -> None:
        """Raise ValueError naming layer and shapes if the plan does not fit this network."""
        for name, layer in plan.items():
            if name not in self.convs:
                raise ValueError(f"the plan names {name!r}, which is no convolution of this network")
            conv, shape = self.convs[name], (layer.kept_O.shape[0], layer.kept_GI.shape[1])
            if shape != (conv.filters, conv.channels):
                raise ValueError(
                    f"the plan of {name} is for {shape} filters and channels, it has {conv.filters, conv.channels}"
                )

    def live(self, plan: PruningPlan) -> Live:
        """Return the live layers and channels under `plan`."""
        self.check(plan)
        return liveness.live(self, plan)

    def settle(self, plan: PruningPlan) -> PruningPlan:
        """Return the canonical plan that also removes the dead channels of `plan`; idempotent."""
        return PruningPlan(self.live(plan).layers).canonical()

    def macs(self, plan: PruningPlan) -> Macs:
        """Return the MACs of one image if each group convolves its live channels."""
        macs_of_layer = self.layer_macs(self.live(plan))
        prunable = sum(macs_of_layer[name] for name, conv in self.convs.items() if conv.prunable)
        return Macs(total=sum(macs_of_layer.values()), prunable=prunable)

    def layer_macs(self, live: Live) -> dict[str, int]:
        """Return the MACs of each layer with weights on one image, in order."""
        macs: dict[str, int] = {}
        for node, rule in self.operators.items():
            name = str(node.target)
            if rule.kind == "conv":
                macs[name] = live.layers[name].kernels * self.convs[name].macs_per_kernel
            elif rule.kind in ("linear", "grouped", "fixed"):
                masks = [live.nonzero[each] & live.read[each] for each in (node, *rule.sources)]
                more = rule.macs(masks[0], masks[1:])
                macs[name] = macs.get(name, 0) + more
        return macs

    def cut(self, plan: PruningPlan, scope: BudgetScope = "network") -> float:
        """Return the share of MACs or of predicted time that `plan` removes.

        `scope` is that of a `Budget`. Raises ValueError for scope "latency" if the graph has no layer times.
        """
        if scope == "latency":
            return self.layer_times.cut(self, plan)
        left, dense = self.macs(plan), self.dense_macs
        return 1 - (left.total / dense.total if scope == "network" else left.prunable / dense.prunable)

    @property
    def layer_times(self) -> Times:
        """The layer times. Raises ValueError if there are none."""
        if self.times is None:
            raise ValueError(
                "time is counted by a table of layer times, and there is none here: give the run a latency budget, "
                'Budget(share=..., scope="latency", timing=Timing(...))'
            )
        return self.times

    def meets(self, plan: PruningPlan, budget: Budget) -> bool:
        """Return True if `plan` removes at least the budget."""
        return self.cut(plan, budget.scope) >= budget.share


def _calls(nodes: list[fx.Node], modules: Mapping[str, nn.Module]) -> dict[str, list[fx.Node]]:
    """Return name -> nodes of each module with parameters."""
    calls: dict[str, list[fx.Node]] = defaultdict(list)
    for node in nodes:
        if node.op == "call_module" and any(True for _ in modules[str(node.target)].parameters()):
            calls[str(node.target)].append(node)
    return dict(calls)


def _chain(node: fx.Node, first_source: Mapping[fx.Node, fx.Node]) -> list[fx.Node]:
    """Return the nodes from `node` back to the input, through the first operand of each."""
    chain = [node]
    while source := first_source.get(chain[-1]):
        chain.append(source)
    return chain


def _first(chain: list[fx.Node], common: set[fx.Node]) -> int:
    return next((index for index, node in enumerate(chain) if node in common), len(chain))
