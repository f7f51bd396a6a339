"""`python -m suite.measure.staircase`: the time of one convolution over how many channels it keeps.

Hardware computes in tiles, so time goes in steps: where a step is wide, keeping more channels, up to its end, costs nothing.
For each multiple the summary says what rounding the kept channels up to it costs in MACs and in time, summed over all numbers
of channels; 1.00 in time is free.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn

from suite import cli, records
from suite.files import write_json, write_text
from suite.measure import latency, machine
from suite.report import style
from suite.run import cores

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
MULTIPLES = (2, 4, 8, 16, 32, 64)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A square convolution with as many pixels of padding as keep its size, and the images that it is given."""

    filters: int = 128
    channels: int = 128
    kernel: int = 3
    size: int = 14
    batch: int = 8
    stride: int = 1

    @property
    def name(self) -> str:
        """For files: what tells it from others."""
        return f"{self.filters}x{self.channels}x{self.kernel}x{self.kernel}_{self.size}px_stride{self.stride}_batch{self.batch}"


def climb(layer: Layer, device: str, precisions: Sequence[str], step: int, rounds: int) -> pd.DataFrame:
    """One line a layout, precision and number of kept channels: `ms`, the median over rounds that go through all of them."""
    lines = []
    for layout in LAYOUTS:
        for precision in precisions:
            runs = {str(kept): _run(layer, kept, device, layout, precision) for kept in _kept(layer, step)}
            _, medians = latency.fastest(runs, device, rounds)
            lines += [
                {"layout": layout, "precision": precision, "channels": int(kept), "ms": ms}
                for kept, ms in medians.items()
            ]
    return pd.DataFrame(lines)


def _kept(layer: Layer, step: int) -> list[int]:
    return [kept for kept in range(1, layer.channels + 1) if kept % step == 0 or kept in (1, layer.channels)]


def _run(layer: Layer, kept: int, device: str, layout: str, precision: str) -> latency.Run:
    conv = nn.Conv2d(kept, layer.filters, layer.kernel, layer.stride, layer.kernel // 2).to(
        device, latency.DTYPES[precision]
    )
    shape = layer.batch, kept, layer.size, layer.size
    images = torch.randn(shape, device=device).to(latency.DTYPES[precision])
    conv.requires_grad_(False).to(memory_format=LAYOUTS[layout])
    return functools.partial(conv, images.to(memory_format=LAYOUTS[layout]))


