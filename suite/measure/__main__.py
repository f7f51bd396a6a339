"""`python -m suite.measure`: MACs, parameters, accuracy and latency of a network of any origin."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from suite import cli, data, models, records
from suite.measure import Timing, archive, bounds, claim, compare, confined, executions, networks
from suite.measure.networks import Network, Shape
from suite.measure.protocol import DTYPES
from suite.progress import Watch
from suite.train import top1_pct
from suite.trainer import Diverged
from suite.weights import IMAGENET_MEAN, IMAGENET_STD

EVAL_BATCH = 250
LONGEST = 1e6
"""Largest value of --timeout and --max-minutes; the system's timers take no infinite one."""

NORMALIZATIONS = {
    "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
    "half": ((0.5,), (0.5,)),
    "none": ((0.0,), (1.0,)),
}
"""Name -> mean and standard deviation of pixels in [0, 1]; one number stands for every channel."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    result = argparse.ArgumentParser(
        prog=cli.program("suite.measure"),
        description="Measure a network: a packed one of this suite, a TorchScript file, an exported program (.pt2) or ONNX. "
        "MACs and parameters always; accuracy with --dataset; latency beside --dense, a packed network's own by default. "
        "A network file is a program, unless it is a packed one: it runs in a process without write access and network.",
    )
    cli.add_plugins_option(result)
    result.add_argument("file", metavar="FILE", help="the network")
    result.add_argument("--json", action="store_true", help="print JSON")
    _add_image_options(result)
    _add_latency_options(result)
    _add_process_options(result)
    return result


def _add_image_options(result: argparse.ArgumentParser) -> None:
    """Add --data, --dataset, --shape and the options of normalisation."""
    cli.add_data_option(result)
    add = result.add_argument
    add("--dataset", metavar="NAME", help="measure top-1 on its test images: cifar10, imagenet, digits, ...")
    shape_help = "shape of an image, if neither the file nor --dataset has it"
    add("--shape", type=int, nargs=3, metavar=("C", "H", "W"), help=shape_help)
    names = f"the constants of other people's training: {', '.join(NORMALIZATIONS)} (default: the file's, else the data set's)"
    add("--normalize", choices=tuple(NORMALIZATIONS), help=names)
    add("--mean", type=float, nargs="+", metavar="M", help="mean of each channel, of pixels in [0, 1]; with --std")
    add("--std", type=float, nargs="+", metavar="S", help="standard deviation of each channel; with --mean")


def _add_latency_options(result: argparse.ArgumentParser) -> None:
    """Add the conditions of the measurement."""
    add = result.add_argument
    dense = "the dense network to time beside: a model of the suite such as resnet50, or a file"
    add("--dense", metavar="MODEL", help=dense)
    add("--batch", type=int, nargs="*", default=[32], metavar="N", help="batches to time; none: no timing")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where latency is measured (default: cpu)")
    add("--precision", choices=("fp32", "fp16", "bf16"), default="fp32")
    add("--layout", choices=("contiguous", "channels_last"), default="contiguous")
    add("--protocol", choices=("quick", "full"), default="full", help="full: three processes (default)")
    also = "runtimes to try for both networks beside torch (default: with --protocol full all that are installed)"
    add("--also", nargs="*", choices=executions.COMPILERS, help=also)
    add("--threads", type=int, metavar="N", help="CPU threads (default: all cores)")
    layers = "time that each layer takes beyond its share of MACs, with the cause, and its least time (packed networks)"
    add("--layers", action="store_true", help=layers)


def _add_process_options(result: argparse.ArgumentParser) -> None:
    """Add --trust and the limits of the confined process."""
    add = result.add_argument
    trust = "run a network without confinement, and load its pickled objects: for authors that you trust"
    add("--trust", action="store_true", help=trust)
    first = "seconds until a network of other people must have ended its first pass (default: 120)"
    add("--timeout", type=float, default=120.0, metavar="S", help=first)
    whole = "minutes of its whole measurement (default: 60)"
    add("--max-minutes", type=float, default=60.0, metavar="M", help=whole)
    add("--report-to", type=int, metavar="FD", help=argparse.SUPPRESS)  # in the confined process


def main() -> int:
    """Return the exit status: 0 measured, 2 bad arguments or an unusable file."""
    arguments = parser().parse_args()
    cli.configure_logging()
    console = Console()
    try:
        cli.device_of(arguments.device)
        threads = cli.threads_of(arguments.threads) or cli.cores()
        _check_numbers(arguments)
        if arguments.report_to is None and (programs := _programs(arguments)):
            limits = confined.Limits(first_pass_s=arguments.timeout, minutes=arguments.max_minutes)
            return confined.run(programs, sys.argv[1:], limits, trust=arguments.trust)
        confined.report(arguments.report_to, confined.IMPORTED)
        torch.set_num_threads(threads)
        with tempfile.TemporaryDirectory() as scratch:
            values = measure(arguments, Path(scratch))
    except Exception as error:  # networks of other people raise errors of any class
        if not isinstance(error, ValueError | OSError | Diverged) and arguments.report_to is None:
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        sys.stderr.write(f"suite.measure: {reason}\n")
        return 2
    if arguments.json:
        sys.stdout.write(json.dumps(values, indent=1) + "\n")
    else:
        show(values, console)
    return 0


def _check_numbers(arguments: argparse.Namespace) -> None:
    """Raise ValueError naming a bad value of --batch, --timeout or --max-minutes."""
    for batch in arguments.batch:
        if batch < 1:
            raise ValueError(f"--batch {batch}: it takes 1 or more; --batch alone times nothing")
    for name, limit in (("--timeout", arguments.timeout), ("--max-minutes", arguments.max_minutes)):
        if not 0 < limit <= LONGEST:  # NaN fails too
            raise ValueError(f"{name} {limit:g}: it takes a number above 0, at most {LONGEST:g}")


def _programs(arguments: argparse.Namespace) -> list[Path]:
    """Return the files of the command line that are programs: all networks but packed ones."""
    files = [Path(arguments.file)]
    if arguments.dense is not None and arguments.dense not in models.available():
        files.append(Path(arguments.dense))
    return [path for path in files if (path == files[0] or path.exists()) and archive.kind_of(path) != "packed"]


def measure(arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Return all requested values as JSON values; a dense model is written into `scratch`.

    Raises ValueError if the network cannot be measured.
    """
    network = networks.load(arguments.file, trust=arguments.trust)
    if arguments.layers and network.kind != "packed":
        raise ValueError(
            f"--layers: {network.name} is {network.kind}; only packed networks of this suite have a plan to read"
        )
    dataset, source = _dataset(arguments, network)
    shape = _shape(arguments, network, dataset)
    classes = networks.check_fits(network, shape)
    if dataset is not None and dataset.classes != classes:
        raise ValueError(f"{network.name} has {classes} classes and {arguments.dataset} has {dataset.classes}")
    values = {"file": network.name, "kind": network.kind, "input_shape": list(shape), "classes": classes}
    dense_name = arguments.dense or (network.header or {}).get("model")
    dense = None if dense_name is None else _dense(arguments, dense_name, network, classes, shape, scratch)
    confined.report(arguments.report_to, confined.RAN)
    values |= _macs(network, dense, dense_name, shape)
    if dataset is not None:
        padded = networks.PaddedModule(network.module, network.batch) if network.batch else network.module
        with torch.inference_mode():
            values["top1_pct"] = top1_pct(padded, dataset.test(network.batch or EVAL_BATCH, "cpu"))
        values["normalization"] = {"mean": list(dataset.mean), "std": list(dataset.std), "source": source}
    if dense is not None:
        values["latency"] = [_latency(arguments, network, dense, shape, batch) for batch in arguments.batch]
    if arguments.layers:
        values["layers"] = _layers(arguments, network)
    return {**values, "provenance": records.provenance(arguments.device)}


