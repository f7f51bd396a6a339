"""`python -m suite.measure`: MACs, parameters, accuracy and latency of any network, whoever packed it."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from suite import cli, data, models, records
from suite.contract import PruningPlan
from suite.graph import Graph
from suite.measure import beside, bounds, latency, networks
from suite.measure.networks import Network, Shape
from suite.run import cores
from suite.stages import Timing
from suite.train import top1_pct

EVAL_BATCH = 250


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python -m suite.measure",
        description="Measure a network: a packed one of this suite, a TorchScript file, an exported program (.pt2) or ONNX. "
        "MACs and parameters always; accuracy with --dataset; latency beside --dense, a packed network's own by default.",
    )
    result.add_argument("file", metavar="FILE", help="the network")
    result.add_argument(
        "--data", type=Path, metavar="DIR", help="data folder (default: SUITE_DATA, else the user's cache)"
    )
    result.add_argument(
        "--dataset", metavar="NAME", help="measure top-1 on its test images: cifar10, imagenet, digits, ..."
    )
    result.add_argument(
        "--shape", type=int, nargs=3, metavar=("C", "H", "W"), help="an image, where neither file nor data say"
    )
    result.add_argument(
        "--dense", metavar="MODEL", help="a model of the suite such as resnet50, or a file, to be timed beside"
    )
    result.add_argument(
        "--batch", type=int, nargs="*", default=[32], metavar="N", help="batches to time; none: no timing"
    )
    result.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="where latency is measured (default: cpu)"
    )
    result.add_argument("--precision", choices=("fp32", "fp16", "bf16"), default="fp32")
    result.add_argument("--layout", choices=("contiguous", "channels_last"), default="contiguous")
    result.add_argument("--protocol", choices=("quick", "full"), default="full", help="full: three processes (default)")
    result.add_argument(
        "--also",
        nargs="+",
        choices=beside.ALSO,
        default=[],
        help="try these for dense and packed network too: ONNX Runtime (CPU), torch.compile, TensorRT (CUDA)",
    )
    result.add_argument("--threads", type=int, default=0, metavar="N", help="CPU threads (default: all cores)")
    result.add_argument(
        "--layers", action="store_true", help="the least time of each layer on this machine (packed networks)"
    )
    result.add_argument("--json", action="store_true", help="print JSON")
    return result


def main() -> int:
    """Exit status: 0 measured, 2 bad arguments or a file that cannot be measured."""
    arguments = parser().parse_args()
    cli.configure_logging()
    console = Console()
    try:
        cli.device_of(arguments.device)
        if arguments.threads < 0:
            raise ValueError(f"--threads {arguments.threads}: it takes 0 (all cores) or more")
        torch.set_num_threads(arguments.threads or cores())
        found = measure(arguments)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"suite.measure: {' '.join(str(error).split())}\n")
        return 2
    if arguments.json:
        sys.stdout.write(json.dumps(found, indent=1) + "\n")
    else:
        show(found, console)
    return 0


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All that was asked for, as JSON values. Raises ValueError when it cannot be measured."""
    network = networks.load(arguments.file)
    dataset = None
    if arguments.dataset is not None:
        dataset = data.load(arguments.dataset, arguments.data)
        if network.header and "mean" in network.header:
            dataset = dataset.with_normalization(tuple(network.header["mean"]), tuple(network.header["std"]))
    shape = _shape(arguments, network, dataset)
    classes = networks.check_fits(network, shape)
    if dataset is not None and dataset.classes != classes:
        raise ValueError(f"{network.name} has {classes} classes and {arguments.dataset} has {dataset.classes}")
    dense = _dense(arguments, network, classes, shape)
    found = {"file": network.name, "kind": network.kind, "input_shape": list(shape), "classes": classes}
    found |= _macs(network, dense, shape)
    if dataset is not None:
        padded = networks.PaddedModule(network.module, network.batch) if network.batch else network.module
        with torch.inference_mode():
            found["top1_pct"] = top1_pct(padded, dataset.test(network.batch or EVAL_BATCH, "cpu"))
    if dense is not None:
        found["latency"] = [_latency(arguments, network, dense, shape, classes, batch) for batch in arguments.batch]
    if arguments.layers:
        found["layers"] = _layers(arguments, network, shape)
    return {**found, "provenance": records.provenance(arguments.device)}


def _shape(arguments: argparse.Namespace, network: Network, dataset: data.Dataset | None) -> Shape:
    if arguments.shape:
        c, h, w = arguments.shape
        if min(c, h, w) < 1:
            raise ValueError(f"--shape {c} {h} {w}: each must be at least 1")
        return c, h, w
    found = dataset.input_shape if dataset is not None else network.input_shape
    if found is None:
        raise ValueError(f"{network.name} does not say what images it takes: give --shape C H W or --dataset NAME")
    return found


def _dense(arguments: argparse.Namespace, network: Network, classes: int, shape: Shape) -> Network | None:
    name = arguments.dense or (network.header or {}).get("model")
    if name is None:
        return None
    dense = networks.load(name) if Path(name).is_file() else networks.dense(name, classes, shape)
    if networks.check_fits(dense, shape) != classes:
        raise ValueError(f"--dense {name} has other classes than {network.name}, which has {classes}")
    return dense


