"""`python -m suite.measure.staircase`: time of one convolution over the number of channels that it keeps.

Hardware computes in tiles, so time rises in steps: up to the end of a step, more channels cost nothing. The summary lists, for
each multiple, the cost of rounding the kept channels up to it, in MACs and in time, summed over all numbers of channels; 1.00
in time is free. `python -m suite.report.staircase` draws the numbers.
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
from suite.measure import machine
from suite.measure.protocol import DTYPES, set_up_torch
from suite.pack.choice import FORMATS
from suite.timing import Run, fastest

MULTIPLES = (2, 4, 8, 16, 32, 64)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A square convolution, padded to keep its images' size: `batch` images of `size` x `size`."""

    filters: int = 128
    channels: int = 128
    kernel: int = 3
    size: int = 14
    batch: int = 8
    stride: int = 1

    @property
    def name(self) -> str:
        """Name for files."""
        return f"{self.filters}x{self.channels}x{self.kernel}x{self.kernel}_{self.size}px_stride{self.stride}_batch{self.batch}"


def climb(layer: Layer, device: str, precisions: Sequence[str], step: int, rounds: int) -> pd.DataFrame:
    """Return one line per layout, precision and number of kept channels.

    ms   median over rounds; each round goes through all numbers of channels
    """
    lines = []
    for layout in FORMATS:
        for precision in precisions:
            runs = {str(kept): _run(layer, kept, device, layout, precision) for kept in _kept(layer, step)}
            _, medians = fastest(runs, device, rounds)
            lines += [
                {"layout": layout, "precision": precision, "channels": int(kept), "ms": ms}
                for kept, ms in medians.items()
            ]
    return pd.DataFrame(lines)


def _kept(layer: Layer, step: int) -> list[int]:
    return [kept for kept in range(1, layer.channels + 1) if kept % step == 0 or kept in (1, layer.channels)]


def _run(layer: Layer, kept: int, device: str, layout: str, precision: str) -> Run:
    conv = nn.Conv2d(kept, layer.filters, layer.kernel, layer.stride, layer.kernel // 2).to(device, DTYPES[precision])
    shape = layer.batch, kept, layer.size, layer.size
    images = torch.randn(shape, device=device).to(DTYPES[precision])
    conv.requires_grad_(False).to(memory_format=FORMATS[layout])
    return functools.partial(conv, images.to(memory_format=FORMATS[layout]))


def rounding(times: pd.DataFrame) -> pd.DataFrame:
    """Return the cost of rounding up to each multiple, summed over all numbers of channels.

    macs_x, time_x   rounded / not rounded
    """
    lines = []
    for (layout, precision), part in times.groupby(["layout", "precision"], sort=False):
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


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    result = argparse.ArgumentParser(
        prog="python -m suite.measure.staircase",
        description="Time one convolution over the number of channels that it keeps, in both layouts; writes two CSV files and "
        "the conditions into RESULTS/staircase. python -m suite.report.staircase draws them.",
    )
    for name, default in vars(Layer()).items():
        result.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"default: {default}")
    result.add_argument(
        "--step", type=int, default=1, metavar="N", help="channels between two measurements (default: 1)"
    )
    result.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds through all widths (default: 5)")
    result.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    result.add_argument(
        "--precision", nargs="*", choices=tuple(DTYPES), help="default: fp32, on a GPU fp16 and bf16 as well"
    )
    result.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all cores)")
    result.add_argument("--results", type=Path, default=Path("results"), metavar="DIR")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit status: 0 written, 2 bad arguments."""
    arguments = parser().parse_args(argv)
    cli.configure_logging()
    try:
        cli.device_of(arguments.device)
        numbers = {name: getattr(arguments, name) for name in (*vars(Layer()), "step", "rounds")}
        if bad := [name for name, value in numbers.items() if value < 1]:
            raise ValueError(f"--{bad[0]} {numbers[bad[0]]}: it takes 1 or more")
        arguments.threads = cli.threads_of(arguments.threads)
        _measure(arguments, Layer(**{name: numbers[name] for name in vars(Layer())}), Console())
    except (ValueError, OSError) as error:
        sys.stderr.write(f"suite.measure.staircase: {error}\n")
        return 2
    return 0


def _measure(arguments: argparse.Namespace, layer: Layer, console: Console) -> None:
    set_up_torch(arguments.threads or cli.cores())
    device = arguments.device
    precisions = arguments.precision or (list(DTYPES) if device == "cuda" else ["fp32"])
    with machine.watched(device) as conditions:
        times = climb(layer, device, precisions, arguments.step, arguments.rounds)
    costs = rounding(times)
    path = arguments.results / "staircase" / f"{device}_{layer.name}"
    about: dict[str, Any] = {"layer": vars(layer), "step": arguments.step, "rounds": arguments.rounds}
    about |= {"conditions": conditions, "flags": machine.flags([conditions], device, precisions)}
    files = [path.with_name(path.name + suffix) for suffix in (".csv", "_rounding.csv", ".json")]
    write_text(files[0], times.to_csv(index=False, float_format="%.6g"))
    write_text(files[1], costs.to_csv(index=False, float_format="%.6g"))
    write_json(files[2], {**about, "provenance": records.provenance(device)})
    console.print(_table(costs))
    for flag in about["flags"]:
        console.print(f"doubtful: {flag}", style="yellow", markup=False, highlight=False)
    for file in files:
        console.print(str(file), markup=False, highlight=False, soft_wrap=True)


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
