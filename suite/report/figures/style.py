"""Style of all figures.

Colours are distinct for colour-blind readers; markers and dashes for grey print.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.markers import CARETDOWNBASE, CARETLEFTBASE, CARETRIGHTBASE, CARETUPBASE
from PIL import Image
from scipy.optimize import isotonic_regression

from suite.files import replacing
from suite.report import words

DPI = 200
SIZE_IN = (6.8, 4.3)
CAPTION_CHARACTERS_AN_INCH = 17.5
LABEL_CHARACTERS = 32
ENTRY_IN = 0.3
REFERENCE = "0.35"
"""Grey of reference lines and of the unpruned network."""
FRONT = "0.82"
"""Grey of a Pareto front, behind everything."""
PUBLISHED = "0.25"
"""Grey of published numbers."""
MANY = 8
"""A figure with more lines than this draws thick only those that matter most in it."""
ROOM_IN = 2.0
"""Height that a figure is given for its caption, before its axes are measured."""
LINE_IN = 0.145
"""Height of a line of text that labels a point."""

COLOURS = {
    "blue": "#0072B2",
    "vermilion": "#D55E00",
    "green": "#009E73",
    "purple": "#B0578D",
    "orange": "#E69F00",
    "sky": "#56B4E9",
    "grey": "#4D4D4D",
}
"""Okabe and Ito's colours, the purple darkened for white paper."""
MARKS = {
    "circle": ("o", 6.0),
    "square": ("s", 5.6),
    "up": ("^", 7.0),
    "diamond": ("D", 5.4),
    "down": ("v", 7.0),
    "plus": ("P", 7.0),
    "cross": ("X", 7.0),
    "left": ("<", 7.0),
    "right": (">", 7.0),
    "pentagon": ("p", 6.8),
}
"""With the size, in points, at which they look equally large."""
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.6)), (0, (5, 1.4, 1.2, 1.4)), (0, (1.2, 1.2)))

_ARROWS = ((CARETLEFTBASE, CARETRIGHTBASE), (CARETDOWNBASE, CARETUPBASE))
"""Of a bar that goes on below and above the limits of each axis."""
_HOLLOW = ("o", "s", "^", "D", "v", "p", "h", "<", ">", "8", "d", "*")

_RC: dict[Any, Any] = {
    "figure.dpi": DPI,
    "savefig.dpi": DPI,
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that figures look alike everywhere
    "font.size": 9,
    "axes.labelsize": 9.5,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 3.2,
    "legend.labelspacing": 0.7,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "pdf.fonttype": 42,  # TrueType, which journals ask for
}


def of_series(index: int) -> dict[str, Any]:
    """Return colour, marker and dashes of a line that is no method.

    index  place of the line in its figure
    `looks` has the colours and markers of methods.
    """
    marker, size = list(MARKS.values())[index % len(MARKS)]
    return {
        "color": list(COLOURS.values())[index % len(COLOURS)],
        "marker": marker,
        "markersize": size,
        "linestyle": DASHES[index % len(DASHES)],
        "markeredgecolor": "white",
        "markeredgewidth": 0.7,
    }


def of_source(index: int) -> dict[str, Any]:
    """Return the hollow mark of the `index`-th source of published numbers.

    Measured points are filled.
    """
    marker = _HOLLOW[index % len(_HOLLOW)]
    return {
        "linestyle": "none",
        "marker": marker,
        "markerfacecolor": "none",
        "markeredgecolor": PUBLISHED,
        "markersize": 5.2,
    }


@dataclass(frozen=True, kw_only=True)
class Picture:
    """Written figure."""

    data: str
    model: str
    name: str
    """Of its files, without the suffix."""
    title: str
    caption: str
    paths: tuple[Path, ...]