def _macs(network: Network, dense: Network | None, shape: Shape) -> dict[str, Any]:
    """Counts of the whole network, and of the prunable convolutions where it is known which those are."""
    found: dict[str, Any] = {"macs": network.macs(shape), "params": network.params}
    if dense is not None:
        found |= {"dense": dense.name, "dense_macs": dense.macs(shape), "dense_params": dense.params}
        found["theoretical_x"] = found["dense_macs"] / max(found["macs"], 1)
        found["macs_cut_pct"] = 100 * (1 - found["macs"] / found["dense_macs"])
        found["params_cut_pct"] = 100 * (1 - found["params"] / found["dense_params"])
    if network.kind == "packed":
        graph, plan = _graph(network, shape)
        found["prunable_macs"] = graph.macs(plan).prunable
        found["prunable_macs_cut_pct"] = 100 * graph.cut(plan, "prunable")
    return found


def _graph(network: Network, shape: Shape) -> tuple[Graph, PruningPlan]:
    """The full network that a packed file was made from, and its plan."""
    assert network.packed is not None
    assert network.header is not None
    return Graph(models.build(network.header["model"], network.header["classes"]), shape), network.packed.plan


def _latency(
    arguments: argparse.Namespace, network: Network, dense: Network, shape: Shape, classes: int, batch: int
) -> dict[str, Any]:
    asked = {name: getattr(arguments, name) for name in ("device", "precision", "layout", "protocol")}
    job = beside.Job(
        network=network.name,
        dense=dense.name,
        classes=classes,
        shape=shape,
        timing=Timing(batch=batch, **asked),
        threads=torch.get_num_threads(),
        also=tuple(arguments.also),
    )
    return beside.columns(job)


def _layers(arguments: argparse.Namespace, network: Network, shape: Shape) -> list[dict[str, Any]]:
    """The least time of every layer for the first batch."""
    if network.kind != "packed":
        raise ValueError(
            f"--layers: {network.name} is {network.kind}; only packed networks of this suite have a plan to read"
        )
    dtype = latency.DTYPES[arguments.precision]
    peak = bounds.measured_peak(arguments.device, dtype, torch.get_num_threads())
    batch = arguments.batch[0] if arguments.batch else 1
    layers = bounds.layer_bounds(*_graph(network, shape), peak, batch=batch, dtype=dtype)
    return [{**vars(layer), "bound_ms": layer.bound_ms, "batch": batch} for layer in layers]


# ---- for people ------------------------------------------------------------------------------------------------------


def show(found: dict[str, Any], console: Console) -> None:
    """Print what `measure` found."""
    facts = Table(box=None, show_header=False, pad_edge=False)
    for name, text in _facts(found):
        facts.add_row(name, Text(text))
    console.print(facts)
    if found.get("latency"):
        console.print(_latency_table(found))
    for flag in dict.fromkeys(flag for row in found.get("latency", ()) for flag in row["flags"]):
        console.print(f"doubtful: {flag}", style="yellow", markup=False, highlight=False)
    if "layers" in found:
        console.print(_layer_table(found["layers"]))


def _facts(found: dict[str, Any]) -> list[tuple[str, str]]:
    facts = [
        ("network", f"{found['file']} ({found['kind']}, images {found['input_shape']}, {found['classes']} classes)")
    ]

    def cut(name: str) -> str:
        return f", {found[name]:.2f} % fewer" if name in found else ""

    than = f" than the {found['dense_macs']:,} of {found['dense']}" if "dense" in found else ""
    facts.append(("MACs", f"{found['macs']:,}{cut('macs_cut_pct')}{than}"))
    if "prunable_macs" in found:
        facts.append(("prunable convolutions", f"{found['prunable_macs']:,} MACs{cut('prunable_macs_cut_pct')}"))
    facts.append(("parameters", f"{found['params']:,}{cut('params_cut_pct')}"))
    if "top1_pct" in found:
        facts.append(("top-1", f"{found['top1_pct']:.2f} % of the test images"))
    if "latency" not in found:
        facts.append(("latency", "not measured: name the dense network with --dense"))
    return facts


def _latency_table(found: dict[str, Any]) -> Table:
    first = found["latency"][0]
    about = ", ".join(str(first[name]) for name in ("device", "precision", "layout", "protocol"))
    headings = ("batch", "dense ms", "ms", "speed-up", "theoretical", "null test")
    table = Table(*headings, title=f"Latency: {about}", title_justify="left", box=box.SIMPLE, pad_edge=False)
    for row in found["latency"]:
        gain = row["verdict"]
        if gain != "not trusted":
            gain = f"{row['speedup_x']:.2f} [{row['speedup_low_x']:.2f}, {row['speedup_high_x']:.2f}] {gain}"
        times = (f"{row[name]:.2f}" for name in ("dense_ms", "packed_ms"))
        null = f"[{row['null_low_x']:.3f}, {row['null_high_x']:.3f}]"
        table.add_row(str(row["batch"]), *times, gain, f"{found['theoretical_x']:.2f}", null)
    executions = dict.fromkeys(f"{row['execution']} beside dense {row['dense_execution']}" for row in found["latency"])
    table.caption, table.caption_justify = f"Executions: {', '.join(executions)}", "left"
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