def rounding(found: pd.DataFrame) -> pd.DataFrame:
    """What rounding up to a multiple costs: `macs_x` and `time_x`, sums over all numbers of channels, rounded / not rounded."""
    lines = []
    for (layout, precision), part in found.groupby(["layout", "precision"], sort=False):
        ms = dict(zip(part["channels"], part["ms"], strict=True))
        for multiple in MULTIPLES:
            pairs = [(kept, -(-kept // multiple) * multiple) for kept in ms]
            pairs = [(kept, up) for kept, up in pairs if up in ms]
            if any(up > kept for kept, up in pairs):
                macs_x = sum(up for _, up in pairs) / sum(kept for kept, _ in pairs)
                time_x = sum(ms[up] for _, up in pairs) / sum(ms[kept] for kept, _ in pairs)
                about = {"layout": layout, "precision": precision, "round_to": multiple}
                lines.append({**about, "macs_x": macs_x, "time_x": time_x})
    return pd.DataFrame(lines, columns=["layout", "precision", "round_to", "macs_x", "time_x"])


def draw(found: pd.DataFrame, layer: Layer, where: str, path: Path) -> list[Path]:
    """Time over kept channels, a line for each layout and precision."""
    with style.new_figure(entries=0) as figure:
        axes = figure.subplots()
        for number, ((layout, precision), part) in enumerate(found.groupby(["layout", "precision"], sort=False)):
            look = {**style.of_series(number), "markersize": 2.5, "linewidth": 1}
            axes.plot(part["channels"], part["ms"], **look, label=f"{precision}, {layout}")
        axes.set(xlabel="kept channels", ylabel="milliseconds", ylim=(0, None), xlim=(0, layer.channels * 1.02))
        style.legend(figure)
        style.caption(
            figure,
            f"One {layer.kernel}x{layer.kernel} convolution with {layer.filters} filters, stride {layer.stride}, images of "
            f"{layer.size}x{layer.size}, batch {layer.batch}, on {where}. Medians of rounds that go through all widths.",
        )
        return style.save(figure, path)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python -m suite.measure.staircase",
        description="Time one convolution over the number of channels that it keeps, in both layouts; writes a plot, a CSV "
        "file and the conditions into RESULTS/staircase.",
    )
    for name, default in vars(Layer()).items():
        result.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"default: {default}")
    result.add_argument(
        "--step", type=int, default=1, metavar="N", help="channels between two measurements (default: 1)"
    )
    result.add_argument(
        "--rounds", type=int, default=5, metavar="N", help="how often all widths are timed (default: 5)"
    )
    result.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    result.add_argument(
        "--precision", nargs="*", choices=tuple(latency.DTYPES), help="default: fp32, on a GPU fp16 and bf16 as well"
    )
    result.add_argument("--threads", type=int, default=0, metavar="N", help="CPU threads (default: all cores)")
    result.add_argument("--results", type=Path, default=Path("results"), metavar="DIR")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 written, 2 bad arguments."""
    arguments = parser().parse_args(argv)
    cli.configure_logging()
    try:
        cli.device_of(arguments.device)
        numbers = {name: getattr(arguments, name) for name in (*vars(Layer()), "step", "rounds")}
        if wrong := [name for name, value in numbers.items() if value < 1]:
            raise ValueError(f"--{wrong[0]} {numbers[wrong[0]]}: it takes 1 or more")
        if arguments.threads < 0:
            raise ValueError(f"--threads {arguments.threads}: it takes 0 (all cores) or more")
        _measure(arguments, Layer(**{name: numbers[name] for name in vars(Layer())}), Console())
    except (ValueError, OSError) as error:
        sys.stderr.write(f"suite.measure.staircase: {error}\n")
        return 2
    return 0


@torch.inference_mode()
def _measure(arguments: argparse.Namespace, layer: Layer, console: Console) -> None:
    torch.set_num_threads(arguments.threads or cores())
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    device = arguments.device
    precisions = arguments.precision or (list(latency.DTYPES) if device == "cuda" else ["fp32"])
    with machine.watched(device) as conditions:
        found = climb(layer, device, precisions, arguments.step, arguments.rounds)
    costs = rounding(found)
    folder = arguments.results / "staircase"
    path = folder / f"{device}_{layer.name}"
    about: dict[str, Any] = {"layer": vars(layer), "step": arguments.step, "rounds": arguments.rounds}
    about |= {"conditions": conditions, "flags": machine.flags([conditions], device)}
    written = [path.with_name(path.name + suffix) for suffix in (".csv", "_rounding.csv", ".json")]
    write_text(written[0], found.to_csv(index=False, float_format="%.6g"))
    write_text(written[1], costs.to_csv(index=False, float_format="%.6g"))
    write_json(written[2], {**about, "provenance": records.provenance(device)})
    written += draw(found, layer, records.device_name(device), path)
    console.print(_table(costs))
    for flag in about["flags"]:
        console.print(f"doubtful: {flag}", style="yellow", markup=False, highlight=False)
    for one in written:
        console.print(str(one), markup=False, highlight=False, soft_wrap=True)


def _table(costs: pd.DataFrame) -> Table:
    headings = ("layout", "precision", "rounded up to", "MACs x", "time x")
    table = Table(*headings, title="What rounding kept channels up costs", title_justify="left", box=box.SIMPLE)
    for line in costs.itertuples():
        table.add_row(
            str(line.layout), str(line.precision), str(line.round_to), f"{line.macs_x:.2f}", f"{line.time_x:.2f}"
        )
    return table


if __name__ == "__main__":
    raise SystemExit(main())
