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
from suite.graph import Graph
from suite.measure import bounds, latency, machine
from suite.measure.fresh import in_fresh_process
from suite.measure.memory import peak_bytes
from suite.progress import Interrupted, Watch
from suite.run import common
from suite.run.folder import Context, finish
from suite.stages import Timed, Timing

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Job:
    """What one process measures: two packed networks by their files, so that a fresh process has all that it needs.

    executions   leg -> the packed execution that an earlier process chose; empty: the fastest is chosen here
    """

    dense: Path
    packed: Path
    timing: Timing
    threads: int
    executions: Mapping[str, packing.Execution] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Leg:
    """What one process found in one leg."""

    comparison: latency.Comparison
    execution: packing.Execution
    executions_ms: Mapping[packing.Execution, float]
    conditions: Mapping[str, Any]


def do_timed(stage: Timed, context: Context, watch: Watch) -> None:
    """Measure eagerly and, on a GPU, as a captured graph; the row's headline is the last of these."""
    timing, pruned = stage.timing, stage.pruned
    if timing.device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "latency on cuda was asked for, and torch finds no CUDA device here; run it where there is one"
        )
    watch.report("timing", share=0.0)
    model = common.load_model(pruned.base, dataclasses.replace(context, device="cpu"), "final").eval()
    graph = Graph(model, common.dataset_of(pruned.base, context).input_shape)
    with tempfile.TemporaryDirectory() as folder:
        packed = context.folder(pruned) / "packed.safetensors"
        job = Job(dense=Path(folder) / "dense", packed=packed, timing=timing, threads=torch.get_num_threads())
        about = {name: packing.header(packed)[name] for name in ("model", "classes", "input_shape")}
        packing.save(packing.pack(model, graph, PruningPlan({})), job.dense, **about, about={})
        found, chosen = _measure_all(job, watch)
        only_full = _peaks_and_bound(chosen, graph) if timing.protocol == "full" else {}
    columns = _columns(found, timing)
    if only_full:
        only_full["of_bound"] = only_full["bound_ms"] / columns["packed_ms"]
    row = common.make_row(
        stage,
        context,
        status="done",
        **{**columns, **only_full, "device": records.device_name(timing.device)},
        theoretical_x=graph.dense_macs.total / graph.macs(packing.plan_of(packed)).total,
    )
    finish(stage, context, (), {}, row)


def _measure_all(job: Job, watch: Watch) -> tuple[list[dict[records.Leg, Leg]], Job]:
    """In this process and, by the full protocol, in fresh ones, which run what this one chose: the job that is returned."""
    count = latency.protocol(job.timing.protocol, job.timing.device).processes
    found = [measure(job)]
    again = dataclasses.replace(job, executions={name: leg.execution for name, leg in found[0].items()})
    for done in range(1, count):
        if watch.must_stop:
            raise Interrupted(f"stopped after {done} of {count} processes; latency is measured anew")
        watch.report("timing", share=done / count)
        found.append(in_fresh_process(measure, again))
    return found, again


def measure(job: Job) -> dict[records.Leg, Leg]:
    """Every leg, in this process."""
    torch.set_num_threads(job.threads)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    dense, candidates = _networks(job)
    legs: tuple[records.Leg, ...] = ("eager", "graph") if job.timing.device == "cuda" else ("eager",)
    return {leg: _leg(dense, candidates, job, leg) for leg in legs}


def _networks(job: Job) -> tuple[nn.Module, dict[packing.Execution, nn.Module]]:
    """The dense network and every packed execution that is to be tried, ready for inference where they will run."""
    dense, packed = (packing.load(path, job.timing.device) for path in (job.dense, job.packed))
    grouped = any(len(conv.weights) > 1 for conv in packed.convs())
    tried = set(job.executions.values()) or set(get_args(packing.Execution) if grouped else ("groups",))
    candidates = {name: packing.deploy(packed, name) for name in sorted(tried)}
    ready = packing.deploy(dense)
    for network in (ready, *candidates.values()):
        network.to(job.timing.device, _DTYPES[job.timing.precision]).to(memory_format=_layout(job.timing))
    return ready, candidates


def _layout(timing: Timing) -> torch.memory_format:
    return torch.channels_last if timing.layout == "channels_last" else torch.contiguous_format


def _images(timing: Timing, shape: tuple[int, ...]) -> Tensor:
    images = torch.randn(timing.batch, *shape, generator=torch.Generator().manual_seed(0))
    return images.to(timing.device, _DTYPES[timing.precision], memory_format=_layout(timing))


def _leg(dense: nn.Module, candidates: Mapping[packing.Execution, nn.Module], job: Job, leg: records.Leg) -> Leg:
    """Choose the fastest packed execution unless that was done, then measure it beside the dense network."""
    timing = job.timing
    images = _images(timing, packing.header(job.packed)["input_shape"])

    def prepare(network: nn.Module) -> latency.Run:
        return latency.captured(network, images) if leg == "graph" else functools.partial(network, images)

    if leg in job.executions:
        runs = {job.executions[leg]: prepare(candidates[job.executions[leg]])}
        chosen, milliseconds = job.executions[leg], dict[packing.Execution, float]()
    else:
        runs = {name: prepare(network) for name, network in candidates.items()}
        chosen, milliseconds = latency.fastest(runs, timing.device)
    with machine.watched(timing.device) as conditions:
        comparison = latency.compare(prepare(dense), runs[chosen], timing.device, _protocol(timing))
    return Leg(comparison=comparison, execution=chosen, executions_ms=milliseconds, conditions=conditions)


def _protocol(timing: Timing) -> latency.Protocol:
    return latency.protocol(timing.protocol, timing.device)


def _columns(found: Sequence[Mapping[records.Leg, Leg]], timing: Timing) -> dict[str, Any]:
    """The row's columns: those of the last leg, the eager leg's ratio, and every process."""
    legs = {leg: latency.combined([process[leg].comparison for process in found]) for leg in found[0]}
    leg, best = list(legs.items())[-1]
    chosen = found[0][leg]
    eager = legs["eager"].columns()
    conditions = [one.conditions for process in found for one in process.values()]
    return {
        **best.columns(),
        **{f"eager_{name}": eager[name] for name in ("speedup_x", "speedup_low_x", "speedup_high_x")},
        "leg": leg,
        "execution": chosen.execution,
        "executions_ms": dict(chosen.executions_ms),
        "deployed": chosen.execution if best.verdict in ("faster", "no difference") else "dense",
        "processes": tuple(
            {"process": number, "leg": name, **one.comparison.ratios(), **one.conditions}
            for number, process in enumerate(found)
            for name, one in process.items()
        ),
        "flags": machine.flags(conditions, timing.device),
        "cudnn_benchmark": torch.backends.cudnn.benchmark if timing.device == "cuda" else None,
    }


def _peaks_and_bound(job: Job, graph: Graph) -> dict[str, Any]:
    """Peak memory of both networks (by the execution of the row's leg), and the least time on paper for the packed one."""
    timing = job.timing
    dense, candidates = _networks(job)
    images = _images(timing, graph.input_shape)
    dtype = _DTYPES[timing.precision]
    peak = bounds.measured_peak(timing.device, dtype, job.threads)
    layers = bounds.layer_bounds(graph, packing.plan_of(job.packed), peak, batch=timing.batch, dtype=dtype)
    return {
        "dense_peak_bytes": peak_bytes(dense, images),
        "packed_peak_bytes": peak_bytes(candidates[list(job.executions.values())[-1]], images),
        "bound_ms": bounds.total_ms(layers),
    }
