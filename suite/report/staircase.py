"""`python -m suite.report.staircase`: draw the staircases in RESULTS/staircase, as `suite.measure.staircase` wrote them."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import pandas as pd
from rich.console import Console

from suite import jsonfile
from suite.report.figures import style


class Geometry(TypedDict):
    """Fields of `suite.measure.staircase.Layer` that the caption names."""

    filters: int
    channels: int
    kernel: int
    size: int
    batch: int
    stride: int


class Device(TypedDict):
    """Part of a provenance."""

    device: str


class Conditions(TypedDict):
    """Content of a staircase's JSON file."""

    layer: Geometry
    provenance: Device


COLUMNS = {"layout": str, "precision": str, "channels": float, "ms": float}
"""Columns of a staircase's CSV file."""


def draw(times: pd.DataFrame, layer: Geometry, device: str, path: Path) -> list[Path]:
    """Draw time over kept channels, a line for each layout and precision; return the files.

    times   columns layout, precision, channels, ms
    layer   fields of `suite.measure.staircase.Layer`
    path    of the figure, without suffix
    """
    with style.new_figure(entries=0) as figure:
        axes = figure.subplots()
        for number, ((layout, precision), line) in enumerate(times.groupby(["layout", "precision"], sort=False)):
            look = {**style.of_series(number), "markersize": 2.5, "markeredgewidth": 0, "linewidth": 1}
            axes.plot(line["channels"], line["ms"], **look, label=f"{precision}, {layout}")
        axes.set(xlabel="kept channels", ylabel="milliseconds", ylim=(0, None), xlim=(0, layer["channels"] * 1.02))
        style.legend(figure)
        kernel, size = f"{layer['kernel']}x{layer['kernel']}", f"{layer['size']}x{layer['size']}"
        text = (
            f"One {kernel} convolution with {layer['filters']} filters, stride {layer['stride']}, images of {size}, batch "
            f"{layer['batch']}, on {device}. Medians of rounds that go through all widths."
        )
        return list(style.finish(figure, path, text))


def draw_all(folder: Path) -> list[Path]:
    """Draw each staircase in a folder; return the files.

    Raises ValueError if the folder has none.
    """
    paths = []
    for conditions in sorted(folder.glob("*.json")):
        path = conditions.with_suffix("")
        try:
            about = jsonfile.read(conditions, Conditions)
            times = pd.read_csv(io.BytesIO(jsonfile.read_bytes(path.with_suffix(".csv"))), dtype=COLUMNS)
            times = times[list(COLUMNS)]
        except (ValueError, KeyError) as error:
            raise ValueError(f"{path} holds no staircase ({' '.join(str(error).split())}); measure it again") from error
        paths += draw(times, about["layer"], about["provenance"]["device"], path)
    if not paths:
        raise ValueError(f"{folder} has no staircase: measure one by python -m suite.measure.staircase")
    return paths


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit status: 0 drawn, 2 no staircase."""
    parser = argparse.ArgumentParser(prog="python -m suite.report.staircase", description="Draw RESULTS/staircase.")
    parser.add_argument("--results", type=Path, default=Path("results"), metavar="DIR")
    arguments = parser.parse_args(argv)
    try:
        paths = draw_all(arguments.results / "staircase")
    except (ValueError, OSError) as error:
        sys.stderr.write(f"suite.report.staircase: {error}\n")
        return 2
    for path in paths:
        Console().print(str(path), markup=False, highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
