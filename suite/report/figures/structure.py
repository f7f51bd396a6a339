"""The structure of a pruned network as a picture, from its plan alone.

A row is a convolution, and its width stands for its filters: a piece for every filter group, as wide as the group has
filters, filled as high as the group still reads channels. The filled area is then the share of kernels, and of the layer's
MACs, that is left. Panels on the right show the same channels on an axis, and the removed share of the layer's MACs.

Groups of different layers have nothing to do with each other: in each layer the darkest is the one that reads most.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from suite import models, pack, records, registry
from suite.contract import ConvPlan, PruningPlan
from suite.graph import Conv, Graph
from suite.report import words
from suite.report.figures import style

log = logging.getLogger(__name__)

WIDTH_IN = 7.2
ROW_IN = (0.165, 0.32)
"""Height of a row: that of a very deep network, that of a small one."""
ROWS_IN = 5.0
"""What all rows together take where the height of a row lies between the two."""
FILLED = 0.84
"""Share of a row's height that is drawn on."""
NAMED_GROUPS = 8
"""With more groups in a layer, the legend has the first and the last."""
REMOVED_CHANNELS = "0.9"
REMOVED_FILTERS: dict[str, Any] = {"facecolor": "white", "edgecolor": "0.55", "hatch": "//////", "linewidth": 0.5}
PACKED_NAME = "packed.safetensors"


@dataclass(frozen=True)
class Layer:
    """Remaining share of a convolution."""

    conv: Conv
    groups: tuple[tuple[float, float], ...]
    """(share of the filters, share of the channels that they read) of each group; what reads most comes first."""

    @property
    def removed_filters(self) -> float:
        """Share of the filters that are removed."""
        return 1 - sum(filters for filters, _ in self.groups)

    @property
    def removed_macs(self) -> float:
        """Share of the MACs, which is that of the kernels, that is removed."""
        return 1 - sum(filters * channels for filters, channels in self.groups)


def layers(plan: PruningPlan, graph: Graph) -> list[Layer]:
    """Return all convolutions in order of execution, after dead filters are removed.

    Raises ValueError when the plan is not one of this network.
    """
    live = graph.live(plan).layers
    return [Layer(conv, _groups(live[name], conv)) for name, conv in graph.convs.items()]


def _groups(plan: ConvPlan, conv: Conv) -> tuple[tuple[float, float], ...]:
    shares = [(len(filters) / conv.filters, len(channels) / conv.channels) for filters, channels in plan.groups]
    return tuple(sorted(shares, key=lambda group: (-group[1], -group[0])))


# ---- drawing ---------------------------------------------------------------------------------------------------------


def write(plan: PruningPlan, graph: Graph, caption: str, path: Path) -> list[Path]:
    """Draw the figure and write PATH.png and PATH.pdf.

    Raises ValueError if the plan is not one of this network.
    """
    with style.new_figure(entries=0) as figure:
        draw(figure, plan, graph)
        return list(style.finish(figure, path, caption))


def draw(figure: Figure, plan: PruningPlan, graph: Graph) -> None:
    """Draw the structure that `plan` leaves of the network.

    `figure` is empty (`style.new_figure`).
    """
    rows = layers(plan, graph)
    most = max(len(row.groups) for row in rows)
    colours = [colour(index, most) for index in range(most)]
    height = min(ROW_IN[1], max(ROW_IN[0], ROWS_IN / len(rows)))
    figure.set_size_inches(WIDTH_IN, 1.35 + height * len(rows))
    shapes, kept, removed = figure.subplots(1, 3, sharey=True, width_ratios=(5, 2.6, 1.5))
    with matplotlib.rc_context({"hatch.linewidth": 0.6}):
        for y, row in enumerate(rows):
            _draw_shape(shapes, y, row, colours)
            _draw_kept(kept, y, row, colours)
            _draw_gone(removed, y, row)
        _label(figure, (shapes, kept, removed), rows)
        figure.legend(handles=_legend(colours), loc="outside upper left", ncols=5, fontsize=7.5, columnspacing=1.2)


