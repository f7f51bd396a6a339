"""The stage that measures latency: a packed network beside its dense one, alone on its device."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import torch
from torch import Tensor, nn

from suite import pack as packing
from suite import records
from suite.contract import PruningPlan
from suite.graph import Graph
from suite.measure import latency
from suite.progress import Watch
from suite.run import common
from suite.run.folder import Context, finish
from suite.stages import Timed, Timing

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def do_timed(stage: Timed, context: Context, watch: Watch) -> None:
    """Measure eagerly and, on a GPU, as a captured graph; the row's headline is the last of these."""
    timing, pruned = stage.timing, stage.pruned
    if timing.device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "latency on cuda was asked for, and torch finds no CUDA device here; run it where there is one"
        )
    watch.report("timing", share=0.0)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    packed = packing.load(context.folder(pruned) / "packed.safetensors", timing.device)
    model = common.load_model(pruned.base, dataclasses.replace(context, device=timing.device), "final").eval()
    graph = Graph(model, common.dataset_of(pruned.base, context).input_shape)
    dense = packing.deploy(packing.pack(model, graph, PruningPlan({})))
    grouped = any(len(conv.weights) > 1 for conv in packed.convs())
    executions: tuple[packing.Execution, ...] = ("groups", "union") if grouped else ("groups",)
    candidates: dict[str, nn.Module] = {name: packing.deploy(packed, name) for name in executions}
    images = _images(timing, graph.input_shape)
    for network in (dense, *candidates.values()):
        network.to(images.device, images.dtype).to(memory_format=_layout(timing))
    eager = _leg(dense, candidates, images, timing, "eager")
    best = _leg(dense, candidates, images, timing, "graph") if timing.device == "cuda" else eager
    columns = {**best, **{f"eager_{name}": eager[name] for name in ("speedup_x", "speedup_low_x", "speedup_high_x")}}
    row = common.make_row(
        stage,
        context,
        status="done",
        **{**columns, "device": records.device_name(timing.device)},
        theoretical_x=graph.dense_macs.total / graph.macs(packed.plan).total,
    )
    finish(stage, context, (), {}, row)


def _layout(timing: Timing) -> torch.memory_format:
    return torch.channels_last if timing.layout == "channels_last" else torch.contiguous_format


def _images(timing: Timing, shape: tuple[int, ...]) -> Tensor:
    images = torch.randn(timing.batch, *shape, generator=torch.Generator().manual_seed(0))
    return images.to(timing.device, _DTYPES[timing.precision], memory_format=_layout(timing))


def _leg(
    dense: nn.Module, candidates: dict[str, nn.Module], images: Tensor, timing: Timing, leg: records.Leg
) -> dict[str, Any]:
    """Choose the fastest packed execution, then measure it beside the dense network."""

    def prepare(network: nn.Module) -> latency.Run:
        return latency.captured(network, images) if leg == "graph" else functools.partial(network, images)

    runs = {name: prepare(network) for name, network in candidates.items()}
    chosen, milliseconds = latency.fastest(runs, timing.device)
    protocol = latency.protocol(timing.protocol, timing.device)
    comparison = latency.compare(prepare(dense), runs[chosen], timing.device, protocol)
    deployed = chosen if comparison.verdict in ("faster", "no difference") else "dense"
    about = {"leg": leg, "execution": chosen, "executions_ms": milliseconds, "deployed": deployed}
    return {**comparison.columns(), **about}
