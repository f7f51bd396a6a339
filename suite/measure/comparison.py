"""Latency of a network in a file beside a dense one.

The full protocol measures in this process and in fresh ones, because the choice of algorithms differs between processes.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from suite import pack as packing
from suite.cudagraph import captured
from suite.measure import bounds, energy, int8, latency, losses, machine, networks
from suite.measure.executions import ONNX, TUNED, Executions, check, executions, random_images, reference, runtime
from suite.measure.memory import peak_bytes
from suite.measure.networks import Shape
from suite.measure.protocol import Protocol, check_device, measuring, protocol
from suite.plan import Timing
from suite.progress import Interrupted, Watch
from suite.records import Leg
from suite.timing import Run, fastest

Choices = tuple[Mapping[str, packing.Choice], Mapping[str, packing.Choice]]
"""Execution -> executions of the layers, of the dense and of the other network (`Executions.choices`)."""
Argument = TypeVar("Argument")
Result = TypeVar("Result")
Report = Callable[[float], object]
"""Receiver of progress: a share from 0 to 1, or seconds."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Work of one measuring process: files and settings, which a fresh process can unpickle.

    also     further executions to try; strict: one that fails raises, else it is left out
    chosen   leg -> executions of the dense and of the other network, by the first process; empty: chosen here
    choices  executions of the layers of both, likewise
    trust    load parts that execute code of a file's author, too
    """

    dense: Path
    other: Path
    shape: Shape
    timing: Timing
    protocol: Protocol
    threads: int
    also: tuple[str, ...] = ()
    strict: bool = True
    chosen: Mapping[Leg, tuple[str, str]] = field(default_factory=dict)
    choices: Choices = field(default_factory=lambda: ({}, {}))
    trust: bool = False


@dataclass(frozen=True, kw_only=True)
class LegResult:
    """Measurement of one leg in one process.

    chosen          the fastest executions of the dense and of the other network
    executions_ms   (dense, other): name -> milliseconds of all that were tried; empty if there was one only
    conditions      of the machine, see `machine.watched`
    energy          `energy.columns` of the first process, {} of others
    """

    measurement: latency.Measurement
    chosen: tuple[str, str]
    executions_ms: tuple[Mapping[str, float], Mapping[str, float]]
    conditions: Mapping[str, Any]
    energy: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Latency of a network beside a dense one.

    legs     "eager" and, on a GPU, "graph" (a captured CUDA graph) -> the result of each process
    choices  executions of the layers of the dense and of the other network, where both were tuned; else ()
    runtime_choices   of both networks, the same in each other runtime that was tried
    missing  execution that was not tried -> reason
    int8     both networks in int8 (`int8.columns`); {} by the quick protocol
    losses   time that each layer loses, and the cause (`losses.columns`); {} if it was not asked for
    limits   peak memory and the least time on paper of both, where both were tuned; else {}
    """

    timing: Timing
    legs: Mapping[Leg, Sequence[LegResult]]
    choices: tuple[packing.Choice, ...]
    limits: Mapping[str, Any]
    missing: Mapping[str, str] = field(default_factory=dict)
    int8: Mapping[str, Any] = field(default_factory=dict)
    losses: Mapping[str, Any] = field(default_factory=dict)
    runtime_choices: Choices = field(default_factory=lambda: ({}, {}))

    @property
    def leg(self) -> Leg:
        """The headline's leg: the last one."""
        return list(self.legs)[-1]

    @property
    def first(self) -> LegResult:
        """The headline leg of the first process, which chose the executions."""
        return self.legs[self.leg][0]

    def measurement(self, leg: Leg | None = None) -> latency.Measurement:
        """Return the combined measurement of all processes; of the headline's leg by default."""
        return latency.combine([result.measurement for result in self.legs[leg or self.leg]])

    @property
    def deployed(self) -> str:
        """Execution to deploy: "dense" if the other is slower or the null test fails."""
        verdict = self.measurement().verdict
        return self.first.chosen[1] if verdict in ("faster", "no difference") else "dense"

    @property
    def reference(self) -> tuple[str, ...]:
        """The runtimes that both networks tried, in which the dense one is the reference."""
        dense, other = ({runtime(name) for name in (*ms, chosen)} for ms, chosen in self._tried)
        return tuple(sorted(dense & other))

    @property
    def _tried(self) -> list[tuple[Mapping[str, float], str]]:
        return list(zip(self.first.executions_ms, self.first.chosen, strict=True))

    @property
    def runtimes(self) -> tuple[str, str]:
        """The runtimes of the dense and of the other network."""
        return runtime(self.first.chosen[0]), runtime(self.first.chosen[1])

    @property
    def verdict(self) -> str:
        """The claim, with both runtimes if they differ, because pruning may not be the cause."""
        dense, other = self.runtimes
        claim = self.measurement().verdict
        across = dense != other and claim in ("faster", "slower")
        return f"{claim} across runtimes: {other} beside dense in {dense}" if across else claim

    def __str__(self) -> str:
        measured, about = self.measurement(), self.timing
        ratio, low, high = measured.ratio
        doubts = f" ({'; '.join(measured.flags)})" if measured.flags else ""
        return (
            f"{about.device}, batch {about.batch}, {about.precision}: {np.median(measured.dense_ms):.3g} ms dense, "
            f"{np.median(measured.packed_ms):.3g} ms packed, {ratio:.2f} [{low:.2f}, {high:.2f}] times as fast: "
            f"{self.verdict}{doubts}"
        )

    def columns(self) -> dict[str, Any]:
        """Return the measured columns of a `TimedRow`."""
        headline = self.measurement().columns()
        eager = self.measurement("eager").columns()
        flags = [flag for leg in self.legs for flag in self.measurement(leg).flags]
        columns = {
            **headline,
            "verdict": self.verdict,
            "dense_execution": self.first.chosen[0],
            "dense_executions_ms": dict(self.first.executions_ms[0]),
            "runtimes": dict(zip(("dense", "packed"), self.runtimes, strict=True)),
            "reference": self.reference,
            "reference_missing": dict(self.missing),
            "runtime_layers": self._runtime_layers(),
            "execution": self.first.chosen[1],
            "executions_ms": dict(self.first.executions_ms[1]),
            "deployed": self.deployed,
            **{f"eager_{name}": eager[name] for name in ("speedup_x", "speedup_low_x", "speedup_high_x")},
            "leg": self.leg,
            "processes": tuple(
                {"leg": leg, "process": number, **result.measurement.ratios(), **result.conditions}
                for leg, results in self.legs.items()
                for number, result in enumerate(results)
            ),
            "energy": dict(self.first.energy),
            "int8": dict(self.int8),
            "losses": dict(self.losses),
            "flags": tuple(dict.fromkeys(flags)),
            "cudnn_benchmark": torch.backends.cudnn.benchmark if self.timing.device == "cuda" else None,
            **self.limits,
        }
        if self.choices:
            names = ("dense", "packed")
            columns["layers"] = {name: one.columns() for name, one in zip(names, self.choices, strict=True)}
            columns["of_bound"] = columns["bound_ms"] / columns["packed_ms"]
        return columns

    def _runtime_layers(self) -> dict[str, dict[str, dict[str, int]]]:
        """Return runtime -> "dense" and "packed" -> number of layers per execution."""
        layers: dict[str, dict[str, dict[str, int]]] = {}
        for network, choices in zip(("dense", "packed"), self.runtime_choices, strict=True):
            for name, choice in choices.items():
                if name != TUNED:
                    layers.setdefault(name, {})[network] = choice.columns()["executions"]
        return layers