@contextmanager
def new_figure(entries: int) -> Iterator[Figure]:
    """Yield an empty figure in this style, high enough for `entries` of a legend.

    The figure is drawn by Agg, without the state of pyplot.
    """
    width, height = SIZE_IN
    with matplotlib.rc_context(_RC):
        layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06)
        figure = Figure((width, max(height, 1.2 + ENTRY_IN * entries)), layout=layout)
        FigureCanvasAgg(figure)
        yield figure


def caption(figure: Figure, text: str) -> None:
    """Write a small paragraph below the axes; dollar signs are literal."""
    wrapped = "\n".join(textwrap.wrap(text, int(CAPTION_CHARACTERS_AN_INCH * figure.get_figwidth())))
    label = figure.supxlabel(wrapped, x=0.012, ha="left", fontsize=7, color="0.3", linespacing=1.35)
    label.set_parse_math(False)


def fit(figure: Figure, axes: Axes, height_in: float) -> None:
    """Set the height of the figure so that these axes have height `height_in`."""
    figure.set_figheight(figure.get_figheight() + ROOM_IN)  # a long caption would leave the axes no height to measure
    figure.draw_without_rendering()
    now = axes.get_position().height * figure.get_figheight()
    figure.set_figheight(figure.get_figheight() + height_in - now)


def legend(figure: Figure, place: str = "outside right upper", **more: Any) -> None:
    """Draw a legend outside of the data, with each label once."""
    entries: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(name, handle)
    if entries:
        small = {"fontsize": 7.5, "labelspacing": 0.45} if len(entries) > MANY else {}
        box = figure.legend(list(entries.values()), list(entries), loc=place, **(small | more))  # type: ignore[call-overload]
        for text in box.get_texts():
            text.set_parse_math(False)


@dataclass(frozen=True)
class End:
    """Last point of a line, in data units, with its name."""

    text: str
    x: float
    y: float
    look: dict[str, Any]


def name_ends(figure: Figure, axes: Axes, ends: Sequence[End], height_in: float) -> None:
    """Write the names of lines right of the axes, near their last points.

    Each has its mark and a thin leader; names do not overlap.

    Called when all else is drawn. The axes get the height `height_in`, or what the names need.
    """
    names = [label(end.text) for end in ends]
    needed = np.array([LINE_IN * (1 + name.count("\n")) for name in names])
    height_in = max(height_in, needed.sum())
    heights = needed / height_in
    to_axes = axes.transScale + axes.transLimits
    targets = np.array([to_axes.transform((end.x, end.y))[1] for end in ends])
    for end, name, y in zip(ends, names, spread(targets, heights, -0.03, 1.03), strict=True):
        colour = end.look["color"]
        leader = {"arrowstyle": "-", "color": colour, "linewidth": 0.5, "alpha": 0.55, "shrinkA": 0, "shrinkB": 3}
        axes.annotate("", (end.x, end.y), (1.022, y), textcoords="axes fraction", arrowprops=leader)
        mark = {**end.look, "markersize": 0.8 * end.look["markersize"], "linestyle": "none"}
        axes.plot([1.032], [y], **mark, transform=axes.transAxes, clip_on=False)
        where: dict[str, Any] = {"ha": "left", "va": "center", "transform": axes.transAxes}
        axes.text(1.055, y, name, **where, fontsize=7.5, parse_math=False, color="0.1", linespacing=1.0)
    fit(figure, axes, height_in)