def _dataset(arguments: argparse.Namespace, network: Network) -> tuple[data.Dataset | None, str]:
    """Return the data set with its normalisation, and the source of the latter.

    Raises ValueError if --mean and --std do not fit.
    """
    mean, std = arguments.mean, arguments.std
    if (mean is None) != (std is None) or (mean is not None and arguments.normalize):
        raise ValueError("--mean and --std belong together, and replace --normalize")
    if arguments.dataset is None:
        if mean is not None or arguments.normalize:
            raise ValueError("a normalisation is of the images of --dataset NAME: give one")
        return None, ""
    dataset, header = data.load(arguments.dataset, arguments.data), network.header or {}
    if mean is not None:
        source = "--mean --std"
    elif arguments.normalize:
        (mean, std), source = NORMALIZATIONS[arguments.normalize], f"--normalize {arguments.normalize}"
    elif "mean" in header:
        mean, std, source = header["mean"], header["std"], "the network's file"
    else:
        return dataset, f"the data set {arguments.dataset}"
    channels = dataset.input_shape[0]
    if {len(mean), len(std)} - {1, channels} or min(std) <= 0:
        raise ValueError(f"--mean and --std take 1 or {channels} numbers, and --std positive ones")
    mean, std = ([*values] * (channels if len(values) == 1 else 1) for values in (mean, std))
    return dataset.with_normalization(tuple(mean), tuple(std)), source


