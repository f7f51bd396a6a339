"""The look of all figures, in one place: colours that colour-blind readers tell apart, and markers and dashes for grey print."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from suite.files import replacing

DPI = 200
SIZE_IN = (6.8, 4.3)
CAPTION_CHARACTERS = 122
LABEL_CHARACTERS = 24
ENTRY_IN = 0.3
REFERENCE = "0.35"
"""Grey of reference lines and of the unpruned network."""

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#B0578D", "#E69F00", "#56B4E9", "#4D4D4D")
_MARKERS = (("o", 6.0), ("s", 5.6), ("^", 7.0), ("D", 5.4), ("v", 7.0), ("P", 7.0), ("X", 7.0), ("<", 7.0), (">", 7.0))
"""With the size, in points, at which they look equally large."""
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.6)), (0, (5, 1.4, 1.2, 1.4)), (0, (1.2, 1.2)))
"""Okabe and Ito's colours (the purple darkened for white paper). The counts of colours, markers and dashes are coprime, so
combinations repeat late."""

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
    "svg.fonttype": "none",
}


def of_series(index: int) -> dict[str, Any]:
    """Colour, marker and dashes of the `index`-th line of a figure."""
    marker, size = _MARKERS[index % len(_MARKERS)]
    return {
        "color": _COLOURS[index % len(_COLOURS)],
        "marker": marker,
        "markersize": size,
        "linestyle": _DASHES[index % len(_DASHES)],
    }


@contextmanager
def new_figure(entries: int) -> Iterator[Figure]:
    """An empty figure in this style, as high as `entries` of a legend need; drawn with Agg, apart from pyplot's state."""
    width, height = SIZE_IN
    with matplotlib.rc_context(_RC):
        figure = Figure((width, max(height, 1.2 + ENTRY_IN * entries)), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def caption(figure: Figure, text: str) -> None:
    """One small paragraph below the axes; dollar signs in it are dollar signs."""
    wrapped = "\n".join(textwrap.wrap(text, CAPTION_CHARACTERS))
    label = figure.supxlabel(wrapped, x=0.012, ha="left", fontsize=7, color="0.3", linespacing=1.35)
    label.set_parse_math(False)


def legend(figure: Figure) -> None:
    """The legend on the right, outside of the data."""
    found = figure.legend(loc="outside right upper")
    for text in found.get_texts():
        text.set_parse_math(False)


def label(text: str) -> str:
    """`text` in lines that the legend has room for. A leading underscore would hide an entry from it."""
    wrapped = "\n".join(textwrap.wrap(text, LABEL_CHARACTERS))
    return f"\u200b{wrapped}" if wrapped.startswith("_") else wrapped


def save(figure: Figure, path: Path) -> list[Path]:
    """Write PATH.png and PATH.pdf, without dates, so that the same rows give the same files."""
    paths = []
    for suffix, metadata in ((".png", {"Software": None}), (".pdf", {"CreationDate": None, "ModDate": None})):
        target = path.with_name(path.name + suffix)
        with replacing(target) as part:
            figure.savefig(part, format=suffix[1:], metadata=metadata)
        paths.append(target)
    return paths