def spread(targets: np.ndarray, heights: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return places without overlap for labels, nearest to the `targets`.

    The distance is least squares.

    They keep their order and lie between `low` and `high` where there is room.
    """
    order = np.argsort(targets, kind="stable")
    gaps = (heights[order][1:] + heights[order][:-1]) / 2
    offsets = np.concatenate([[0.0], np.cumsum(gaps)])
    starts = np.clip(isotonic_regression(targets[order] - offsets).x, low, max(low, high - offsets[-1]))
    placed = np.empty_like(offsets)
    placed[order] = starts + offsets
    return placed


def arms(middle: pd.Series, low: pd.Series, high: pd.Series) -> list[pd.Series]:
    """Return the lengths of error bars below and above; 0 if the middle lies outside."""
    return [(middle - low).clip(lower=0), (high - middle).clip(lower=0)]


def mark_cut_bars(axes: Axes) -> bool:
    """Mark error bars that leave the axes; return True if there are any.

    The mark is a hollow arrow at the edge.
    """
    marks: set[tuple[int, tuple[float, float], Any]] = set()
    axes.get_xlim(), axes.get_ylim()  # automatic limits are computed only when they are read
    bars = [lines for each in axes.containers if isinstance(each, ErrorbarContainer) for lines in each[2]]
    for lines in bars:
        colour = tuple(lines.get_color()[0])
        for segment in (each for each in lines.get_segments() if len(each)):  # an absent bar is empty
            ends = axes.transAxes.inverted().transform(lines.get_transform().transform(segment))
            inside = np.clip(ends, 0, 1)
            if not np.allclose(inside[0], inside[1]):  # else the whole bar is outside
                cut = np.argwhere(np.abs(ends - inside) > 1e-9)
                marks |= {(_ARROWS[axis][int(ends[end, axis] > 1)], tuple(inside[end]), colour) for end, axis in cut}
    for arrow, (x, y), colour in sorted(marks):
        look: dict[str, Any] = {"markersize": 4.5, "markerfacecolor": "white", "markeredgewidth": 0.8, "zorder": 5}
        axes.plot([x], [y], marker=arrow, color=colour, **look, transform=axes.transAxes, clip_on=False)
    return bool(marks)


def label(text: str) -> str:
    """Wrap `text` for the legend; a leading underscore would hide the entry."""
    wrapped = "\n".join(textwrap.wrap(text, LABEL_CHARACTERS))
    return f"\u200b{wrapped}" if wrapped.startswith("_") else wrapped


def finish(figure: Figure, path: Path, text: str, arrange: Callable[[], None] = lambda: None) -> tuple[Path, ...]:
    """Caption a drawn figure, arrange it, and save it as PATH.png and PATH.pdf.

    arrange   called between caption and saving: heights that depend on the caption
    """
    caption(figure, text)
    arrange()
    return tuple(save(figure, path))


def picture(
    figure: Figure,
    folder: Path,
    points: pd.DataFrame,
    *,
    kind: str,
    further: Sequence[str] = (),
    title: str,
    caption_text: str,
    arrange: Callable[[], None] = lambda: None,
) -> Picture:
    """Finish the figure of one network in `folder` and describe it for the page.

    points   lines of the network, with `data` and `model`
    kind     first part of the file's name; `further` are its last parts, after data and model
    """
    data, model = (str(points[name].iloc[0]) for name in ("data", "model"))
    name = words.file_name(kind, data, model, *further)
    cut = [mark_cut_bars(axes) for axes in figure.axes]
    if any(cut):
        caption_text += " Hollow arrows at an edge: bars that go on."
    paths = finish(figure, folder / name, caption_text, arrange)
    return Picture(data=data, model=model, name=name, title=title, caption=caption_text, paths=paths)


def save(figure: Figure, path: Path) -> list[Path]:
    """Write PATH.png and PATH.pdf, without dates: equal rows give equal files.

    PNGs have a palette: a third of the bytes, which are kept under version control, and no visible difference.
    """
    paths = [path.with_name(f"{path.name}{suffix}") for suffix in (".png", ".pdf")]
    with replacing(paths[0]) as part, BytesIO() as drawn:
        figure.savefig(drawn, format="png")
        image = (
            Image.open(drawn)
            .convert("RGB")
            .quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=5000, dither=Image.Dither.NONE)
        )
        image.save(part, format="png", optimize=True, dpi=(DPI, DPI))
    figure.set_layout_engine("none")  # as it is
    with replacing(paths[1]) as part:
        figure.savefig(part, format="pdf", metadata={"CreationDate": None, "ModDate": None})
    return paths
