"""Tracing of a network by torch.fx with concrete shapes.

A network that a trace would change is refused.

Shapes, sizes and types of tensors are numbers while the network is traced, so that control flow on them is followed. The number
of images is `BATCH`; a view of the batch dimension is rewritten to any number of images.
"""

from __future__ import annotations

import copy
import inspect
import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize, prune

BATCH = 2
LEAVES = {"PaddedShortcut", "StochasticDepth", "DropPath", "FrozenBatchNorm2d"}
"""Classes that are one operator, beside those of torch.nn."""
_ATTRIBUTES = ("shape", "ndim", "dtype", "device", "layout", "is_cuda", "is_quantized", "requires_grad")
_METHODS = (
    "size",
    "dim",
    "numel",
    "nelement",
    "stride",
    "is_contiguous",
    "is_floating_point",
    "ndimension",
    "get_device",
)
_ATTENTION = {"multiheadattention", "scaleddotproductattention", "multiheadattentionforward"}
_VIEWS = {"view", "reshape", "expand"}
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
}
_ALIASES |= {
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
    module = modules.get(str(node.target)) if node.op == "call_module" else None
    return f"{node.target!r} ({module})" if module is not None else f"{node.name!r} ({node.target})"


class _Proxy(fx.Proxy):
    """A proxy whose shape, type and length are those of the traced tensor."""

    @property
    def value(self) -> Any:
        """The value without storage: a tensor on the meta device, a number or a tuple."""
        return self.node.meta["value"]

    def __getattr__(self, k: str) -> Any:
        return getattr(self.value, k) if k in _ATTRIBUTES + _METHODS else super().__getattr__(k)

    def __iadd__(self, other: Any) -> Any:
        return self._changed(operator.iadd, other)

    def __isub__(self, other: Any) -> Any:
        return self._changed(operator.isub, other)

    def __imul__(self, other: Any) -> Any:
        return self._changed(operator.imul, other)

    def __itruediv__(self, other: Any) -> Any:
        return self._changed(operator.itruediv, other)

    def _changed(self, change: Any, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", change, (self, other), {}, name=change.__name__[1:])

    def __len__(self) -> int:
        return len(self.value)

    def __iter__(self) -> Iterator[Any]:
        return (operator.getitem(self, index) for index in range(len(self.value)))


class _Tracer(fx.Tracer):
    """Records the operators of one pass in eval mode, and the value of each node."""

    evaluating = False

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m).__name__ in LEAVES or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val if self.evaluating else super().getattr(attr, attr_val, parameter_proxy_cache)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        return forward(*args, **kwargs) if self.evaluating else super().call_module(m, forward, args, kwargs)

    def create_node(
        self, kind: str, target: Any, args: Any, kwargs: Any, name: Any = None, type_expr: Any = None
    ) -> Any:
        node = super().create_node(kind, target, args, kwargs, name, type_expr)
        if kind == "placeholder":
            node.meta["value"] = self.image
        elif kind != "output":
            self.evaluating = True
            try:
                node.meta["value"] = self._value(node)
            finally:
                self.evaluating = False
        return node

    def _value(self, node: fx.Node) -> Any:
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(self.root)
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda source: source.meta["value"])
        target: Any = node.target
        if node.op == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        if node.op == "call_module":
            if type(self.root.get_submodule(target)).__name__.lower() in _ATTENTION:
                raise _Attention(target)
            return self.root.get_submodule(target).forward(*args, **kwargs)
        if getattr(target, "__name__", "").replace("_", "") in _ATTENTION:
            raise _Attention(node.name)
        return target(*args, **kwargs)

    def traced(self, skeleton: nn.Module, image: Tensor) -> fx.Graph:
        """Return the operators of `skeleton` on `image`, each with its value."""
        self.image = image
        parameters = list(inspect.signature(skeleton.forward).parameters.values())
        defaults = {p.name: p.default for p in parameters[1:] if p.default is not p.empty}
        return self.trace(skeleton, concrete_args=defaults or None)


class _Attention(Exception):
    """A layer that computes attention; its argument is the layer's name."""


