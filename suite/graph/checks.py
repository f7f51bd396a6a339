"""Refusals of networks that a trace would change."""

from __future__ import annotations

import torch
from torch import fx, nn
from torch.nn.utils import parametrize, prune

_WRAPPERS = {"DataParallel": "module", "DistributedDataParallel": "module", "OptimizedModule": "_orig_mod"}
"""Classes that hold a network -> the attribute with the network."""


def check_modules(model: nn.Module, title: str) -> None:
    """Raise ValueError for a wrapper, and for weights that are no plain parameters."""
    if title in _WRAPPERS:
        raise ValueError(f"{title} is no network of its own; give the network inside, .{_WRAPPERS[title]}")
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError(f"{title} is TorchScript, which cannot be pruned; give the module that it was made from")
    if isinstance(model, fx.GraphModule) and any(
        isinstance(node.target, torch._ops.OpOverload) for node in model.graph.nodes
    ):
        raise ValueError(f"{title} is an exported program, which has no layers; give the module that was exported")
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
    if all(id(parameter) in used for parameter in modules[""].parameters()):
        return
    unused: dict[str, int] = {}
    for name, module in modules.items():
        parameters = list(module.parameters())
        inside = any(name.startswith(f"{outer}.") for outer in unused)
        if name and not inside and parameters and not any(id(parameter) in used for parameter in parameters):
            unused[name] = sum(parameter.numel() for parameter in parameters)
    if unused:
        names, count = " and ".join(unused), sum(unused.values())
        raise ValueError(
            f"{title} computes nothing with {names} in eval mode, so {count:,} parameters would count as removed: delete each "
            f"first ({' = '.join(unused)} = None)"
        )
    for name, module in modules.items():
        for key, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in used:
                where = f"{name}.{key}".strip(".")
                raise ValueError(f"{title} computes nothing with the parameter {where} in eval mode: delete it first")


def _snake(name: str) -> str:
    return "".join("_" + letter.lower() if letter.isupper() else letter for letter in name).strip("_")


def check_read_once(graph: fx.Graph, modules: dict[str, nn.Module], title: str) -> None:
    """Raise ValueError for a parameter that several operators read.

    The same holds for a buffer of a layer. All calls of one module are one reader.
    """
    readers: dict[int, set[str]] = {}
    constants = [node for node in graph.nodes if node.op == "get_attr"]
    for node in graph.nodes if constants else ():
        if node.op == "call_module":
            module = modules[str(node.target)]
            for tensor in (*module.parameters(), *module.buffers()):
                readers.setdefault(id(tensor), set()).add(str(node.target))
    for node in constants:
        tensor = node.meta.get("value")
        if isinstance(tensor, nn.Parameter) or id(tensor) in readers:
            every = readers.setdefault(id(tensor), set())
            every.update(_readers(node))
            if len(every) > 1:
                kind = "parameter may be used once" if isinstance(tensor, nn.Parameter) else "layer's buffer is its own"
                raise ValueError(
                    f"{title} uses {str(node.target)!r} several times (in {' and '.join(sorted(every))}); a {kind}"
                )


def _readers(constant: fx.Node) -> set[str]:
    """Return the operators that read a parameter, directly or through views of it alone."""
    names = set()
    for user in constant.users:
        names |= _readers(user) if user.all_input_nodes == [constant] and user.op != "output" else {user.name}
    return names
