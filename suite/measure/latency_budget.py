"""Plans for latency budgets: predicted by layer times, then measured beside the dense network."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from suite import lease, records, select
from suite import pack as packing
from suite.cudagraph import captured
from suite.graph import Graph
from suite.measure import latency, layer_times
from suite.measure.executions import executions, random_images
from suite.measure.layer_times import LayerTable
from suite.measure.networks import Network, flush_denormals
from suite.measure.protocol import check_device, measuring, protocol
from suite.pack.runtimes import why_not
from suite.plan import Budget, Planner, PruningPlan, Timing
from suite.select import Selection
from suite.timing import Run, fastest, steady_clock

FOLDER = "layer_times"
"""Name of the folder of tables in a results folder."""
CLOSE = 0.02
"""Largest distance of the measured share of time from the budget."""
CORRECTIONS = 2
log = logging.getLogger(__name__)


def table_for(model: nn.Module, graph: Graph, timing: Timing, folder: Path | None = None) -> LayerTable:
    """Return the table of layer times of this network.

    With torch's number of threads if the timing has none.

    folder   holds a file for each geometry, timing and number of threads. A missing table is measured and stored there; a
             process that needs the same table waits. None: the table is measured and not stored

    Raises ValueError if the device or the runtime is missing, or if the file's table is of another device.
    """
    check_device(timing)
    if reason := why_not(timing.runtime, timing.device, timing.precision):
        raise ValueError(f"no time is measured here: {timing.runtime} {reason}")
    if folder is None:
        return _measured_table(model, graph, timing)
    path = table_path(graph, timing, folder)
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with lease.held(path.with_suffix(".lease"), waiting=lambda owner: None, lost=lambda: None):
            if not path.exists():
                log.info("measuring the layer times of %s", path.stem)
                layer_times.save(_measured_table(model, graph, timing), path)
    table, device = layer_times.load(path), records.device_name(timing.device)
    if (measured_on := table.provenance.get("device")) != device:
        raise ValueError(
            f"{path} has the layer times of {measured_on}, and this machine is {device}: run it there, or delete the file"
        )
    timed = dataclasses.replace(table.timing, threads=timing.threads)  # the number of threads is in the file's name
    if table.layers != layer_times.geometries(graph) or timed != timing:
        raise ValueError(
            f"{path} has the layer times of another network or timing: delete it to have it measured again"
        )
    return table


def table_path(graph: Graph, timing: Timing, folder: Path) -> Path:
    """Return the path of a table, with a hash of geometries, timing and terms."""
    conditions = dataclasses.asdict(timing)
    runtime = "" if timing.runtime == "torch" else f"_{timing.runtime}"
    del conditions["threads"]  # stand in the name
    content = json.dumps([layer_times.geometries(graph), conditions, layer_times.TERMS], sort_keys=True)
    threads = f"_{timing.threads or torch.get_num_threads()}threads" if timing.device == "cpu" else ""
    digest = hashlib.sha256(content.encode()).hexdigest()[:8]
    name = f"{timing.device}{threads}{runtime}_{timing.precision}_batch{timing.batch}_{timing.layout}_{digest}"
    return folder / f"{name}.json"


def _measured_table(model: nn.Module, graph: Graph, timing: Timing) -> LayerTable:
    with _measuring(timing):
        return layer_times.measure_table(model, graph, timing)


def meet(planner: Planner, model: nn.Module, graph: Graph, budget: Budget) -> Selection:
    """Return the plan that meets the budget; of a latency budget, by measurement.

    The plan of a latency budget is packed and timed beside the dense network. If the measured share of time is not within `CLOSE`
    of the budget, the predicted share is corrected, `CORRECTIONS` times at most: between two plans on both sides of the budget by
    interpolation, else in proportion. The result is the plan with the closest measured share. It is coarse if this share is not
    close either.

    Raises ValueError if the planner cannot reach the budget, and if `graph.times` is missing for a latency budget.
    """
    if budget.timing is None or budget.share == 0:
        return select.meet(planner, graph, budget)
    most = graph.cut(planner(1.0), "latency")
    aim, attempts = budget.share, list[Selection]()
    for number in range(CORRECTIONS + 1):
        selection = select.meet(planner, graph, dataclasses.replace(budget, share=aim))
        cut = measured_cut(model, graph, selection.plan, budget.timing)
        coarse = abs(cut - budget.share) > CLOSE
        attempts.append(dataclasses.replace(selection, measured_cut=cut, coarse=coarse, corrections=number))
        log.info("predicted share of time %.1f %%, measured %.1f %%", 100 * selection.cut, 100 * cut)
        corrected = min(_corrected(attempts, budget.share), most)
        if not coarse or corrected <= 0 or corrected == aim:
            break
        aim = corrected
    best = min(attempts, key=lambda one: abs((one.measured_cut or 0.0) - budget.share))
    if best.coarse:
        log.warning(
            "the closest of %d plans removes %.1f %% of the measured time, and the budget is %.1f %%: the run is coarse",
            len(attempts),
            100 * (best.measured_cut or 0.0),
            100 * budget.share,
        )
    return dataclasses.replace(best, corrections=len(attempts) - 1)


def _corrected(attempts: list[Selection], share: float) -> float:
    """Return the predicted share of time of a plan whose measured share should be `share`."""
    measured = {one.measured_cut: one.cut for one in attempts if one.measured_cut is not None}
    below = [cut for cut in measured if cut <= share]
    above = [cut for cut in measured if cut > share]
    if below and above:
        ends = max(below), min(above)
        return float(np.interp(share, ends, [measured[end] for end in ends]))
    closest = min(measured, key=lambda cut: abs(cut - share))
    return 1 - (1 - measured[closest]) * (1 - share) / max(1 - closest, 1e-9)


def measured_cut(model: nn.Module, graph: Graph, plan: PruningPlan, timing: Timing) -> float:
    """Return the share of the dense network's time that a plan removes.

    Both networks alternate in blocks for about a second. The clock is CPU time with one thread, else the wall clock.
    """
    quick = protocol(dataclasses.replace(timing, protocol="quick"))
    with _measuring(timing):
        dense, packed = (_fastest(model, graph, each, timing) for each in (PruningPlan({}), plan))
        result = latency.alternate(dense, packed, timing.device, quick)
        ratio = result.cpu if steady_clock(timing.device) and result.cpu is not None else result.ratio
    return 1 - 1 / ratio[0]


def _fastest(model: nn.Module, graph: Graph, plan: PruningPlan, timing: Timing) -> Run:
    """Return a run of the fastest execution in the timing's runtime.

    In torch on a GPU the run is a captured graph.
    """
    packed = packing.pack(model, graph, plan).eval()
    flush_denormals(packed)
    network = Network(name="packed", kind="packed", module=packed, params=0, packed=packed)
    runs = executions(network, random_images(timing, graph.input_shape), timing).runs
    if timing.device == "cuda" and timing.runtime == "torch":
        runs = {name: captured(run) for name, run in runs.items()}
    return runs[fastest(runs, timing.device)[0]] if len(runs) > 1 else next(iter(runs.values()))


@contextlib.contextmanager
def _measuring(timing: Timing) -> Iterator[None]:
    """Set up torch as for timed stages.

    Restore its state and that of random generators at the end.
    """
    with torch.random.fork_rng(), measuring(timing.threads or torch.get_num_threads()):
        yield
