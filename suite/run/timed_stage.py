"""The stage that measures latency: a packed network beside its dense one, alone on its device."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from suite import pack as packing
from suite import records
from suite.contract import PruningPlan
from suite.cudagraph import captured
from suite.graph import Graph
from suite.measure import bounds, latency, processes
from suite.measure.memory import peak_bytes
from suite.progress import Interrupted, Watch
from suite.run.workspace import Workspace
from suite.stages import Timed, Timing

CHOICES = "executions.json"
"""How each layer of the dense and of the packed network was executed, with the times that decided it."""
TUNED = "tuned"


@dataclass(frozen=True, kw_only=True)
class Job:
    """What one process measures: two packed networks by their files, so that a fresh process has all that it needs.

    executions   leg -> the packed execution that an earlier process chose; empty: the fastest is chosen here
    choices      of the layers of dense and packed network, by an earlier process ("full" protocol); empty: they are made here
    """

    dense: Path
    packed: Path
    timing: Timing
    threads: int
    executions: Mapping[records.Leg, str] = dataclasses.field(default_factory=dict)
    choices: tuple[packing.Choice, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Networks:
    """Ready for inference where they will run: the dense network and every packed execution that is to be tried."""

    dense: nn.Module
    candidates: Mapping[str, nn.Module]
    choices: tuple[packing.Choice, ...] = ()


Legs = Mapping[records.Leg, processes.Found]


def do_timed(work: Workspace[Timed]) -> None:
    """Measure eagerly and, on a GPU, as a captured graph; the row's headline is the last of these."""
    timing, pruned, watch = work.stage.timing, work.stage.pruned, work.watch
    if timing.device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "latency on cuda was asked for, and torch finds no CUDA device here; run it where there is one"
        )
    watch.report("timing", share=0.0)
    model = work.model("final", "cpu").eval()
    graph = Graph(model, work.dataset.input_shape)
    with tempfile.TemporaryDirectory() as folder:
        packed = work.context.folder(pruned) / "packed.safetensors"
        job = Job(dense=Path(folder) / "dense", packed=packed, timing=timing, threads=torch.get_num_threads())
        about = {name: packing.header(packed)[name] for name in ("model", "classes", "input_shape")}
        packing.save(packing.pack(model, graph, PruningPlan({})), job.dense, **about, about={})
        columns, choices = measured_columns(job, graph, watch)
    row = work.row(
        "done",
        **{**columns, "device": records.device_name(timing.device)},
        theoretical_x=graph.dense_macs.total / graph.macs(packing.plan_of(packed)).total,
    )
    if choices:
        packing.save_choices(work.folder / CHOICES, choices)
    work.finish((CHOICES,) if choices else (), row=row)


def measured_columns(
    job: Job, graph: Graph, watch: Watch | None = None
) -> tuple[dict[str, Any], tuple[packing.Choice, ...]]:
    """The measured columns of a `TimedRow`, and how the layers of dense and packed network were executed ("full" protocol).

    graph   of the dense network
    Raises Interrupted between processes.
    """
    found, chosen = _measure_all(job, watch or Watch())
    columns = _columns(found, job.timing)
    if job.timing.protocol == "full":
        columns |= _peaks_and_bound(chosen, graph)
        columns["of_bound"] = columns["bound_ms"] / columns["packed_ms"]
        names = ("dense", "packed")
        columns["layers"] = {name: one.columns() for name, one in zip(names, chosen.choices, strict=True)}
    return columns, chosen.choices


def _measure_all(job: Job, watch: Watch) -> tuple[list[Legs], Job]:
    """In this process and, by the full protocol, in fresh ones, which run what this one chose: the job that is returned."""
    count = latency.protocol(job.timing.protocol, job.timing.device).processes
    legs, choices = measure(job)
    again = dataclasses.replace(job, executions={name: leg.execution for name, leg in legs.items()}, choices=choices)
    found = [legs]
    for done in range(1, count):
        if watch.must_stop:
            raise Interrupted(f"stopped after {done} of {count} processes; latency is measured anew")
        watch.report("timing", share=done / count)
        found.append(processes.in_fresh_process(measure, again)[0])
    return found, again


def measure(job: Job) -> tuple[Legs, tuple[packing.Choice, ...]]:
    """Every leg, in this process, and the choices of layers that were made or given."""
    torch.set_num_threads(job.threads)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    networks = _networks(job)
    legs: tuple[records.Leg, ...] = ("eager", "graph") if job.timing.device == "cuda" else ("eager",)
    return {leg: _leg(networks, job, leg) for leg in legs}, networks.choices


