"""Tracing of a network by torch.fx with concrete shapes.

A network that a trace would change is refused.

Shapes, sizes and types of tensors are numbers while the network is traced, so that control flow on them is followed. The number
of images is `BATCH`; a view of the batch dimension is rewritten to any number of images. A dropout function that receives
`self.training` becomes a module.
"""

from __future__ import annotations

import inspect
import operator
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize, prune

from suite.graph.copying import copied

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
_ATTENTION = {"scaleddotproductattention", "multiheadattentionforward"}
_WRAPPERS = {"DataParallel": "module", "DistributedDataParallel": "module", "OptimizedModule": "_orig_mod"}
"""Classes that hold a network -> the attribute with the network."""
_DROPOUTS: dict[str, type[nn.Module]] = {"dropout": nn.Dropout, "dropout1d": nn.Dropout1d, "dropout2d": nn.Dropout2d}
_DROPOUTS |= {"alpha_dropout": nn.AlphaDropout, "feature_alpha_dropout": nn.FeatureAlphaDropout}
"""Functions that may receive `self.training` -> their modules."""
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


_SAME_SHAPE = (nn.ReLU, nn.Hardtanh, nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.GELU, nn.LeakyReLU, nn.ELU)
"""Activations whose result has the shape and the type of the operand."""


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


class _Refusal(Exception):
    """An operator that cannot be traced. The argument continues a sentence about the network."""


class _Mode(int):
    """`self.training` of a network in eval mode. It records the lines that read it."""

    reads: list[str]

    def __bool__(self) -> bool:
        frame = sys._getframe(1)
        self.reads.append(f"{frame.f_code.co_filename}:{frame.f_lineno}")
        return False


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

    def __setitem__(self, index: Any, value: Any) -> None:
        raise _Refusal("assigns to a part of a tensor; write it with torch.cat, torch.where or a product with a mask")

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
        if "multiheadattention" in type(m).__name__.lower():
            raise _Attention(self.path_of_module(m))
        return forward(*args, **kwargs) if self.evaluating else super().call_module(m, forward, args, kwargs)

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, Tensor) and id(a) not in self.registered:
            raise _Refusal(
                "reads a tensor that is neither parameter nor buffer; register it as a buffer (zeros: torch.zeros_like)"
            )
        return super().create_arg(a)

    def _as_module(self, function: Any, args: Any, kwargs: Any) -> tuple[str, tuple[Any, ...]]:
        """Return name and operand of a module that replaces a function of `self.training`."""
        name = getattr(function, "__name__", str(function))
        if "attention" in name:
            raise _Attention(name)
        if name not in _DROPOUTS:
            raise _Refusal(f"calls {name} with self.training; write it as a module of torch.nn")
        bound = inspect.signature(function).bind(*args, **kwargs)
        bound.apply_defaults()
        target = f"{name}_of_function_{sum(1 for _ in self.root.children())}"
        module: Any = _DROPOUTS[name]
        self.root.add_module(target, module(bound.arguments["p"], bound.arguments["inplace"]).eval())
        return target, (bound.arguments["input"],)

    def create_node(
        self, kind: str, target: Any, args: Any, kwargs: Any, name: Any = None, type_expr: Any = None
    ) -> Any:
        if kind == "call_function" and any(isinstance(value, _Mode) for value in (*args, *kwargs.values())):
            kind, (target, args), kwargs = "call_module", self._as_module(target, args, kwargs), {}
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
        operands: Any = fx.node.map_arg((node.args, node.kwargs), lambda source: source.meta["value"])
        args, kwargs = operands
        target: Any = node.target
        if node.op == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        if node.op == "call_module":
            module = self.root.get_submodule(target)
            if isinstance(module, _SAME_SHAPE) and len(args) == 1:
                return args[0]  # on the meta device many of these are slow decompositions
            if isinstance(module, nn.BatchNorm2d) and len(args) == 1 and args[0].shape[1] == module.num_features:
                return args[0]
            return module.forward(*args, **kwargs)
        if getattr(target, "__name__", "").replace("_", "") in _ATTENTION:
            raise _Attention(node.name)
        return target(*args, **kwargs)

    def traced(self, skeleton: nn.Module, image: Tensor) -> fx.Graph:
        """Return the operators of `skeleton` on `image`, each with its value."""
        self.image = image
        self.registered = {id(tensor) for tensor in (*skeleton.parameters(), *skeleton.buffers())}
        parameters = list(inspect.signature(skeleton.forward).parameters.values())
        defaults = {p.name: p.default for p in parameters[1:] if p.default is not p.empty}
        return self.trace(skeleton, concrete_args=defaults or None)


