"""Table of supported networks beside Torch-Pruning, in suite/models/README.md; `python tests/coverage_table.py`.

Each network of a family and of an idiom gets a random plan of every granularity. A cell is "exact" if the packed network equals
the masked one in float64. Torch-Pruning removes filters of the same network by magnitude; its cell is "exact" if its result
equals the network with the same filters masked. Without the package its column stays as it is in the file.
"""

from __future__ import annotations

import argparse
import copy
import functools
import re
import signal
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from families import FAMILIES, IDIOM_SHAPE, IDIOMS, Net, draw_weights, family, masked, random_plan
from torch import Tensor, nn

import suite
from suite.graph import Graph
from suite.measure.counting import count_macs, count_params
from suite.pack import check_dense, pack
from suite.select import filter_planner

PAGE = Path(suite.__file__).parent / "models" / "README.md"
TABLE = re.compile(r"(?<=<!-- python tests/coverage_table\.py -->\n)(?:\|.*\n)*")
GRANULARITIES = ("filter", "channel", "intra_channel")
LIMIT_S = 60
"""CPU seconds until Torch-Pruning must have pruned a network."""
NONE = "–"
"""A cell without a value."""
Shape = tuple[int, int, int]


def networks() -> dict[str, Callable[[], tuple[nn.Module, Shape]]]:
    """Return name of a row -> the network with random weights in float64, and the shape of its images."""
    rows: dict[str, Callable[[], tuple[nn.Module, Shape]]] = {}
    for name in FAMILIES:
        rows[name] = functools.partial(family, name)
    for name in IDIOMS:
        rows[f"idiom: {name}"] = functools.partial(_idiom, name)
    return rows


def _idiom(name: str) -> tuple[nn.Module, Shape]:
    return draw_weights(Net(name)), IDIOM_SHAPE


@torch.no_grad()
def own_cells(model: nn.Module, shape: Shape) -> list[str]:
    """Return the cell of each granularity, and the reach."""
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1)).double()
    try:
        graph = Graph(model, shape)
        check_dense(model, graph)
    except ValueError:
        return [*["refused"] * len(GRANULARITIES), NONE]
    plans = [random_plan(graph, granularity, 2, 0.4, seed) for seed, granularity in enumerate(GRANULARITIES)]
    cells = [_agreement(pack(model, graph, plan)(x), masked(model, graph, plan)(x)) for plan in plans]
    scores = {name: torch.arange(conv.filters).double() for name, conv in graph.convs.items()}
    return [*cells, f"{graph.cut(filter_planner(graph, scores, ranking='global')(1.0)):.0%}"]


def _agreement(got: Tensor, expected: Tensor) -> str:
    error = float((got - expected).abs().max()) if got.shape == expected.shape else float("inf")
    return "exact" if error <= 1e-9 * max(1.0, float(expected.abs().max())) else "differs"


def their_cells(model: nn.Module, shape: Shape) -> list[str]:
    """Return the result of Torch-Pruning (exact, differs, or the class of its error), and its reach."""
    result = _within_limit(lambda: _their_agreement(copy.deepcopy(model), shape))
    if result.startswith("fails"):
        return [result, NONE]
    reach = _within_limit(lambda: _their_reach(copy.deepcopy(model), shape))
    return [result, NONE if reach.startswith("fails") else reach]


def _within_limit(work: Callable[[], str]) -> str:
    """Return the result, or the class of the error."""
    signal.signal(signal.SIGPROF, _stop)
    signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
    try:
        return work()
    except TimeoutError:
        return "fails: no end"
    except Exception as error:  # the package raises errors of any class
        return f"fails: {type(error).__name__}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _pruner(model: nn.Module, image: Tensor, **ratios: Any) -> Any:
    import torch_pruning as tp

    heads = [module for module in model.modules() if isinstance(module, nn.Linear)][-1:]
    importance = tp.importance.MagnitudeImportance(p=1)
    return tp.pruner.MagnitudePruner(model, image, importance=importance, ignored_layers=heads, **ratios)


def _their_agreement(model: nn.Module, shape: Shape) -> str:
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1)).double()
    reference = copy.deepcopy(model)
    names = {module: name for name, module in model.named_modules()}
    before = count_params(model)
    groups = list(_pruner(model, x[:1], pruning_ratio=0.4).step(interactive=True))
    for group in groups:
        for dependency, filters in group:
            _mask(reference, names.get(dependency.target.module, ""), dependency.handler.__name__, filters)
    for group in groups:
        group.prune()
    with torch.no_grad():
        got, expected = model(x), reference(x)
    return "removes nothing" if count_params(model) == before else _agreement(got, expected)


def _their_reach(model: nn.Module, shape: Shape) -> str:
    """Return the cut if one filter stays in each layer, in percent."""
    dense = count_macs(model, shape).macs
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    ratios = {layer: 1 - 1.5 / len(layer.weight) for layer in layers}  # the package rounds kept filters down
    _pruner(model, torch.zeros(1, *shape).double(), pruning_ratio=0.5, pruning_ratio_dict=ratios).step()
    return f"{1 - count_macs(model, shape).macs / dense:.0%}"


def _stop(*_: object) -> None:
    raise TimeoutError


@torch.no_grad()
def _mask(reference: nn.Module, name: str, handler: str, filters: list[int]) -> None:
    """Set the filters that a handler removes to zero, in place."""
    module: Any = reference.get_submodule(name)
    if name and "out_channels" in handler and getattr(module, "weight", None) is not None:
        for tensor in (module.weight, module.bias):
            if tensor is not None:
                tensor[filters] = 0


def rows(theirs: Mapping[str, list[str]]) -> Iterator[str]:
    """Yield the lines of the table.

    theirs  name of a row -> Torch-Pruning's cells; absent ones are computed
    """
    heading = theirs.get("network") or [f"Torch-Pruning {metadata.version('torch-pruning')}", "reach"]
    yield f"| network | {' | '.join((*GRANULARITIES, 'reach', *heading))} |".replace("intra_channel", "intra-channel")
    yield "|---|---|---|---|---|---|---|"
    for name, build in networks().items():
        with torch.random.fork_rng():
            model, shape = build()
        cells = theirs.get(name) or their_cells(model, shape)  # first: `Graph` makes linear layers convolutions
        yield f"| {name} | {' | '.join((*own_cells(model, shape), *cells))} |"


def stored() -> dict[str, list[str]]:
    """Return name of a row -> its cells, from the page; the first row is the heading."""
    found = TABLE.search(PAGE.read_text())
    assert found is not None, f"{PAGE} has no place for the table"
    lines = [[cell.strip() for cell in line.strip("| ").split("|")] for line in found[0].splitlines()]
    return {line[0]: line[1:] for line in lines if not line[0].startswith("-")}


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--own", action="store_true", help="keep the columns of Torch-Pruning")
    theirs: dict[str, list[str]] = {}
    try:
        import torch_pruning  # noqa: F401

        own = parser.parse_args().own
    except ImportError:
        own = True
    if own:
        theirs = {name: cells[-2:] for name, cells in stored().items()}
    table = "".join(f"{line}\n" for line in rows(theirs))
    PAGE.write_text(TABLE.sub(lambda _: table, PAGE.read_text()))


if __name__ == "__main__":
    main()
