"""Control flow on `self.training`: the operators of train and eval mode in one graph.

A tensor that both modes compute in different ways is read through a `Switch`.
"""

from __future__ import annotations

import difflib
from typing import Any

from torch import Tensor, fx, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

ADDED = "train_or_eval_"
"""Beginning of the names of switches in a traced network."""


class Switch(nn.Module):
    """The first operand in train mode, the second in eval mode."""

    def forward(self, in_train: Tensor, in_eval: Tensor) -> Tensor:
        """Return the operand of the mode."""
        return in_train if self.training else in_eval


class Unlike(Exception):
    """The modes differ by more than operators without weights."""


def joined(in_eval: fx.Graph, in_train: fx.Graph, root: nn.Module) -> fx.Graph:
    """Return one graph with the operators of both modes. Switches become modules of `root`.

    Both graphs have no operator that changes a tensor in place. Further outputs of train mode are dropped.
    Raises Unlike if train mode needs layers with weights that eval mode does not call in the same place.
    """
    return _Join(in_eval, in_train, root).graph


class _Join:
    def __init__(self, in_eval: fx.Graph, in_train: fx.Graph, root: nn.Module) -> None:
        self.root = root
        self.graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        self.graph.output(self.graph.graph_copy(in_eval, copies))
        self.switches: dict[tuple[fx.Node, fx.Node], fx.Node] = {}
        self.node: dict[fx.Node, fx.Node] = {}
        """Node of train mode -> the node here that computes the same in train mode."""
        eval_nodes, train_nodes = list(self.graph.nodes), list(in_train.nodes)
        pairs = difflib.SequenceMatcher(
            None, [*map(self._key, train_nodes)], [*map(self._key, eval_nodes)], autojunk=False
        )
        for block in pairs.get_matching_blocks():
            for their, our in zip(
                train_nodes[block.a :][: block.size], eval_nodes[block.b :][: block.size], strict=True
            ):
                self._pair(their, our)
        if any(self._has_state(node) for node in set(eval_nodes) - set(self.node.values())):
            raise Unlike

    def _has_state(self, node: fx.Node) -> bool:
        module = self.root.get_submodule(str(node.target)) if node.op == "call_module" else None
        return module is not None and any(True for _ in (*module.parameters(), *module.buffers()))

    def _key(self, node: fx.Node) -> object:
        """Return a value that is equal for operators that may be one."""
        if node.op == "call_module":
            return str(node.target) if self._has_state(node) else repr(self.root.get_submodule(str(node.target)))
        return node.op, str(node.target)

    def _pair(self, their: fx.Node, our: fx.Node) -> None:
        """Let `our` node compute in train mode what `their` node does.

        Nothing changes if the settings of both differ.
        """
        train_operands, their_form = tree_flatten((their.args, dict(their.kwargs)))
        eval_operands, our_form = tree_flatten((our.args, dict(our.kwargs)))
        if our.op == "output":
            train_operands, their_form = train_operands[: len(eval_operands)], our_form
        if their_form != our_form or not all(map(_alike, train_operands, eval_operands)):
            return
        with self.graph.inserting_before(our):
            operands = [
                self._chosen(a, b) if isinstance(a, fx.Node) else b
                for a, b in zip(train_operands, eval_operands, strict=True)
            ]
        our.args, our.kwargs = tree_unflatten(operands, our_form)
        self.node[their] = our

    def _chosen(self, their: fx.Node, our: fx.Node) -> fx.Node:
        """Return the operand of either mode."""
        in_train = self._built(their)
        if in_train is our:
            return our
        if (in_train, our) not in self.switches:
            if not _same_shape(in_train.meta.get("value"), our.meta["value"]):
                raise Unlike
            name = f"{ADDED}{len(self.switches)}"
            self.root.add_module(name, Switch().eval())
            switch = self.graph.call_module(name, (in_train, our))
            switch.meta["value"] = our.meta["value"]
            self.switches[in_train, our] = switch
        return self.switches[in_train, our]

    def _built(self, their: fx.Node) -> fx.Node:
        """Return the node that computes the same in train mode.

        An operator of train mode alone is added.
        """
        if their not in self.node:
            if their.op in ("get_attr", "placeholder") or self._has_state(their):
                raise Unlike
            for operand in their.all_input_nodes:
                self._built(operand)
            self.node[their] = self.graph.node_copy(their, self.node.__getitem__)
        return self.node[their]


def _same_shape(one: Any, other: Any) -> bool:
    return isinstance(one, Tensor) and isinstance(other, Tensor) and one.shape == other.shape


def _alike(their: Any, our: Any) -> bool:
    return isinstance(their, fx.Node) == isinstance(our, fx.Node) and (isinstance(our, fx.Node) or their == our)


def without_switches(graph: fx.Graph, root: nn.Module) -> None:
    """Leave the operators of eval mode only, in place."""
    nodes = list(graph.nodes)
    switches = [n for n in nodes if n.op == "call_module" and isinstance(root.get_submodule(str(n.target)), Switch)]
    for node in switches:
        node.replace_all_uses_with(node.args[1])
    for node in reversed(nodes) if switches else ():
        if not node.users and node.op not in ("placeholder", "output"):
            graph.erase_node(node)