class _Attention(Exception):
    """A layer that computes attention; its argument is the layer's name."""


@dataclass(frozen=True)
class Trace:
    """A traced network.

    skeleton    copy of the network without storage; dropout functions are modules of it, too
    graph       the operators in eval mode
    mode_reads  lines "file:number" whose control flow reads `self.training`
    """

    skeleton: nn.Module
    graph: fx.Graph
    mode_reads: list[str]


def trace(model: nn.Module, input_shape: tuple[int, ...]) -> Trace:
    """Return the operators of `model` on images of this shape.

    Raises ValueError with the reason if the network cannot be traced, or if a trace would be of another network.
    """
    title = type(model).__name__
    _check_modules(model, title)
    skeleton = _without_storage(model).to(torch.float32).eval()
    tracer, mode = _Tracer(), _Mode(0)
    mode.reads = []
    for module in skeleton.modules():
        if not tracer.is_leaf_module(module, ""):
            module.training = mode  # type: ignore[assignment]
    image = torch.zeros(BATCH, *input_shape, device="meta")
    try:
        graph = tracer.traced(skeleton, image)
    except _Attention as error:
        raise ValueError(
            f"{title} is a transformer ({error} computes attention): this suite prunes convolutional networks"
        ) from error
    except _Refusal as error:
        raise ValueError(f"{title} {error}{_place(error)}") from error
    except (RuntimeError, IndexError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{title} takes no images of shape {list(input_shape)}: {reason}{_place(error)}") from error
    except fx.proxy.TraceError as error:
        reason = "its control flow depends on the values of a tensor; write it with torch.where"
        raise ValueError(f"{title} cannot be traced by torch.fx: {reason}{_place(error)}") from error
    except (TypeError, AttributeError, NameError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{title} cannot be traced by torch.fx: {reason}{_place(error)}") from error
    modules = dict(skeleton.named_modules())
    _check_in_place(graph, modules, title)
    for node in graph.nodes:
        _free_batch(node, modules)
    return Trace(skeleton, graph, mode.reads)


def _place(error: BaseException) -> str:
    """Return the line of the network's own code that an error comes from, in words."""
    own = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename != __file__ and "/torch/" not in frame.filename and not frame.filename.startswith("<")
    ]
    return f" ({own[-1].filename}:{own[-1].lineno})" if own else ""


def _without_storage(model: nn.Module) -> nn.Module:
    """Return a copy of `model` on the meta device; no weight is copied."""
    memo: dict[int, object] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        empty = tensor.detach().to("meta")
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    return copied(model, memo)


# ---- refusals --------------------------------------------------------------------------------------------------------


def _check_modules(model: nn.Module, title: str) -> None:
    if title in _WRAPPERS:
        raise ValueError(f"{title} is no network of its own; give the network inside, .{_WRAPPERS[title]}")
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError(f"{title} is TorchScript, which cannot be pruned; give the module that it was made from")
    owner: dict[object, str] = {}
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
        for key, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            place = (tensor.untyped_storage().data_ptr(), tensor.storage_offset()) if tensor.numel() else (0, 0)
            first = owner.setdefault(place if place[0] else id(tensor), f"{name}.{key}")
            if first != f"{name}.{key}":
                kind = "parameter" if isinstance(tensor, nn.Parameter) else "tensor"
                raise ValueError(f"{first} and {name}.{key} of {title} are one {kind}; give each layer its own")


def check_used(graph: fx.Graph, modules: dict[str, nn.Module], title: str) -> None:
    """Raise ValueError for a parameter without effect, which would count as removed."""
    (output,) = (node for node in graph.nodes if node.op == "output")
    reached, todo = {output}, [output]
    while todo:
        new = set(todo.pop().all_input_nodes) - reached
        reached |= new
        todo += new
    used: set[int] = set()
    for node in reached:
        if node.op == "call_module":
            used.update(id(parameter) for parameter in modules[str(node.target)].parameters())
        elif node.op == "get_attr":
            used.add(id(node.meta["value"]))
    for name, module in modules.items():
        parameters = list(module.parameters())
        if name and parameters and not any(id(parameter) in used for parameter in parameters):
            count = sum(parameter.numel() for parameter in parameters)
            raise ValueError(
                f"{title} computes nothing with {name} in eval mode, so its {count:,} parameters would count as removed: "
                f"delete it first ({name} = None)"
            )
        for key, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in used:
                where = f"{name}.{key}".strip(".")
                raise ValueError(f"{title} computes nothing with the parameter {where} in eval mode: delete it first")


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
