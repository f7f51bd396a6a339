"""Tracing of a network by torch.fx with concrete shapes.

A network that a trace would change is refused.

Shapes, sizes and types of tensors are numbers while the network is traced, so that control flow on them is followed. The number
of images is `BATCH`; a view of the batch dimension is rewritten to any number of images. A network whose control flow reads
`self.training` is traced in both modes (`modes`). A dropout function that receives `self.training` becomes a module, and a
function of a layer's parameters becomes the layer (`layers`). A tensor that the forward method makes is a constant of the trace.
"""

from __future__ import annotations

import contextlib
import inspect
import operator
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint

from suite.graph.checks import check_modules
from suite.graph.copying import copied
from suite.graph.inplace import in_place, out_of_place
from suite.graph.layers import layer_of_call, make_pointwise, plain_layer, pointwise
from suite.graph.modes import Unlike, joined
from suite.graph.names import named

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
_DROPOUTS: dict[str, type[nn.Module]] = {"dropout": nn.Dropout, "dropout1d": nn.Dropout1d, "dropout2d": nn.Dropout2d}
_DROPOUTS |= {"alpha_dropout": nn.AlphaDropout, "feature_alpha_dropout": nn.FeatureAlphaDropout}
"""Functions that may receive `self.training` -> their modules."""
_VIEWS = {"view", "reshape", "expand"}
_AS = ("view_as", "reshape_as", "expand_as")
_SAME_SHAPE = (nn.ReLU, nn.Hardtanh, nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.GELU, nn.LeakyReLU, nn.ELU)
"""Activations whose result has the shape and the type of the operand."""
_ELEMENTWISE = {"add", "iadd", "mul", "imul"}
"""Functions whose result often has the shape and the type of an operand."""


class _Refusal(Exception):
    """An operator that cannot be traced. The argument continues a sentence about the network."""


class _Mode(int):
    """`self.training` of a network: 0 or 1. It records the lines that read it."""

    reads: list[str]

    def __bool__(self) -> bool:
        frame = sys._getframe(1)
        self.reads.append(f"{frame.f_code.co_filename}:{frame.f_lineno}")
        return int(self) > 0


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

    def new_tensor(self, data: Any, **settings: Any) -> Tensor:
        """Return a constant of this tensor's type."""
        return torch.tensor(data, **{"dtype": self.value.dtype, **settings})

    def __setitem__(self, index: Any, value: Any) -> None:
        raise _Refusal("assigns to a part of a tensor; write it with torch.cat, torch.where or a product with a mask")

    def __len__(self) -> int:
        return len(self.value)

    def __iter__(self) -> Iterator[Any]:
        return (operator.getitem(self, index) for index in range(len(self.value)))