def compare(
    dense: Path,
    other: Path,
    timing: Timing,
    *,
    shape: Shape | None = None,
    also: Sequence[str] | None = None,
    duration: Protocol | None = None,
    watch: Watch | None = None,
    trust: bool = False,
    layers: bool = False,
) -> Comparison:
    """Measure the network in `other` beside the one in `dense`.

    With torch's number of threads if the timing has none.

    shape     [C, H, W] of an image; None: the one in the file `other`
    also      further executions to try, of `executions.PLAIN` and `executions.COMPILERS`; None: those of
              `executions.reference`, without those that fail here
    duration  None: that of the timing's protocol
    trust     load parts that execute code of a file's author, too
    layers    measure the time that each layer loses; the full protocol always does if the other network is not faster
    The networks run in this process and in fresh ones without confinement. `python -m suite.measure` confines them.
    Raises ValueError if a network cannot run under these conditions, and Interrupted between processes.
    """
    check_device(timing)
    shape = shape or networks.load(str(other), trust=trust).input_shape
    if shape is None:
        raise ValueError(f"{other} has no input shape in it: give one")
    tried, missing = reference(timing) if also is None else (tuple(also), {})
    job = Job(
        dense=dense,
        other=other,
        shape=shape,
        timing=timing,
        protocol=duration or protocol(timing),
        threads=timing.threads or torch.get_num_threads(),
        also=tried,
        strict=also is not None,
        trust=trust,
    )
    processes, choices, failed = _repeated(job, watch or Watch())
    tuned = tuple(by_name[TUNED] for by_name in choices if TUNED in by_name)
    both_tuned = len(tuned) == len(choices)
    chosen = dataclasses.replace(job, choices=choices)
    result = Comparison(
        timing=timing,
        legs={leg: [process[leg] for process in processes] for leg in processes[0]},
        choices=tuned if both_tuned else (),
        runtime_choices=choices,
        int8=_int8(chosen) if timing.protocol == "full" else {},
        limits=_limits(chosen) if both_tuned else {},
        missing={**missing, **failed},
    )
    if layers or (timing.protocol == "full" and result.verdict != "faster"):
        result = dataclasses.replace(result, losses=_losses(chosen, result.first.chosen))
    return result