def trace(model: nn.Module, input_shape: tuple[int, ...]) -> tuple[nn.Module, fx.Graph]:
    """Return a copy of `model` without storage, and its operators in eval mode.

    Raises ValueError with the reason if the network cannot be traced, or if a trace would be of another network.
    """
    title = type(model).__name__
    _check_modules(model, title)
    skeleton = copy.deepcopy(model).to("meta", torch.float32).eval()
    image = torch.zeros(BATCH, *input_shape, device="meta")
    try:
        graph = _Tracer().traced(skeleton, image)
    except _Attention as error:
        raise ValueError(
            f"{title} is a transformer ({error} computes attention): this suite prunes convolutional networks"
        ) from error
    except (RuntimeError, IndexError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{title} takes no images of shape {list(input_shape)}: {reason}") from error
    except (fx.proxy.TraceError, TypeError, AttributeError, NameError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{title} cannot be traced by torch.fx: {reason}") from error
    modules = dict(skeleton.named_modules())
    _check_in_place(graph, modules, title)
    for node in graph.nodes:
        _free_batch(node, modules)
    return skeleton, graph


# ---- refusals --------------------------------------------------------------------------------------------------------


def _check_modules(model: nn.Module, title: str) -> None:
    owner: dict[int, str] = {}
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module):
            raise ValueError(
                f"{name} of {title} is parametrized: torch.nn.utils.parametrize.remove_parametrizations first"
            )
        for hook in module._forward_pre_hooks.values():
            kind = type(hook).__name__
            if isinstance(hook, prune.BasePruningMethod):
                raise ValueError(
                    f"{name} of {title} has a mask of torch.nn.utils.prune: torch.nn.utils.prune.remove first"
                )
            if kind in ("WeightNorm", "SpectralNorm"):
                raise ValueError(f"{name} of {title} has {kind}: torch.nn.utils.remove_{_snake(kind)} first")
        for key, parameter in module.named_parameters(recurse=False):
            first = owner.setdefault(id(parameter), f"{name}.{key}")
            if first != f"{name}.{key}":
                raise ValueError(f"{first} and {name}.{key} of {title} are one parameter; give each layer its own")


def _snake(name: str) -> str:
    return "".join("_" + letter.lower() if letter.isupper() else letter for letter in name).strip("_")


_CHANGES = {operator.iadd: operator.add, operator.isub: operator.sub, operator.imul: operator.mul}
_CHANGES[operator.itruediv] = operator.truediv


def _inplace_index(node: fx.Node) -> int | None:
    """Return the position of the argument `inplace` of a function, None if there is none."""
    if node.op != "call_function" or getattr(node.target, "__module__", "") != "torch.nn.functional":
        return None
    names = list(inspect.signature(node.target).parameters)  # type: ignore[arg-type]
    return names.index("inplace") if "inplace" in names else None


def _in_place(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
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


def _out_of_place(node: fx.Node) -> None:
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


def _check_in_place(graph: fx.Graph, modules: dict[str, nn.Module], title: str) -> None:
    """Let later readers of a tensor that changes in place read the result.

    Raises ValueError if a view of the tensor has later readers.
    """
    place = {node: index for index, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        if not node.all_input_nodes or not _in_place(node, modules):
            continue
        source = node.all_input_nodes[0]
        for alias in _aliases(source, modules) - {source, node}:
            if late := [user for user in alias.users if place[user] > place[node]]:
                raise ValueError(
                    f"{described(node, modules)} of {title} changes in place what {late[0].name!r} reads later; set inplace=False"
                )
        for user in [user for user in source.users if place[user] > place[node]]:
            user.replace_input_with(source, node)
        _out_of_place(node)


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


def _free_batch(node: fx.Node, modules: dict[str, nn.Module]) -> None:
    """Rewrite a view so that it takes any number of images, in place."""
    value = node.meta.get("value")
    if node.op != "call_method" or named(node, modules) not in _VIEWS or not isinstance(value, Tensor):
        return
    if value.ndim and value.shape[0] == BATCH:
        node.args = (node.args[0], -1, *value.shape[1:])
        node.kwargs = {}
