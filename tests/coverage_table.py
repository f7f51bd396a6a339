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
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from families import FAMILIES, IDIOM_SHAPE, IDIOMS, Net, draw_weights, family, masked, random_plan
from torch import Tensor, nn

import suite
from suite.graph import Graph
from suite.pack import check_dense, pack

PAGE = Path(suite.__file__).parent / "models" / "README.md"
TABLE = re.compile(r"(?<=<!-- python tests/coverage_table\.py -->\n)(?:\|.*\n)*")
GRANULARITIES = ("filter", "channel", "intra_channel")
LIMIT_S = 60
"""CPU seconds until Torch-Pruning must have pruned a network."""
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
    """Return the cell of each granularity."""
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1)).double()
    try:
        graph = Graph(model, shape)
        check_dense(model, graph)
    except ValueError:
        return ["refused"] * len(GRANULARITIES)
    plans = [random_plan(graph, granularity, 2, 0.4, seed) for seed, granularity in enumerate(GRANULARITIES)]
    return [_agreement(pack(model, graph, plan)(x), masked(model, graph, plan)(x)) for plan in plans]


def _agreement(got: Tensor, expected: Tensor) -> str:
    error = float((got - expected).abs().max()) if got.shape == expected.shape else float("inf")
    return "exact" if error <= 1e-9 * max(1.0, float(expected.abs().max())) else "differs"


def their_cell(model: nn.Module, shape: Shape) -> str:
    """Return the result of Torch-Pruning: exact, differs, or the class of its error."""
    import torch_pruning as tp

    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1)).double()
    model, reference = copy.deepcopy(model), copy.deepcopy(model)
    names = {module: name for name, module in model.named_modules()}
    before = sum(parameter.numel() for parameter in model.parameters())
    signal.signal(signal.SIGPROF, _stop)
    signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
    try:
        pruner = tp.pruner.MagnitudePruner(
            model,
            x[:1],
            importance=tp.importance.MagnitudeImportance(p=1),
            pruning_ratio=0.4,
            ignored_layers=[module for module in model.modules() if isinstance(module, nn.Linear)][-1:],
        )
        groups = list(pruner.step(interactive=True))
        for group in groups:
            for dependency, filters in group:
                _mask(reference, names.get(dependency.target.module, ""), dependency.handler.__name__, filters)
        for group in groups:
            group.prune()
        with torch.no_grad():
            got, expected = model(x), reference(x)
    except TimeoutError:
        return "fails: no end"
    except Exception as error:  # the package raises errors of any class
        return f"fails: {type(error).__name__}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    if sum(parameter.numel() for parameter in model.parameters()) == before:
        return "removes nothing"
    return _agreement(got, expected)


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


def rows(theirs: dict[str, str]) -> Iterator[str]:
    """Yield the lines of the table.

    theirs  name of a row -> Torch-Pruning's cell; absent ones are computed
    """
    version = theirs.get("version") or metadata.version("torch-pruning")
    yield f"| network | {' | '.join(GRANULARITIES)} | Torch-Pruning {version} |".replace(
        "intra_channel", "intra-channel"
    )
    yield "|---|---|---|---|---|"
    for name, build in networks().items():
        with torch.random.fork_rng():
            model, shape = build()
        cell = theirs.get(name) or their_cell(model, shape)
        yield f"| {name} | {' | '.join(own_cells(model, shape))} | {cell} |"


def stored() -> dict[str, list[str]]:
    """Return name of a row -> its cells, from the page; the first row is the heading."""
    found = TABLE.search(PAGE.read_text())
    assert found is not None, f"{PAGE} has no place for the table"
    lines = [[cell.strip() for cell in line.strip("| ").split("|")] for line in found[0].splitlines()]
    return {line[0]: line[1:] for line in lines if not line[0].startswith("-")}


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--own", action="store_true", help="keep the column of Torch-Pruning")
    theirs: dict[str, str] = {}
    try:
        import torch_pruning  # noqa: F401

        own = parser.parse_args().own
    except ImportError:
        own = True
    if own:
        theirs = {name: cells[-1] for name, cells in stored().items()}
        theirs["version"] = theirs["network"].removeprefix("Torch-Pruning ")
    table = "".join(f"{line}\n" for line in rows(theirs))
    PAGE.write_text(TABLE.sub(lambda _: table, PAGE.read_text()))


if __name__ == "__main__":
    main()