def _repeated(job: Job, watch: Watch) -> tuple[list[dict[Leg, LegResult]], Choices, dict[str, str]]:
    """Measure here, then in fresh processes with the executions chosen here.

    Raises Interrupted between processes.
    """
    count, started = job.protocol.processes, time.monotonic()
    watch.report("timing", share=0.0)
    first, choices, failed = measure(job, lambda share: watch.report("timing", share=share / count))
    first_s = time.monotonic() - started
    job = dataclasses.replace(job, chosen={leg: result.chosen for leg, result in first.items()}, choices=choices)
    processes = [first]
    for done in range(1, count):
        if watch.must_stop:
            raise Interrupted(f"stopped after {done} of {count} processes; latency is measured anew")

        def report(seconds: float, done: int = done) -> None:
            watch.report("timing", share=(done + min(seconds / first_s, 0.95)) / count)

        processes.append(in_fresh_process(measure, job, report)[0])
    return processes, choices, failed


def measure(job: Job, report: Report = lambda share: None) -> tuple[dict[Leg, LegResult], Choices, dict[str, str]]:
    """Measure every leg in this process; return results, executions of layers, and failures by execution.

    report   is called with the share of the blocks that is done, 0 to 1
    """
    legs: tuple[Leg, ...] = ("eager", "graph") if job.timing.device == "cuda" else ("eager",)
    results: dict[Leg, LegResult] = {}
    with measuring(job.threads):
        dense, other = _prepare(job)
        for number, leg in enumerate(legs):

            def report_leg(share: float, number: int = number) -> None:
                report((number + share) / len(legs))

            results[leg] = _leg(dense.runs, other.runs, job, leg, report_leg)
    return results, (dense.choices, other.choices), {**dense.missing, **other.missing}


def _prepare(job: Job) -> list[Executions]:
    """Load both networks and prepare their executions: all, or the ones chosen earlier.

    Raises ValueError if a network has no execution that runs here, or lacks one that was chosen.
    """
    images = random_images(job.timing, job.shape)
    chosen = tuple(zip(*job.chosen.values(), strict=True)) or ((), ())
    loaded = [networks.load(str(path), trust=job.trust) for path in (job.dense, job.other)]
    with_onnx = any(getattr(network, "kind", "") == "onnx" for network in loaded)
    also = (*job.also, *([ONNX] if with_onnx and ONNX not in job.also else []))  # both in the runtime of the file
    for network in loaded:
        check(network, job.timing, also)
    prepared = [
        executions(
            network, images, job.timing, also=also, only=names, choices=choices, strict=job.strict or bool(names)
        )
        for network, names, choices in zip(loaded, chosen, job.choices, strict=True)
    ]
    for path, made in zip((job.dense, job.other), prepared, strict=True):
        if not made.runs:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in made.missing.items())
            raise ValueError(f"{path} runs in no runtime of this measurement ({reasons}): measure another runtime")
    return prepared


