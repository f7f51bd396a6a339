"""Operators that change a tensor in place, rewritten to return a new one."""

from __future__ import annotations

import inspect
import operator
from typing import Any

import torch
from torch import fx, nn

from suite.graph.names import described, named

_ALIASES = {
    "view",
    "reshape",
    "flatten",
    "permute",
    "transpose",
    "squeeze",
    "unsqueeze",
    "getitem",
    "chunk",
    "split",
    "narrow",
    "identity",
    "dropout",
    "dropout1d",
    "dropout2d",
    "contiguous",
    "detach",
    "expand",
    "stochasticdepth",
    "unbind",
}

_CHANGES = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}


def _inplace_index(node: fx.Node) -> int | None:
    """Return the position of the argument `inplace` of a function, None if there is none."""
    if node.op != "call_function" or getattr(node.target, "__module__", "") != "torch.nn.functional":
        return None
    names = list(inspect.signature(node.target).parameters)  # type: ignore[arg-type]
    return names.index("inplace") if "inplace" in names else None


def in_place(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Return True for an operator that changes its first operand."""
    if node.op == "call_module":
        return bool(getattr(modules[str(node.target)], "inplace", False))
    if node.op not in ("call_function", "call_method"):
        return False
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    index = _inplace_index(node)
    return (
        node.target in _CHANGES
        or (name.endswith("_") and not name.endswith("__"))
        or bool(node.kwargs.get("inplace"))
        or (index is not None and bool(dict(enumerate(node.args)).get(index)))
    )


def _rewrite(node: fx.Node) -> None:
    """Let the node return a new tensor; modules keep their setting."""
    target: Any = node.target
    if node.op == "call_method":
        node.target = target.rstrip("_")
    elif node.op == "call_function":
        if target in _CHANGES:
            node.target = _CHANGES[target]
        elif target.__name__.endswith("_"):
            plain = target.__name__.rstrip("_")
            node.target = getattr(torch, plain, None) or getattr(nn.functional, plain)
        if (index := _inplace_index(node)) is not None:
            node.args = node.args[:index]
        node.kwargs = {key: value for key, value in node.kwargs.items() if key != "inplace"}


def out_of_place(graph: fx.Graph, modules: dict[str, nn.Module], title: str) -> None:
    """Let later readers of a tensor that changes in place read the result.

    Raises ValueError if a view of the tensor has later readers.
    """
    place = {node: index for index, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        if not node.all_input_nodes or not in_place(node, modules):
            continue
        source = node.all_input_nodes[0]
        for alias in _aliases(source, modules) - {source, node}:
            if late := [user for user in alias.users if place[user] > place[node]]:
                raise ValueError(
                    f"{described(node, modules)} of {title} changes in place what {late[0].name!r} reads later; set inplace=False"
                )
        for user in [user for user in source.users if place[user] > place[node]]:
            user.replace_input_with(source, node)
        _rewrite(node)


def _aliases(node: fx.Node, modules: dict[str, nn.Module]) -> set[fx.Node]:
    """Return the nodes that may share memory with `node`, through views."""
    shared, todo = {node}, [node]
    while todo:
        member = todo.pop()
        near = [user for user in member.users if named(user, modules) in _ALIASES]
        if member.op != "placeholder" and named(member, modules) in _ALIASES:
            near += member.all_input_nodes[:1]
        todo += [other for other in near if other not in shared]
        shared.update(near)
    return shared
