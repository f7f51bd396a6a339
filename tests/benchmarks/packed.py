"""How much faster are packed networks than the fastest dense execution, really?

    python -m tests.benchmarks.packed [--quick] [--only resnet50] [--batch 8] [--layers] [--profile]

Plans are random, with the shape of DSP's: each prunable convolution's filters are split at random into G groups of equal size,
each group keeps a random share of the input channels, and that share is bisected until the settled network (dead filters gone)
has lost the named share of its MACs. Latency does not depend on the weights, which are random too.

The dense network gets whatever the packed one gets (`suite.pack.tuned`: both layouts, batch norm folded, bias, sum and ReLU in
the convolution, weights laid out ahead), and is also timed as plain torch in both layouts, with `--compile` under torch.compile;
the fastest of these is "dense". Both are timed in alternating blocks of one process. Where packed is slower, the row says
"dense": that is what would be deployed. Realised share = measured speed-up / theoretical one.

On a machine that others use as well, one thread (`--threads 1`) disturbs the ratio least: two wait for each other after every
layer, and the packed network has as many layers as the dense one, only shorter ones.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import platform
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, fx, nn

from suite import models
from suite.contract import ConvPlan, PruningPlan
from suite.graph import Graph
from suite.measure import latency
from suite.measure.bounds import Peak, layer_bounds
from suite.measure.memory import peak_bytes
from suite.pack import Choice, PackedNetwork, deploy, pack, tuned
from suite.pack.executions import EXECUTIONS
from suite.pack.tune import fastest_ms


@dataclass(frozen=True)
class Target:
    """A row of the table: a network, its plan, and the speed-up that is wanted at one batch size."""

    model: str
    groups: int
    removed: float
    pixels: int
    batch: int
    at_least: float
    aim: float


TARGETS = (
    Target("resnet50", 2, 0.70, 224, 8, 2.0, 2.6),
    Target("resnet18", 2, 0.60, 224, 8, 1.6, 2.0),
    Target("resnet56", 2, 0.64, 32, 128, 1.2, 1.6),
    Target("resnet56", 4, 0.64, 32, 128, 1.2, 1.6),
)
BATCHES = (1, 8, 32, 128)


def random_plan(graph: Graph, groups: int, removed: float, seed: int = 0) -> PruningPlan:
    """The plan described above, whose cut is the smallest that is not below `removed`."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {
        name: (
            torch.randperm(conv.filters, generator=generator) % groups,
            torch.rand(groups, conv.channels, generator=generator),
        )
        for name, conv in graph.convs.items()
        if conv.prunable
    }

    def at(share: float) -> PruningPlan:
        return PruningPlan(
            {
                name: ConvPlan(group_O, u_GI < share, torch.ones(len(group_O), dtype=torch.bool))
                for name, (group_O, u_GI) in drawn.items()
            }
        )

    low, high = 0.0, 1.0
    for _ in range(12):
        middle = (low + high) / 2
        too_many = graph.macs(at(middle)).total > (1 - removed) * graph.dense_macs.total
        low, high = (low, middle) if too_many else (middle, high)
    return at(low)


def dense_candidates(dense: PackedNetwork, images: Tensor, compiled: bool) -> dict[str, Callable[[], object]]:
    """The ways to run the dense network, ready to be timed."""
    ours, choice = tuned(dense, images)
    plain = deploy(dense)
    last = images.contiguous(memory_format=torch.channels_last)
    plain_last = deploy(dense).to(memory_format=torch.channels_last)
    runs = {
        f"tuned {choice.layout}": functools.partial(ours, images),
        "torch contiguous": functools.partial(plain, images),
        "torch channels_last": functools.partial(plain_last, last),
    }
    if compiled:
        import torch._inductor.config as inductor

        inductor.freezing = True
        network = torch.compile(deploy(dense).to(memory_format=torch.channels_last))
        runs["compiled channels_last"] = functools.partial(network, last)
    return runs  # type: ignore[return-value]


def of_layers(choice: Choice) -> Table:
    """The executions of each layer, and their milliseconds."""
    names = [name for name in EXECUTIONS if any(name in milliseconds for milliseconds in choice.layer_ms.values())]
    table = Table("layer", *names, "chosen", title=f"milliseconds of each layer, batch {choice.batch}, {choice.layout}")
    for layer, milliseconds in choice.layer_ms.items():
        table.add_row(
            layer,
            *(f"{milliseconds[name]:.2f}" if name in milliseconds else "" for name in names),
            choice.layers[layer],
        )
    return table


class _Timed(fx.Interpreter):
    """Runs a network node by node; the least milliseconds of each over all runs."""

    def __init__(self, network: nn.Module) -> None:
        assert isinstance(network, fx.GraphModule)
        super().__init__(network)
        self.ms: dict[str, float] = {}
        self.node_of = {str(node.target): node.name for node in network.graph.nodes}

    def run_node(self, n: fx.Node) -> object:
        began = time.perf_counter()
        result = super().run_node(n)
        self.ms[n.name] = min(self.ms.get(n.name, float("inf")), 1e3 * (time.perf_counter() - began))
        return result