class _OnCpu(TorchFunctionMode):
    """Makes constants of the forward method in main memory, not on the meta device."""

    def __init__(self, tracer: _Tracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self.tracer.evaluating and not (args and isinstance(args[0], Tensor) and args[0].is_meta):
            args = tuple(_CPU if _is_meta(argument) else argument for argument in args)
            kwargs = {key: _CPU if _is_meta(argument) else argument for key, argument in kwargs.items()}
        return func(*args, **kwargs)


_CPU = torch.device("cpu")


def _is_meta(argument: Any) -> bool:
    return isinstance(argument, torch.device) and argument.type == "meta"


def new_zeros(images: Tensor, *sizes: int) -> Tensor:
    """Return zeros of these sizes for each image."""
    return images.new_zeros(len(images), *sizes)


def _isinstance(value: Any, kinds: Any) -> bool:
    """Return True for a proxy of a tensor as for the tensor."""
    return isinstance(value.value if type(value) is _Proxy else value, kinds)


class _Tracer(fx.Tracer):
    """Records the operators of one pass, and the value of each node.

    training   the mode of the pass
    functions  names of layers that are called as functions only
    constants  name -> tensor that the network makes, or that is a plain attribute
    """

    evaluating = False

    def __init__(self, training: bool) -> None:
        super().__init__()
        self.training = training
        self.functions: set[str] = set()
        self.constants: dict[str, Tensor] = {}
        self.detached: dict[fx.Node, fx.Node] = {}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m).__name__ in LEAVES or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        name = self.registered.get(id(attr_val)) if isinstance(attr_val, nn.Parameter) else None
        if self.evaluating or name is None:
            return attr_val
        if name not in parameter_proxy_cache:  # the overridden method walks all parameters at each access
            parameter_proxy_cache[name] = self.create_proxy("get_attr", name, (), {})
        return parameter_proxy_cache[name]

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if "multiheadattention" in type(m).__name__.lower():
            raise _Attention(self.path_of_module(m))
        if type(m).__module__.startswith("torchvision.transforms"):
            return self._normalised(m, args[0])
        return forward(*args, **kwargs) if self.evaluating else super().call_module(m, forward, args, kwargs)

    def _normalised(self, transform: Any, images: Any) -> Any:
        """Return the images of `transforms.Normalize`, by operators."""
        name = type(transform).__name__
        if name != "Normalize" or transform.inplace:
            raise _Refusal(
                f"calls {name} of torchvision; transform the images before the network (Normalize: inplace=False)"
            )
        mean, std = (torch.tensor(x, dtype=torch.float64).view(-1, 1, 1) for x in (transform.mean, transform.std))
        return (images - mean) / std

    def create_proxy(
        self, kind: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *rest: Any, **more: Any
    ) -> Any:
        if kind == "call_method" and target in ("to", "type_as") and isinstance(args[0], Tensor) and len(args) > 1:
            return args[0].to(args[1].value.dtype)  # a constant in the type of a traced tensor
        return super().create_proxy(kind, target, args, kwargs, *rest, **more)

    def create_arg(self, a: Any) -> Any:
        if not isinstance(a, Tensor):
            return super().create_arg(a)
        if id(a) not in self.registered:
            if a.is_meta and a._base is not None and id(a._base) in self.registered and a.numel() == a._base.numel():
                return self.create_node("call_method", "reshape", (self.create_arg(a._base), *a.shape), {})
            if a.is_meta:
                raise _Refusal(
                    "reads a tensor that is computed from parameters and buffers alone; register it as a buffer"
                )
            if a.ndim == 4 and len(a) == BATCH:
                if bool(a.any()):
                    raise _Refusal(
                        "makes a tensor with one entry for each image; let its first dimension be 1, so that it broadcasts"
                    )
                return self.create_node("call_function", new_zeros, (self.images, *a.shape[1:]), {})
            name = f"constant_{len(self.constants)}"
            self.registered[id(a)] = name
            self.constants[name] = a.detach().cpu()
            self.kept.append(a)
        return self.create_node("get_attr", self.registered[id(a)], (), {})

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
        if kind.startswith("call"):
            args, kwargs = _by_position(args, kwargs)
        if kind.startswith("call") and _autocast() != self.autocast:
            raise _Refusal(
                "computes in torch.autocast, which packing would not keep; call the network inside of autocast"
            )
        if kind != "get_attr" and torch.is_grad_enabled():
            args, kwargs = fx.node.map_arg((args, kwargs), self._detached)
        if kind == "call_function" and (layer := layer_of_call(target, args, kwargs, self.root, self.training)):
            kind, target, args, kwargs = "call_module", layer[0], (layer[1],), {}
            self.functions.add(target)
        elif kind == "call_function" and any(isinstance(value, _Mode) for value in (*args, *kwargs.values())):
            kind, (target, args), kwargs = "call_module", self._as_module(target, args, kwargs), {}
        if kind == "call_method" and target in _AS:
            target, args = target.removesuffix("_as"), (args[0], *args[1].meta["value"].shape)
        node = super().create_node(kind, target, args, kwargs, name, type_expr)
        if kind == "placeholder":
            node.meta["value"], self.images = self.image, node
        elif kind != "output":
            self.evaluating = True
            try:
                node.meta["value"] = self._value(node)
            finally:
                self.evaluating = False
        if kind.startswith("call"):
            self._note_gradient(node)
        return node

    def _note_gradient(self, node: fx.Node) -> None:
        """Mark a node that is computed without gradient."""
        first = next(iter(node.all_input_nodes), node)
        if torch.is_grad_enabled():  # a part of several tensors without gradient has none either
            node.meta["stopped"] = first.meta.get("stopped", False) and not isinstance(first.meta["value"], Tensor)
        elif in_place(node, self.layers) and not first.meta.get("stopped"):
            raise _Refusal(
                "changes a tensor in place without gradient; write it with an operator that returns a new tensor"
            )
        else:
            node.meta["stopped"] = True

    def _detached(self, source: fx.Node) -> fx.Node:
        """Return the node that readers with gradient have in place of one without."""
        if not source.meta.get("stopped") or not isinstance(source.meta["value"], Tensor):
            return source
        if source not in self.detached:
            self.detached[source] = source.graph.call_method("detach", (source,))
            self.detached[source].meta["value"] = source.meta["value"]
        return self.detached[source]

    def _value(self, node: fx.Node) -> Any:
        if node.op == "get_attr":
            if (constant := self.constants.get(str(node.target))) is not None:
                return constant.to("meta", torch.float32 if constant.is_floating_point() else constant.dtype)
            return operator.attrgetter(str(node.target))(self.root)
        operands: Any = fx.node.map_arg((node.args, node.kwargs), lambda source: source.meta["value"])
        args, kwargs = operands
        target: Any = node.target
        if node.op == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        if node.op == "call_module":
            module = self.layers.get(target) or self.root.get_submodule(target)
            if target in self.functions:
                module = plain_layer(module)
            if len(args) == 1 and _stands_for_result(args[0]):  # on the meta device many layers are slow decompositions
                if isinstance(module, _SAME_SHAPE):
                    return args[0]
                if isinstance(module, nn.BatchNorm2d) and args[0].shape[1] == module.num_features:
                    return args[0]
            if isinstance(module, nn.AdaptiveAvgPool2d) and len(args) == 1 and module.output_size in (1, (1, 1)):
                return args[0].new_empty(*args[0].shape[:-2], 1, 1)
            return module.forward(*args, **kwargs)
        name = getattr(target, "__name__", "")
        if name.replace("_", "") in _ATTENTION:
            raise _Attention(node.name)
        if name in _ELEMENTWISE and len(args) == 2 and (same := _broadcast(name, *args)) is not None:
            return same
        return target(*args, **kwargs)

    def traced(self, skeleton: nn.Module, image: Tensor) -> fx.Graph:
        """Return the operators of `skeleton` on `image`, each with its value."""
        self.image, self.layers, self.autocast = image, dict(skeleton.named_modules()), _autocast()
        named = (*skeleton.named_parameters(), *skeleton.named_buffers())
        self.registered = {id(tensor): name for name, tensor in named}
        self.kept: list[Tensor] = []  # an id is of one tensor as long as the tensor is kept
        files = {id(names): names for m in skeleton.modules() if (names := getattr(m.forward, "__globals__", None))}
        with contextlib.ExitStack() as stack, torch.enable_grad(), _OnCpu(self), _without_autograd_functions():
            for names in files.values():
                if not str(names.get("__name__")).startswith("torch.") and "isinstance" not in names:
                    names["isinstance"] = _isinstance
                    stack.callback(names.pop, "isinstance")
            kind: Any = type(skeleton)
            of_images = {"forward": lambda self, images: kind.forward(self, images)}
            skeleton.__class__ = type(kind.__name__, (kind,), of_images)  # other arguments have their defaults
            stack.callback(setattr, skeleton, "__class__", kind)
            return self.trace(skeleton)