def colour(index: int, count: int) -> str:
    """Return the colour of the `index`-th of `count` groups, dark to light."""
    return to_hex(matplotlib.colormaps["cividis"](0.82 * index / max(count - 1, 2)))


def _draw_shape(axes: Axes, y: int, row: Layer, colours: Sequence[str]) -> None:
    left, top = 0.0, y - FILLED / 2
    for (filters, channels), fill in zip(row.groups, colours, strict=False):
        filled = FILLED * channels
        axes.add_patch(Rectangle((left, top), filters, FILLED, facecolor=REMOVED_CHANNELS))
        axes.add_patch(Rectangle((left, top + FILLED - filled), filters, filled, facecolor=fill))
        left += filters
        axes.plot([left, left], [top, top + FILLED], color="white", linewidth=0.6, solid_capstyle="butt")
    if left < 1 - 1e-9:
        axes.add_patch(Rectangle((left, top), 1 - left, FILLED, **REMOVED_FILTERS))


def _draw_kept(axes: Axes, y: int, row: Layer, colours: Sequence[str]) -> None:
    channels = [group[1] for group in row.groups]
    heights = [y + FILLED / 2 * ((index + 0.5) / len(channels) - 0.5) for index in range(len(channels))]
    axes.plot([0, max(channels, default=0)], [y, y], color="0.8", linewidth=0.6, zorder=1)
    axes.scatter(
        channels,
        heights,  # equal groups stand above each other
        s=[8 + 40 * filters for filters, _ in row.groups],
        c=colours[: len(channels)],
        edgecolors="white",
        linewidths=0.5,
        zorder=2,
        clip_on=False,
    )


def _draw_gone(axes: Axes, y: int, row: Layer) -> None:
    axes.add_patch(Rectangle((0, y - FILLED / 2), 1, FILLED, facecolor="none", edgecolor="0.8", linewidth=0.4))
    axes.add_patch(Rectangle((0, y - FILLED / 2), row.removed_macs, FILLED, facecolor="0.5"))
    axes.text(1.06, y, f"{100 * row.removed_macs:.0f}", va="center", fontsize=6.5, color="0.25")


def _label(figure: Figure, panels: Sequence[Axes], rows: Sequence[Layer]) -> None:
    shapes, kept = panels[:2]
    names = [f"{row.conv.name}  {row.conv.filters} × {row.conv.channels}" for row in rows]
    shapes.set_yticks(range(len(rows)), names, fontsize=6.5)
    for label, row in zip(shapes.get_yticklabels(), rows, strict=True):
        label.set_color("black" if row.conv.prunable else "0.5")
        label.set_parse_math(False)
    shapes.set_ylim(len(rows) - 0.4, -0.6)
    titles = ("filters by group; filled: channels read", "channels read", "MACs removed")
    for axes, title in zip(panels, titles, strict=True):
        axes.set_xlim(0, 1)
        axes.set_xticks([0, 0.5, 1], ["0", "50", "100 %"], fontsize=7)
        axes.set_title(title, fontsize=8, loc="left")
        axes.tick_params(length=0)
        axes.spines[["left", "bottom"]].set_visible(False)
        axes.grid(visible=False)
    kept.grid(visible=True, axis="x")


def _legend(colours: Sequence[str]) -> list[Patch]:
    most = len(colours)
    shown = range(most) if most <= NAMED_GROUPS else (0, most - 1)
    names = ["group 1 (reads most)", *(f"group {number}" for number in range(2, most + 1))]
    return [
        *(Patch(color=colours[index], label=names[index]) for index in shown),
        Patch(facecolor=REMOVED_CHANNELS, label="channels removed"),
        Patch(label="filters removed", **REMOVED_FILTERS),
    ]


# ---- from a run ------------------------------------------------------------------------------------------------------