def _networks(job: Job) -> Networks:
    """By the full protocol dense and packed network alike run each layer in the way that is fastest here; by the quick one the
    dense network is plain, and the packed one has one execution for all its layers."""
    dense, packed = (packing.load(path, job.timing.device) for path in (job.dense, job.packed))
    if job.timing.protocol == "full":
        images = images_for(job.timing, packing.header(job.packed)["input_shape"])
        given = job.choices or (None, None)
        (one, its), (other, others) = (
            packing.tuned(network, images, choice=choice)
            for network, choice in zip((dense, packed), given, strict=True)
        )
        return Networks(dense=one, candidates={TUNED: other}, choices=(its, others))
    candidates: dict[str, nn.Module] = {
        name: placed(packing.deploy(packed, name), job.timing) for name in executions_of(packed)
    }
    return Networks(dense=placed(packing.deploy(dense), job.timing), candidates=candidates)


def executions_of(packed: packing.PackedNetwork) -> tuple[packing.Execution, ...]:
    """Those that differ for this network, each for all its layers."""
    grouped = any(len(conv.weights) > 1 for conv in packed.convs())
    return get_args(packing.Execution) if grouped else ("groups",)


def placed(network: nn.Module, timing: Timing) -> nn.Module:
    """The network itself, on the device and in the precision and layout that are asked for."""
    return network.to(timing.device, latency.DTYPES[timing.precision]).to(memory_format=_layout(timing))


def images_for(timing: Timing, shape: Sequence[int]) -> Tensor:
    """The batch that is timed, random, placed like the network."""
    images = torch.randn(timing.batch, *shape, generator=torch.Generator().manual_seed(0))
    return images.to(timing.device, latency.DTYPES[timing.precision], memory_format=_layout(timing))


def _layout(timing: Timing) -> torch.memory_format:
    return torch.channels_last if timing.layout == "channels_last" else torch.contiguous_format


def _leg(networks: Networks, job: Job, leg: records.Leg) -> processes.Found:
    """Choose the fastest packed execution unless that was done, then measure it beside the dense network."""
    timing = job.timing
    images = images_for(timing, packing.header(job.packed)["input_shape"])

    def prepare(network: nn.Module) -> latency.Run:
        run = functools.partial(network, images)
        return captured(run) if leg == "graph" else run

    names = [job.executions[leg]] if leg in job.executions else list(networks.candidates)
    runs = {name: prepare(networks.candidates[name]) for name in names}
    protocol = latency.protocol(timing.protocol, timing.device)
    return processes.choose_and_compare(prepare(networks.dense), runs, timing.device, protocol)


def _columns(found: Sequence[Legs], timing: Timing) -> dict[str, Any]:
    """The row's columns: those of the last leg, the eager leg's ratio, and every process of both."""
    legs = {leg: processes.columns([process[leg] for process in found], timing.device) for leg in found[0]}
    leg, best = list(legs.items())[-1]
    eager = legs["eager"]
    return {
        **best,
        **{f"eager_{name}": eager[name] for name in ("speedup_x", "speedup_low_x", "speedup_high_x")},
        "leg": leg,
        "processes": tuple({"leg": name, **one} for name, columns in legs.items() for one in columns["processes"]),
        "flags": tuple(dict.fromkeys(flag for columns in legs.values() for flag in columns["flags"])),
        "cudnn_benchmark": torch.backends.cudnn.benchmark if timing.device == "cuda" else None,
    }


def _peaks_and_bound(job: Job, graph: Graph) -> dict[str, Any]:
    """Peak memory of both networks, and their least times on paper."""
    timing, networks = job.timing, _networks(job)
    images = images_for(timing, graph.input_shape)
    dtype = latency.DTYPES[timing.precision]
    peak = bounds.measured_peak(timing.device, dtype, job.threads)

    def bound_ms(plan: PruningPlan) -> float:
        return bounds.total_ms(bounds.layer_bounds(graph, plan, peak, batch=timing.batch, dtype=dtype))

    return {
        "dense_peak_bytes": peak_bytes(networks.dense, images),
        "packed_peak_bytes": peak_bytes(networks.candidates[TUNED], images),
        "dense_bound_ms": bound_ms(PruningPlan({})),
        "bound_ms": bound_ms(packing.plan_of(job.packed)),
    }