def _leg(dense: Mapping[str, Run], other: Mapping[str, Run], job: Job, leg: Leg, report: Report) -> LegResult:
    """Choose the executions of both networks unless the job names them, then measure both."""
    device = job.timing.device
    prepared, milliseconds = [], []
    for place, candidates in enumerate((dense, other)):
        if leg in job.chosen:
            candidates = {job.chosen[leg][place]: candidates[job.chosen[leg][place]]}
        prepared.append({name: captured(run) if leg == "graph" else run for name, run in candidates.items()})
        milliseconds.append(fastest(prepared[-1], device)[1] if len(candidates) > 1 else {})
    names = _pair(
        *({name: ms.get(name, 0.0) for name in runs} for runs, ms in zip(prepared, milliseconds, strict=True))
    )
    runs = [runs[name] for runs, name in zip(prepared, names, strict=True)]
    with machine.watched(device) as conditions:
        measurement = latency.alternate(runs[0], runs[1], device, job.protocol, report)
    return LegResult(
        measurement=dataclasses.replace(measurement, flags=machine.flags([conditions], device, [job.timing.precision])),
        chosen=names,
        executions_ms=(milliseconds[0], milliseconds[1]),
        conditions=conditions,
        energy=energy.columns(runs[0], runs[1], job.timing) if not job.chosen else {},
    )


def _pair(dense_ms: Mapping[str, float], other_ms: Mapping[str, float]) -> tuple[str, str]:
    """Return the executions to compare, both in the dense network's fastest runtime.

    Without a common runtime, each network has its fastest execution.
    """
    common = {runtime(name) for name in dense_ms} & {runtime(name) for name in other_ms}
    dense = min((name for name in dense_ms if not common or runtime(name) in common), key=dense_ms.__getitem__)
    allowed = [name for name in other_ms if not common or runtime(name) == runtime(dense)]
    return dense, min(allowed, key=other_ms.__getitem__)


def _limits(job: Job) -> dict[str, Any]:
    """Return the columns of peak memory and least time on paper of both tuned networks."""
    images = random_images(job.timing, job.shape)
    columns: dict[str, Any] = {}
    loaded = [networks.load(str(path), trust=job.trust) for path in (job.dense, job.other)]
    with measuring(job.threads):
        for name, network, choices in zip(("dense", "packed"), loaded, job.choices, strict=True):
            assert network.packed is not None
            tuned, _ = packing.tuned(network.packed, images, choice=choices[TUNED])
            columns[f"{name}_peak_bytes"] = peak_bytes(tuned, images)
        peak = bounds.measured_peak(job.timing.device, images.dtype, job.threads)
    for name, network in zip(("dense_bound_ms", "bound_ms"), loaded, strict=True):
        graph, plan = networks.graph_and_plan(network)
        layers = bounds.layer_bounds(graph, plan, peak, batch=job.timing.batch, dtype=images.dtype)
        columns[name] = bounds.total_ms(layers)
    return columns


def _losses(job: Job, names: tuple[str, str]) -> dict[str, Any]:
    """Return the columns of the time that each layer loses (`losses.columns`)."""
    dense, other = (networks.load(str(path), trust=job.trust) for path in (job.dense, job.other))
    with measuring(job.threads):
        return losses.columns((dense, other), names, job.choices, job.timing)


def _int8(job: Job) -> dict[str, Any]:
    """Return the columns of both networks in int8 (`int8.columns`)."""
    loaded = [networks.load(str(path), trust=job.trust) for path in (job.dense, job.other)]
    packed = [network.packed for network in loaded if network.packed is not None]
    if len(packed) < len(loaded):
        return {"missing": "only packed networks are quantized here"}
    names = ("dense", "packed")
    choices = {name: by[ONNX] for name, by in zip(names, job.choices, strict=True) if ONNX in by}
    images = random_images(job.timing, job.shape)
    with measuring(job.threads):
        return int8.columns(dict(zip(names, packed, strict=True)), choices, images, job.timing, job.protocol)


def in_fresh_process(
    function: Callable[[Argument], Result], argument: Argument, report: Report = lambda seconds: None
) -> Result:
    """Return `function(argument)` as computed by a new Python; the function is one of a module.

    report   is called with the seconds since the start, every second
    Raises what the function raises, and ValueError if the process was killed.
    """
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as pool:
        started = time.monotonic()
        future = pool.submit(function, argument)
        while not wait([future], timeout=1).done:
            report(time.monotonic() - started)
        try:
            return future.result()
        except BrokenProcessPool:
            raise ValueError(
                "a measuring process was killed; out of memory is the usual reason: try a smaller batch"
            ) from None