def _autocast() -> list[bool]:
    return [torch.is_autocast_enabled(device) for device in ("cpu", "cuda")]


@contextlib.contextmanager
def _without_autograd_functions() -> Iterator[None]:
    """Refuse each autograd.Function: its own gradient would be lost."""

    def refuse(kind: Any, *_: Any, **__: Any) -> None:
        if kind is checkpoint.CheckpointFunction:
            raise _Refusal("calls torch.utils.checkpoint with use_reentrant=True; set use_reentrant=False")
        raise _Refusal(
            f"computes in an autograd.Function ({kind.__name__}), which packing would not keep; write the function with "
            "operators of torch, and x.detach() for a stopped gradient"
        )

    function: Any = torch.autograd.Function
    own = vars(function).get("apply")
    function.apply = classmethod(refuse)
    try:
        yield
    finally:
        if own is None:
            del function.apply
        else:
            function.apply = own


def _stands_for_result(operand: Tensor) -> bool:
    """Return True if an elementwise result may be represented by the operand.

    The result for a slice or an expanded tensor has other strides, and a parameter cannot change in place.
    """
    return operand.is_contiguous() and not isinstance(operand, nn.Parameter)


def _broadcast(name: str, first: Any, second: Any) -> Tensor | None:
    """Return the operand with the shape, type and layout of the result, or None.

    An operator that changes its first operand in place has the first one's shape.
    """
    if not isinstance(first, Tensor) or not isinstance(second, Tensor) or first.dtype != second.dtype:
        return None
    shape = torch.broadcast_shapes(first.shape, second.shape)
    operands = (first,) if name.startswith("i") else (first, second)
    return next((each for each in operands if each.shape == shape and _stands_for_result(each)), None)


