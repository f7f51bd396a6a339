"""Products of sampled layer inputs, for methods that fit layers to them: LASSO and ThiNet.

Shapes: B images, N samples (output pixels of some images), O filters, I or C input channels, K weights of a kernel.

One output pixel of a convolution reads x [I, K] and gives W x. A fit needs only a sum of products of the inputs of N samples,
so time is linear in N and memory does not depend on it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from suite.contract import Planner, PruningPlan, Task
from suite.graph import Graph
from suite.select import channel_planner

DAMPING = 1e-6
"""Of the mean of a matrix's diagonal: added to it, so that a fit with too few samples stays near the weights that it changes."""
IMAGES_AT_ONCE = 100


def plan_by_samples(
    model: nn.Module,
    graph: Graph,
    task: Task,
    layers: Collection[str],
    order: Callable[[Tensor, Tensor], Tensor],
    *,
    images: int,
    positions: int,
) -> Planner:
    """Return a planner that removes the same share of input channels of each layer.

    order(gram_II, w_OIK) gives a layer's channels, the first to go first; gram_II is `channel_products` of its samples.
    """
    weights = {name: model.get_parameter(f"{name}.weight").detach().flatten(2).double() for name in layers}
    pixels = {name: torch.Generator().manual_seed(task.seed) for name in layers}
    gram: dict[str, Tensor] = {}
    for pictures in task.samples(images)[0].split(IMAGES_AT_ONCE):
        for name, conv, x in walk(model, graph, pictures):
            if name in weights:
                products = sampled_products(conv, x, x, positions, pixels[name])
                gram[name] = gram.get(name, 0) + channel_products(products, weights[name], weights[name])
    orders = {name: order(gram[name].cpu(), weights[name].cpu())[None] for name in gram}
    return channel_planner(orders, {name: torch.zeros(graph.convs[name].filters, dtype=torch.int64) for name in orders})


@torch.no_grad()
def refit(
    model: nn.Module,
    graph: Graph,
    plan: PruningPlan,
    task: Task,
    fit: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    *,
    images: int,
    positions: int,
) -> None:
    """Fit the weights of layers that lost channels to their old outputs, in order.

    fit(w_OIK, before_OCK, xx, xy) returns the new w_OIK of the channels that are left, for inputs x from the network that is
    pruned and refitted up to this layer; y are the inputs of all channels before pruning. xx and xy are `sampled_products`.
    """
    pictures, unpruned = task.samples(images)[0], copy.deepcopy(model)
    for name in [str(node.target) for node in graph.nodes if graph.kinds[node] == "conv" and str(node.target) in plan]:
        conv, before = model.get_submodule(name), unpruned.get_submodule(name)
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(before, nn.Conv2d)
        mask_OI = plan[name].mask_OI.to(conv.weight.device)
        conv.weight.mul_(mask_OI[:, :, None, None])
        o, i = mask_OI.any(1).nonzero()[:, 0], mask_OI.any(0).nonzero()[:, 0]
        if len(i) < conv.in_channels and len(o):
            generators = [torch.Generator().manual_seed(task.seed) for _ in range(2)]
            xx = xy = torch.zeros((), dtype=torch.float64, device=conv.weight.device)
            for part in pictures.split(IMAGES_AT_ONCE):
                x, y = (_input(network, graph, part, name) for network in (model, unpruned))
                xx = xx + sampled_products(conv, x[:, i], x[:, i], positions, generators[0])
                xy = xy + sampled_products(conv, x[:, i], y, positions, generators[1])
            w_OIK = fit(conv.weight[o][:, i].flatten(2).double(), before.weight[o].flatten(2).double(), xx, xy)
            conv.weight[o[:, None], i] = w_OIK.to(conv.weight.dtype).unflatten(2, conv.kernel_size)


@torch.no_grad()
def walk(model: nn.Module, graph: Graph, pictures: Tensor) -> Iterator[tuple[str, nn.Conv2d, Tensor]]:
    """Yield layer, convolution and its input [B, C, H, W], in order of execution.

    A convolution runs after its yield, with the weights that it then has.
    """
    runner = fx.Interpreter(graph.bound(model))
    runner.args_iter = iter([pictures])
    for node in graph.nodes:
        if graph.kinds[node] == "conv":
            conv = model.get_submodule(str(node.target))
            assert isinstance(conv, nn.Conv2d)
            yield str(node.target), conv, runner.env[node.all_input_nodes[0]]
        runner.env[node] = runner.run_node(node)
        for used in runner.user_to_last_uses.get(node, []):
            del runner.env[used]


def _input(model: nn.Module, graph: Graph, pictures: Tensor, name: str) -> Tensor:
    """Return the input [B, C, H, W] of a layer."""
    return next(x for layer, _, x in walk(model, graph, pictures) if layer == name)


def sampled_products(conv: nn.Conv2d, x: Tensor, y: Tensor, positions: int, generator: torch.Generator) -> Tensor:
    """Return sums of x (outer) y over random output pixels, float64 [IK, CK].

    Each image has `positions` pixels.

    x [B, I, H, W] and y [B, C, H, W] are inputs of the convolution in two networks; the pixels are the same in both.
    """
    pixels = torch.rand(2, len(x), positions, generator=generator)
    read_x = read(conv, x, pixels)
    return read_x.T @ (read_x if y is x else read(conv, y, pixels))


def read(conv: nn.Conv2d, x: Tensor, pixels: Tensor) -> Tensor:
    """Return the inputs of output pixels of the convolution, float64 [N, IK].

    pixels   [2, B, P], rows and columns of P output pixels of each image, as shares of height and width in [0, 1)
    """
    assert not isinstance(conv.padding, str), "the graph refuses padding by name"
    rows, columns = conv.padding
    padded = F.pad(x, (columns, columns, rows, rows))
    places = []
    for axis in (0, 1):
        taps = torch.arange(conv.kernel_size[axis]) * conv.dilation[axis]
        count = (padded.shape[2 + axis] - int(taps[-1]) - 1) // conv.stride[axis] + 1
        places.append((pixels[axis] * count).long()[:, :, None] * conv.stride[axis] + taps)
    image = torch.arange(len(x))[:, None, None, None]
    patches = padded[image, :, places[0][:, :, :, None], places[1][:, :, None, :]]  # [B, P, kernel, kernel, I]
    return patches.flatten(0, 1).permute(0, 3, 1, 2).flatten(1).double()


def channel_products(products: Tensor, w_OIK: Tensor, v_OCK: Tensor) -> Tensor:
    """Return inner products of outputs, channel i under w, channel c under v [I, C].

    products   [IK, CK], `sampled_products`; the inner product is over samples and filters
    """
    both = products * (w_OIK.flatten(1).T @ v_OCK.flatten(1))
    return both.view(w_OIK.shape[1], w_OIK.shape[2], v_OCK.shape[1], -1).sum((1, 3))


def damped_solve(matrix: Tensor, right: Tensor) -> Tensor:
    """Return the solution of matrix @ z = right, with `DAMPING`."""
    level = DAMPING * matrix.diagonal().mean().clamp(min=torch.finfo(matrix.dtype).tiny)
    return torch.linalg.solve(matrix + level * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device), right)
