"""Layers that a network calls as functions of their parameters.

A subclass of nn.Conv2d, nn.Linear or batch norm with a forward method of its own is traced into. The call of the function
inside, such as `F.conv2d(x, self.weight, self.bias, self.stride)`, is the layer itself. An nn.Linear of maps [N, H, W, C] becomes
such a subclass, `Pointwise`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx, nn

_KINDS = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.BatchNorm1d)
_TENSORS = ("weight", "bias", "running_mean", "running_var")
_ARGUMENTS: Mapping[str, dict[str, Any]] = {
    "conv2d": {"input": None, "weight": None, "bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1},
    "linear": {"input": None, "weight": None, "bias": None},
    "batch_norm": {"input": None, "running_mean": None, "running_var": None, "weight": None, "bias": None}
    | {"training": False, "momentum": 0.1, "eps": 1e-5},
}
"""Function -> its arguments and their defaults, in order."""
_CLASS: Mapping[str, Any] = {"conv2d": nn.Conv2d, "linear": nn.Linear, "batch_norm": nn.modules.batchnorm._BatchNorm}


def layer_of_call(
    function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], root: nn.Module, training: bool
) -> tuple[str, fx.Node] | None:
    """Return the name of the layer that a function computes, and its operand.

    None if the function's parameters and settings are not those of one layer.
    """
    name = getattr(function, "__name__", "")
    if name not in _ARGUMENTS:
        return None
    bound = {**_ARGUMENTS[name], **dict(zip(_ARGUMENTS[name], args, strict=False)), **kwargs}
    weight, operand = bound["weight"], bound["input"]
    if not isinstance(weight, fx.Node) or weight.op != "get_attr" or not isinstance(operand, fx.Node):
        return None
    path = str(weight.target).rpartition(".")[0]
    layer: Any = root.get_submodule(path)
    if not path or not isinstance(layer, _CLASS[name]) or getattr(layer, "padding_mode", "zeros") != "zeros":
        return None
    for key, value in bound.items():
        if key in _TENSORS:
            own = f"{path}.{key}" if getattr(layer, key) is not None else None
            same = own == (str(value.target) if isinstance(value, fx.Node) else value)
        elif key == "training":
            same = bool(value) == training
        else:
            same = key == "input" or _pair(value) == _pair(getattr(layer, key))
        if not same:
            return None
    return path, operand


def _pair(value: Any) -> Any:
    return (value, value) if isinstance(value, int) else tuple(value) if isinstance(value, list) else value


def plain_layer(layer: nn.Module) -> nn.Module:
    """Return the layer as an instance of the class of torch.nn.

    The result shares parameters and buffers, and has no modules inside.
    """
    kind: Any = next((kind for kind in _KINDS if isinstance(layer, kind)), type(layer))
    if type(layer) is kind:
        return layer
    result = object.__new__(kind)
    vars(result).update(vars(layer), _modules={})
    vars(result).pop("inplace", None)  # of an activation in the forward method
    return result


class Pointwise(nn.Conv2d):
    """A linear layer of maps [N, H, W, C] as a 1x1 convolution.

    Methods score it like any other convolution: its weight is [O, I, 1, 1], and `forward` and hooks get [N, C, H, W]. Its state
    is that of the linear layer, [O, I].
    """

    def __call__(self, x: Tensor) -> Tensor:
        """Return maps [N, H, W, O] of maps [N, H, W, C]."""
        return super().__call__(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = destination[f"{prefix}weight"][:, :, 0, 0]

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *more: Any) -> None:
        key = f"{prefix}weight"
        if key in state_dict:
            state_dict = {**state_dict, key: state_dict[key][:, :, None, None]}
        super()._load_from_state_dict(state_dict, prefix, *more)


def pointwise(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> list[str]:
    """Return the names of the nn.Linear layers of maps [N, H, W, C].

    All calls of such a layer read maps.
    """
    maps: dict[str, bool] = {}
    for node in graph.nodes:
        name = str(node.target)
        if node.op == "call_module" and type(modules.get(name)) is nn.Linear:
            maps[name] = maps.get(name, True) and node.all_input_nodes[0].meta["value"].ndim == 4
    return [name for name, all_calls in maps.items() if all_calls]


def make_pointwise(linear: nn.Module) -> None:
    """Make an nn.Linear a `Pointwise` layer, in place; idempotent.

    Its parameters stay the same objects.
    """
    if type(linear) is not nn.Linear:
        return
    like = Pointwise(linear.in_features, linear.out_features, 1, bias=linear.bias is not None, device="meta")
    linear.weight.grad = None
    linear.weight.data = linear.weight.data[:, :, None, None]
    vars(linear).update({key: value for key, value in vars(like).items() if key not in vars(linear)})
    linear.__class__ = Pointwise  # type: ignore[assignment]