def _by_position(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return arguments with the operands by position, as the rules of operators read them.

    The functions of torch name them in this order.
    """
    kwargs = dict(kwargs)
    operands = [kwargs.pop(key) for key in ("condition", "input", "other") if key in kwargs]
    return (*args, *operands), kwargs


class _Attention(Exception):
    """A layer that computes attention; its argument is the layer's name."""


@dataclass(frozen=True)
class Trace:
    """A traced network.

    modules     name -> module, of a copy without storage; dropout functions and switches of modes are modules, too
    graph       the operators
    functions   names of layers that are called as functions of their parameters
    pointwise   names of the nn.Linear layers that are traced as 1x1 convolutions
    mode_reads  lines "file:number" whose control flow reads `self.training`
    constants   name -> tensor that is neither parameter nor buffer
    """

    modules: dict[str, nn.Module]
    graph: fx.Graph
    functions: set[str]
    pointwise: list[str]
    mode_reads: list[str]
    constants: dict[str, Tensor]

    def tensor(self, name: str, model: nn.Module) -> Tensor:
        """Return a tensor of `model`; constants have its type and device."""
        if name not in self.constants:
            return operator.attrgetter(name)(model)
        like, constant = next(model.parameters()), self.constants[name]
        return constant.to(like.device, like.dtype if constant.is_floating_point() else constant.dtype)


def trace(model: nn.Module, input_shape: tuple[int, ...]) -> Trace:
    """Return the operators of `model` on images of this shape.

    Raises ValueError with the reason if the network cannot be traced, or if a trace would be of another network.
    """
    title = type(model).__name__
    check_modules(model, title)
    skeleton = _without_storage(model).eval()
    image = torch.zeros(BATCH, *input_shape, device="meta")
    graph, tracer, reads = _traced(skeleton, image, title, training=False)
    if names := pointwise(graph, tracer.layers):
        for name in names:
            make_pointwise(tracer.layers[name])
        graph, tracer, reads = _traced(skeleton, image, title, training=False)
    if reads:
        with contextlib.suppress(
            ValueError, Unlike
        ):  # the check of train mode refuses what differs (`suite.pack.check_dense`)
            graph = joined(graph, _traced(skeleton, image, title, training=True)[0], skeleton)
    modules = _modules(skeleton, tracer.functions)
    for node in list(graph.nodes):
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)
        _free_batch(node, modules)
    return Trace(modules, graph, tracer.functions, names, reads, tracer.constants)


def _traced(skeleton: nn.Module, image: Tensor, title: str, training: bool) -> tuple[fx.Graph, _Tracer, list[str]]:
    """Return the operators of one mode, the tracer, and the lines that read the mode."""
    tracer, mode = _Tracer(training), _Mode(training)
    mode.reads = []
    for module in skeleton.modules():
        if not tracer.is_leaf_module(module, ""):
            module.training = mode  # type: ignore[assignment]
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
        if _Proxy.__name__ in reason:
            raise ValueError(
                f"{title} calls a function of torch.jit.script, which cannot be traced; remove the decorator{_place(error)}"
            ) from error
        raise ValueError(
            f"{title} takes no images of shape {list(image.shape[1:])}: {reason}{_place(error)}"
        ) from error
    except fx.proxy.TraceError as error:
        reason = "its control flow depends on the values of a tensor; write it with torch.where"
        raise ValueError(f"{title} cannot be traced by torch.fx: {reason}{_place(error)}") from error
    except (TypeError, AttributeError, NameError, NotImplementedError, AssertionError) as error:
        reason = (str(error).splitlines() or [f"{type(error).__name__}"])[0]
        raise ValueError(f"{title} cannot be traced by torch.fx: {reason}{_place(error)}") from error
    out_of_place(graph, _modules(skeleton, tracer.functions), title)
    return graph, tracer, mode.reads


def _modules(skeleton: nn.Module, functions: set[str]) -> dict[str, nn.Module]:
    return {name: plain_layer(module) if name in functions else module for name, module in skeleton.named_modules()}


def _place(error: BaseException) -> str:
    """Return the line of the network's own code that an error comes from, in words."""
    own = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename != __file__ and "/torch/" not in frame.filename and not frame.filename.startswith("<")
    ]
    return f" ({own[-1].filename}:{own[-1].lineno})" if own else ""


def _without_storage(model: nn.Module) -> nn.Module:
    """Return a copy of `model` in float32 on the meta device; no weight is copied."""
    memo: dict[int, object] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        empty = tensor.detach().to("meta", torch.float32 if tensor.is_floating_point() else tensor.dtype)
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    return copied(model, memo)


def _free_batch(node: fx.Node, modules: dict[str, nn.Module]) -> None:
    """Rewrite a view so that it takes any number of images, in place."""
    value = node.meta.get("value")
    is_method = node.op == "call_method" and named(node, modules) in _VIEWS
    if not (is_method or node.target is torch.reshape) or not isinstance(value, Tensor):
        return
    if value.ndim and value.shape[0] == BATCH:
        sizes = (-1, *value.shape[1:])
        node.args = (node.args[0], *sizes) if is_method else (node.args[0], sizes)
        node.kwargs = {}