class _Shown(Watch):
    """Progress in a terminal."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        columns = ("[progress.description]{task.description}", BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        self.progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.task = self.progress.add_task("preparing", total=1)

    def report(self, doing: str, **numbers: Any) -> None:
        """Move the bar to `share`."""
        share = numbers.get("share", 0.0)
        self.progress.update(self.task, completed=share, description=doing if share else "preparing")


def _shape(arguments: argparse.Namespace, network: Network, dataset: data.Dataset | None) -> Shape:
    if arguments.shape:
        c, h, w = arguments.shape
        if min(c, h, w) < 1:
            raise ValueError(f"--shape {c} {h} {w}: each must be at least 1")
        if dataset is not None and dataset.input_shape != (c, h, w):
            raise ValueError(
                f"--shape {c} {h} {w}: images of {arguments.dataset} are {list(dataset.input_shape)}; drop --shape or --dataset"
            )
        return c, h, w
    shape = dataset.input_shape if dataset is not None else network.input_shape
    if shape is None:
        raise ValueError(f"{network.name} holds no input shape: give --shape C H W or --dataset NAME")
    return shape


def _dense(
    arguments: argparse.Namespace, name: str, network: Network, classes: int, shape: Shape, scratch: Path
) -> Network:
    path = Path(name)
    is_named = name != arguments.dense or name in models.available()  # a header has no path
    if is_named or not path.is_file():
        path = scratch / "dense"
        networks.save_dense(name, classes, shape, path)
    dense = networks.load(str(path), trust=arguments.trust)
    if networks.check_fits(dense, shape) != classes:
        raise ValueError(f"--dense {name} has other classes than {network.name}, which has {classes}")
    return dense


def _macs(network: Network, dense: Network | None, dense_name: str | None, shape: Shape) -> dict[str, Any]:
    """Count the whole network and, of a packed one, the prunable convolutions."""
    values: dict[str, Any] = {"macs": network.macs(shape), "params": network.params}
    if dense is not None:
        values |= {"dense": dense_name, "dense_macs": dense.macs(shape), "dense_params": dense.params}
        values["theoretical_x"] = values["dense_macs"] / max(values["macs"], 1)
        for name in ("macs", "params"):
            if values[f"dense_{name}"]:  # of nothing there is no share
                values[f"{name}_cut_pct"] = 100 * (1 - values[name] / values[f"dense_{name}"])
    if network.kind == "packed":
        graph, plan = networks.graph_and_plan(network)
        values["prunable_macs"] = graph.macs(plan).prunable
        values["prunable_macs_cut_pct"] = 100 * graph.cut(plan, "prunable")
    return values


def _latency(
    arguments: argparse.Namespace, network: Network, dense: Network, shape: Shape, batch: int
) -> dict[str, Any]:
    conditions = {name: getattr(arguments, name) for name in ("device", "precision", "layout", "protocol")}
    also = None if arguments.also is None else (executions.PLAIN, *arguments.also)
    timing = Timing(batch=batch, **conditions)
    watch = _Shown(Console(stderr=True))
    with watch.progress:
        comparison = compare(
            Path(dense.name),
            Path(network.name),
            timing,
            shape=shape,
            also=also,
            watch=watch,
            trust=arguments.trust,
            layers=arguments.layers,
        )
    return {**dataclasses.asdict(timing), **comparison.columns()}


def _layers(arguments: argparse.Namespace, network: Network) -> list[dict[str, Any]]:
    """Return the least time of every layer for the first batch."""
    dtype = DTYPES[arguments.precision]
    peak = bounds.measured_peak(arguments.device, dtype, torch.get_num_threads())
    batch = arguments.batch[0] if arguments.batch else 1
    layers = bounds.layer_bounds(*networks.graph_and_plan(network), peak, batch=batch, dtype=dtype)
    return [{**vars(layer), "bound_ms": layer.bound_ms, "batch": batch} for layer in layers]


# ---- for people ------------------------------------------------------------------------------------------------------


def show(values: dict[str, Any], console: Console) -> None:
    """Print the values that `measure` returned."""
    facts = Table(box=None, show_header=False, pad_edge=False)
    for name, text in _facts(values):
        facts.add_row(name, Text(text))
    console.print(facts)
    if values.get("latency"):
        console.print(_latency_table(values))
    for flag in dict.fromkeys(flag for row in values.get("latency", ()) for flag in row["flags"]):
        console.print(f"doubtful: {flag}", style="yellow", markup=False, highlight=False)
    for row in values.get("latency", ()):
        if row["energy"]:
            console.print(f"batch {row['batch']}: {_energy(row['energy'])}", markup=False, highlight=False)
    for row in values.get("latency", ()):
        if row["losses"]:
            print_losses(console, row["losses"], f"batch {row['batch']}: ")
    if "layers" in values:
        console.print(_layer_table(values["layers"]))


def _facts(values: dict[str, Any]) -> list[tuple[str, str]]:
    facts = [
        ("network", f"{values['file']} ({values['kind']}, images {values['input_shape']}, {values['classes']} classes)")
    ]

    def cut(name: str) -> str:
        return f", {values[name]:.2f} % fewer" if name in values else ""

    than = f" than the {values['dense_macs']:,} of {values['dense']}" if "dense" in values else ""
    facts.append(("MACs", f"{values['macs']:,}{cut('macs_cut_pct')}{than}"))
    if "prunable_macs" in values:
        facts.append(("prunable convolutions", f"{values['prunable_macs']:,} MACs{cut('prunable_macs_cut_pct')}"))
    facts.append(("parameters", f"{values['params']:,}{cut('params_cut_pct')}"))
    if "top1_pct" in values:
        facts.append(("top-1", f"{values['top1_pct']:.2f} % of the test images"))
        constants = values["normalization"]
        numbers = ", ".join(f"{name} {' '.join(f'{v:g}' for v in constants[name])}" for name in ("mean", "std"))
        facts.append(("normalised by", f"{numbers}, from {constants['source']}"))
    if "latency" not in values:
        facts.append(("latency", "not measured: name the dense network with --dense"))
    return facts


def _latency_table(values: dict[str, Any]) -> Table:
    first = values["latency"][0]
    about = ", ".join(str(first[name]) for name in ("device", "precision", "layout", "protocol"))
    headings = ("batch", "dense ms", "ms", "speed-up", "CPU time", "theoretical", "null test")
    table = Table(*headings, title=f"Latency: {about}", title_justify="left", box=box.SIMPLE, pad_edge=False)
    for row in values["latency"]:
        gain = row["verdict"]
        if gain == "not trusted" and claim.is_busy(row["flags"]):
            gain = "not trusted: machine busy"
        elif gain != "not trusted":
            gain = f"{row['speedup_x']:.2f} [{row['speedup_low_x']:.2f}, {row['speedup_high_x']:.2f}] {gain}"
        times = (f"{row[name]:.2f}" for name in ("dense_ms", "packed_ms"))
        null = f"[{row['null_low_x']:.3f}, {row['null_high_x']:.3f}]"
        cpu = "" if row["cpu_speedup_x"] is None else f"{row['cpu_speedup_x']:.2f}"
        table.add_row(str(row["batch"]), *times, gain, cpu, f"{values['theoretical_x']:.2f}", null)
    pairs = dict.fromkeys(f"{row['execution']} beside dense {row['dense_execution']}" for row in values["latency"])
    untuned = f"; {claim.UNTUNED}" if first["protocol"] == "quick" else ""
    table.caption, table.caption_justify = f"Executions: {', '.join(pairs)}{untuned}", "left"
    return table


def _energy(energy: dict[str, Any]) -> str:
    """Return a sentence on `energy.columns`."""
    if "missing" in energy:
        return f"no energy: {energy['missing']}"
    both = f"{energy['dense_mj']:.3g} mJ an image dense, {energy['packed_mj']:.3g} mJ here ({energy['source']})"
    ratio = f"{energy['x']:.2f} [{energy['low_x']:.2f}, {energy['high_x']:.2f}]"
    return f"{both}: {ratio} times less; null test [{energy['null_low_x']:.3f}, {energy['null_high_x']:.3f}]"


def print_losses(console: Console, losses: Mapping[str, Any], title: str = "") -> None:
    """Print where the time of a packed network goes, and the lines of its layers."""
    text = losses.get("text") or f"no times of layers: {losses['missing']}"
    console.print(f"{title}{text}", markup=False, highlight=False)
    if "layers" in losses:
        console.print(_loss_table(losses["layers"]))


def _loss_table(lines: list[dict[str, Any]]) -> Table:
    """Return the table of `losses.columns`; its last columns are what the causes were read from."""
    parts = {"launch_ms": "start ms", "moves_ms": "moves ms", "memory_ms": "copy ms", "vectors_ms": "unfilled ms"}
    headings = ("layer", "form", "MACs left", "time left", "dense ms", "ms", "lost ms", "cause", *parts.values())
    table = Table(*headings, box=box.SIMPLE, pad_edge=False)
    for line in lines:
        shares = (f"{line[name]:.2f}" for name in ("macs_left", "time_left"))
        times = (f"{line[name]:.3f}" for name in ("dense_ms", "packed_ms", "lost_ms"))
        measured = (f"{line['parts'][name]:.3f}" if line["parts"] else "" for name in parts)
        table.add_row(line["layer"], line["form"], *shares, *times, line["cause"], *measured)
    return table


def _layer_table(layers: list[dict[str, Any]]) -> Table:
    headings = ("layer", "MACs", "bytes", "arithmetic ms", "memory ms", "bound ms")
    title = f"The least time on this machine, batch {layers[0]['batch']}"
    table = Table(*headings, title=title, title_justify="left", box=box.SIMPLE, pad_edge=False)
    for layer in layers:
        times = (f"{layer[name]:.3f}" for name in ("arithmetic_ms", "memory_ms", "bound_ms"))
        table.add_row(layer["name"], f"{layer['macs']:,}", f"{layer['bytes']:,}", *times)
    table.add_row("all", "", "", "", "", f"{sum(layer['bound_ms'] for layer in layers):.3f}")
    return table


if __name__ == "__main__":
    raise SystemExit(main())