def profile(graph: Graph, plan: PruningPlan, dense: nn.Module, packed: nn.Module, images: Tensor) -> Table:
    """Where the time goes: each convolution, with the sum and the ReLU that are part of it, beside its share of MACs."""
    timed = [_Timed(network) for network in (dense, packed)]
    for _ in range(15):
        for one in timed:
            one.run(images)
    any_peak = Peak(macs_per_s=1, bytes_per_s=1)
    bounds = [layer_bounds(graph, one, any_peak, batch=1, dtype=images.dtype) for one in (PruningPlan({}), plan)]
    macs = [{layer.name: layer.macs for layer in layers} for layers in bounds]
    table = Table("node", "MACs x", "dense ms", "packed ms", "time x", title="the nodes of both networks")
    rest = [sum(one.ms.values()) for one in timed]
    for name in graph.convs:
        ms = [one.ms[one.node_of[name]] if name in one.node_of else 0.0 for one in timed]
        rest = [left - taken for left, taken in zip(rest, ms, strict=True)]
        ratio = f"{macs[0][name] / macs[1][name]:.2f}" if macs[1].get(name) else ""
        table.add_row(name, ratio, *(f"{one:.2f}" for one in ms), f"{ms[0] / ms[1]:.2f}" if ms[1] else "")
    table.add_row("all others", "", *(f"{one:.2f}" for one in rest), f"{rest[0] / rest[1]:.2f}")
    return table


def measure(target: Target, batch: int, options: argparse.Namespace, console: Console) -> list[str]:
    """One line of the table."""
    torch.manual_seed(0)
    model = models.build(target.model, 1000 if target.pixels > 32 else 10).eval()
    graph = Graph(model, (3, target.pixels, target.pixels))
    plan = random_plan(graph, target.groups, target.removed)
    theoretical = graph.dense_macs.total / graph.macs(plan).total
    images = torch.randn(batch, *graph.input_shape)
    with torch.inference_mode():
        candidates = dense_candidates(pack(model, graph, PruningPlan({})), images, options.compile)
        dense_ms = fastest_ms(candidates, images.device)
        best = min(dense_ms, key=dense_ms.__getitem__)
        began = time.perf_counter()
        network, choice = tuned(pack(model, graph, plan), images)
        seconds = time.perf_counter() - began
        found = latency.compare(candidates[best], functools.partial(network, images), "cpu", protocol(options.quick))
        if options.profile:
            ours = tuned(pack(model, graph, PruningPlan({})), images)[0]
            console.print(profile(graph, plan, ours, network, images))
        memory = _peak(candidates[best], images), peak_bytes(network, images)
    if options.layers and choice.layer_ms:
        console.print(of_layers(choice))
    ratio, low, high = found.ratio
    wanted = f"{target.at_least} ({target.aim})" if batch == target.batch else ""
    deployed = "dense" if found.verdict in ("slower", "not trusted") else "packed"
    return [
        f"{target.model} G={target.groups} -{target.removed:.0%}",
        str(batch),
        f"{theoretical:.2f}",
        f"{np.median(found.dense_ms):.1f} {best}",
        f"{np.median(found.packed_ms):.1f} {choice.layout}",
        f"{ratio:.2f} [{low:.2f}, {high:.2f}]" if found.verdict != "not trusted" else "-",
        wanted,
        f"{ratio / theoretical:.0%}" if found.verdict != "not trusted" else "-",
        f"{found.null[0]:.3f} [{found.null[1]:.3f}, {found.null[2]:.3f}] x{found.attempts}",
        f"{found.verdict}; {deployed}",
        " ".join(f"{name} {count}" for name, count in Counter(choice.layers.values()).most_common()),
        f"{memory[1] / 2**20:.0f} / {memory[0] / 2**20:.0f}",
        f"{seconds:.0f}",
    ]


def _peak(run: Callable[[], object], images: Tensor) -> int:
    assert isinstance(run, functools.partial)
    network = run.func
    assert isinstance(network, nn.Module)
    return peak_bytes(network, images)


def protocol(quick: bool) -> latency.Protocol:
    """As the suite's, but at most 40 s; quick: 5 s."""
    if quick:
        return latency.Protocol(warmup_s=0.2, seconds=5, min_blocks=18, precision=None)
    return latency.Protocol(warmup_s=0.5, seconds=40, min_blocks=30, precision=0.03)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Time packed networks beside the fastest dense execution.")
    parser.add_argument("--quick", action="store_true", help="5 s a row instead of up to 40")
    parser.add_argument("--only", default="", help="rows whose name contains this, as 'resnet56 G=4'")
    parser.add_argument("--batch", type=int, help="this batch size; default: that of the target and 1, 8, 32, 128")
    parser.add_argument("--targets", action="store_true", help="only the batch size of the target")
    parser.add_argument("--layers", action="store_true", help="print the milliseconds of each layer's executions")
    parser.add_argument("--profile", action="store_true", help="print the milliseconds of each node in both networks")
    parser.add_argument("--compile", action="store_true", help="time torch.compile as one more dense execution")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    named = {f"{target.model} G={target.groups} -{target.removed:.0%}": target for target in TARGETS}
    wanted = [target for name, target in named.items() if options.only in name]
    if not wanted:
        parser.error(f"--only {options.only!r} is in none of: {', '.join(named)}")
    if options.threads < 1 or (options.batch is not None and options.batch < 1):
        parser.error("--threads and --batch take 1 or more")
    torch.set_num_threads(options.threads)
    console = Console(width=220)
    table = Table(
        *("network", "batch", "theor. x", "dense ms", "packed ms", "speed-up x [95 %]", "at least (aim)", "realised"),
        *("null test x measurements", "verdict; deployed", "executions", "peak MiB packed / dense", "tuning s"),
        title=f"packed beside the fastest dense network, fp32, {options.threads} threads, {platform.machine()}, torch "
        f"{torch.__version__}, {datetime.date.today()}",
    )
    for target in wanted:
        batches = (options.batch,) if options.batch else (target.batch,) if options.targets else BATCHES
        for batch in batches:
            line = measure(target, batch, options, console)
            console.print(" | ".join(line), markup=False)
            table.add_row(*(cell.replace("[", r"\[") for cell in line))
    console.print(table)


if __name__ == "__main__":
    main()
