"""Layers that DSP prunes, and their learned groups.

Shapes: G filter groups, O filters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from suite.contract import State
from suite.graph import Conv, Graph


def prunable_convs(graph: Graph, groups: int) -> list[Conv]:
    """Every convolution but the stem and the shortcuts, in the order of execution.

    Raises ValueError when there is none, or when one has fewer filters than there are groups.
    """
    convs = [conv for conv in graph.convs.values() if conv.prunable]
    if not convs:
        raise ValueError("the network has no convolution to prune: its only ones are the stem and shortcuts")
    for conv in convs:
        if groups > conv.filters:
            raise ValueError(
                f"groups = {groups} is more than the {conv.filters} filters of {conv.name}; choose at most that"
            )
    return convs


def check_logits(state: State, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Return the logits [G, O] of each layer in a learned state.

    Raises ValueError if the shapes differ from `shapes`.
    """
    logits: Any = state.get("logits")
    if not isinstance(logits, Mapping):
        raise ValueError(f"this is no state of DSP: it holds {sorted(state) or 'nothing'}, not 'logits'")
    if wrong := sorted(logits.keys() ^ shapes.keys()):
        raise ValueError(f"the state belongs to another network: {wrong[0]} is a prunable layer of only one of the two")
    for name, shape in shapes.items():
        if tuple(logits[name].shape) != shape:
            raise ValueError(
                f"the state belongs to another network: logits of {name} are {list(logits[name].shape)}, "
                f"expected {list(shape)} (groups, filters)"
            )
    return dict(logits)


def learned_groups(state: State, graph: Graph, groups: int) -> dict[str, Tensor]:
    """Layer name -> int64 [O], the group of each filter: that of its largest logit."""
    shapes = {conv.name: (groups, conv.filters) for conv in prunable_convs(graph, groups)}
    return {name: logits_GO.argmax(0).cpu() for name, logits_GO in check_logits(state, shapes).items()}