def draw_all(runs: pd.DataFrame, results: Path, folder: Path) -> list[style.Picture]:
    """Draw one finished run of each network that has a packed network.

    It is the first one that can be read, of a method with filter groups if there is one; methods that remove nothing are left
    out. `runs` are those of `frames`.
    """
    done = runs[(runs["status"] == "done") & runs["removes"].astype(bool)]
    first = done.assign(whole=done["granularity"] != "intra_channel").sort_values(["whole", "seed"], kind="stable")
    pictures: dict[tuple[str, str], style.Picture] = {}
    for run in first.to_dict("records"):
        path, network = _packed(run["key"], results), (run["data"], run["model"])
        if network in pictures or not path.is_file():
            continue
        try:
            pictures[network] = _of_run(run, *read(path), folder)
        except ValueError as error:
            log.warning("no structure of %s is drawn: %s", run["key"], error)
    return list(pictures.values())


def _of_run(run: dict[Hashable, Any], plan: PruningPlan, graph: Graph, folder: Path) -> style.Picture:
    about = _caption(plan, graph, f"{run['label']}, {run['key']}")
    text = f"{about} n = 1 run. T{words.trained(pd.DataFrame([run]))[1:]}."
    title = f"What is left of the network: {run['short']}, {words.budget(run['budget'], run['budget_scope'])}"
    with style.new_figure(entries=0) as figure:
        draw(figure, plan, graph)
        return style.picture(figure, folder, pd.DataFrame([run]), kind="structure", title=title, caption_text=text)


def read(path: Path) -> tuple[PruningPlan, Graph]:
    """Return the plan of a packed network and the graph of its dense one.

    Raises ValueError if the file is no packed network.
    """
    about = pack.header(path)
    try:
        return pack.plan_of(path), _graph(about["model"], about["classes"], tuple(about["input_shape"]))
    except KeyError as error:
        raise ValueError(f"{path} lacks its {error}") from error


@registry.cached
def _graph(model: str, classes: int, input_shape: tuple[int, int, int]) -> Graph:
    """Build the graph of a network by name."""
    with torch.device("meta"):
        network = models.build(model, classes)
    return Graph(network, input_shape)


def _packed(key: str, results: Path) -> Path:
    return records.output_folder(results, key) / PACKED_NAME


def report(path_or_key: str, results: Path) -> list[Path]:
    """Draw a packed network, given its file or the key of its run.

    The files are in `results`/structure.

    Raises ValueError when there is no such run or the file is no packed network.
    """
    path = find(path_or_key, results)
    packed, about = pack.load(path), pack.header(path)
    graph = _graph(about["model"], about["classes"], tuple(about["input_shape"]))
    name = path.resolve().parent.name if path.name == PACKED_NAME else path.stem
    caption = _caption(packed.plan, graph, f"{about.get('label', about['model'])}, {name}")
    return write(packed.plan, graph, caption, results / "structure" / words.file_name(name))


def find(path_or_key: str, results: Path) -> Path:
    """Return the file of a packed network.

    Raises ValueError if there is none.
    """
    if re.fullmatch(r"[a-z]+-[0-9a-f]{12}", path_or_key) and not Path(path_or_key).is_file():
        path = _packed(path_or_key, results)
        if not path.is_file():
            count = len(list((results / "work").glob(f"*/{PACKED_NAME}")))
            raise ValueError(f"{path_or_key} has no packed network in {results / 'work'}, where {count} others are")
        return path
    if not Path(path_or_key).is_file():
        raise ValueError(f"{path_or_key} is neither a file nor a run's key, such as pruned-0123456789ab")
    return Path(path_or_key)


def _caption(plan: PruningPlan, graph: Graph, name: str) -> str:
    removed = [row.removed_filters for row in layers(plan, graph)]
    return (
        f"{name}: {100 * graph.cut(plan):.2f} % of the network's MACs are removed, {100 * graph.cut(plan, 'prunable'):.2f} % of "
        f"the prunable convolutions'; {sum(share > 0 for share in removed)} of {len(removed)} layers lose filters. Behind a "
        "layer's name: its filters × channels before pruning; grey names: stem and shortcuts. The filled area is the share of "
        "the layer's MACs that is left; a dot is a filter group, larger with more filters."
    )
