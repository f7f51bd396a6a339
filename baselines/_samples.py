"""What methods share that fit layers to sampled inputs: LASSO and ThiNet.

Shapes: B images, N samples (output pixels of some images), O filters, I or C input channels, K weights of a kernel.

One output pixel of a convolution reads x [I, K] and gives W x. All that a fit needs to know of N samples is a sum of
products of what they read, so that time is linear in N and memory does not depend on it.
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
    """A planner that removes the same share of the input channels of each of `layers`.

    order(gram_II, w_OIK) gives a layer's channels, the first to go first; gram_II is `channel_products` of its samples.
    """
    orders = {}
    for name, conv, x in walk(model, graph, task.samples(images)[0]):
        if name in layers:
            w_OIK = conv.weight.detach().flatten(2).double()
            gram_II = channel_products(sampled_products(conv, x, x, positions, task.seed), w_OIK, w_OIK)
            orders[name] = order(gram_II.cpu(), w_OIK.cpu())[None]
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
    """Change the weights of all layers that lost channels, in order of execution, so that they give what they gave before.

    fit(w_OIK, before_OCK, xx, xy) gives the new w_OIK: those of the channels that are left, for inputs x from the network
    pruned and refitted so far; y are the inputs that all channels had before. xx and xy are `sampled_products`.
    """
    pictures, unpruned = task.samples(images)[0], copy.deepcopy(model)
    for (name, conv, x), (_, before, y) in zip(
        walk(model, graph, pictures), walk(unpruned, graph, pictures), strict=True
    ):
        if name not in plan:
            continue
        mask_OI = plan[name].mask_OI.to(x.device)
        conv.weight.mul_(mask_OI[:, :, None, None])
        o, i = mask_OI.any(1).nonzero()[:, 0], mask_OI.any(0).nonzero()[:, 0]
        if len(i) < conv.in_channels and len(o):
            xx, xy = (sampled_products(conv, x[:, i], other, positions, task.seed) for other in (x[:, i], y))
            w_OIK = fit(conv.weight[o][:, i].flatten(2).double(), before.weight[o].flatten(2).double(), xx, xy)
            conv.weight[o[:, None], i] = w_OIK.to(conv.weight.dtype).unflatten(2, conv.kernel_size)


@torch.no_grad()
def walk(model: nn.Module, graph: Graph, pictures: Tensor) -> Iterator[tuple[str, nn.Conv2d, Tensor]]:
    """(layer, its convolution, its input [B, C, H, W]) in order of execution.

    A convolution is done after it was yielded, with the weights that it has by then.
    """
    runner = fx.Interpreter(model, graph=graph.fx_graph)
    runner.args_iter = iter([pictures])
    for node in graph.nodes:
        if graph.kinds[node] == "conv":
            conv = model.get_submodule(str(node.target))
            assert isinstance(conv, nn.Conv2d)
            yield str(node.target), conv, runner.env[node.all_input_nodes[0]]
        runner.env[node] = runner.run_node(node)
        for used in runner.user_to_last_uses.get(node, []):
            del runner.env[used]


def sampled_products(conv: nn.Conv2d, x: Tensor, y: Tensor, positions: int, seed: int) -> Tensor:
    """Sum over the samples of x (outer) y, float64 [IK, CK]: what `positions` random output pixels of each image read.

    x [B, I, H, W] and y [B, C, H, W] are inputs of the convolution in two networks; the pixels are the same in both.
    """
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    for some_x, some_y in zip(x.split(IMAGES_AT_ONCE), y.split(IMAGES_AT_ONCE), strict=True):
        pixels = torch.rand(2, len(some_x), positions, generator=generator)
        read_x = read(conv, some_x, pixels)
        total = total + read_x.T @ (read_x if y is x else read(conv, some_y, pixels))
    return total


def read(conv: nn.Conv2d, x: Tensor, pixels: Tensor) -> Tensor:
    """What output pixels of the convolution read, float64 [N, IK].

    pixels   [2, B, P], rows and columns of P output pixels of each image, as shares of height and width in [0, 1)
    """
    padded = F.pad(x, conv._reversed_padding_repeated_twice)
    places = []
    for axis in (0, 1):
        taps = torch.arange(conv.kernel_size[axis]) * conv.dilation[axis]
        count = (padded.shape[2 + axis] - int(taps[-1]) - 1) // conv.stride[axis] + 1
        places.append((pixels[axis] * count).long()[:, :, None] * conv.stride[axis] + taps)
    image = torch.arange(len(x))[:, None, None, None]
    found = padded[image, :, places[0][:, :, :, None], places[1][:, :, None, :]]  # [B, P, kernel, kernel, I]
    return found.flatten(0, 1).permute(0, 3, 1, 2).flatten(1).double()


def channel_products(products: Tensor, w_OIK: Tensor, v_OCK: Tensor) -> Tensor:
    """[I, C]: sums over the samples and filters of what channel i adds to the output with w, times what c adds with v.

    products   [IK, CK], `sampled_products`
    """
    both = products * (w_OIK.flatten(1).T @ v_OCK.flatten(1))
    return both.view(w_OIK.shape[1], w_OIK.shape[2], v_OCK.shape[1], -1).sum((1, 3))


def damped_solve(matrix: Tensor, right: Tensor) -> Tensor:
    """The solution of matrix @ z = right, with `DAMPING`."""
    level = DAMPING * matrix.diagonal().mean().clamp(min=torch.finfo(matrix.dtype).tiny)
    return torch.linalg.solve(matrix + level * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device), right)
