"""Names of the operators of a trace."""

from __future__ import annotations

from typing import Any

from torch import fx, nn


def named(node: fx.Node, modules: dict[str, nn.Module]) -> str:
    """Return the operator's name in lower case without underscores; one for module, function and method."""
    target: Any = node.target
    if node.op == "call_module":
        target = type(modules[str(target)]).__name__
    elif node.op == "call_function":
        target = getattr(target, "__name__", str(target))
    name = str(target).strip("_").lower().replace("_", "")
    return {"truediv": "div", "subtract": "sub", "multiply": "mul", "divide": "div"}.get(name, name)


def described(node: fx.Node, modules: dict[str, nn.Module]) -> str:
    """Return node, module and operator in words, for messages."""
    if node.op == "call_module":
        return f"{node.target!r} ({modules[str(node.target)]})"
    return f"{node.name!r} ({getattr(node.target, '__name__', node.target)})"
