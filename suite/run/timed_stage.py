"""The timed stage: latency of a packed network beside its dense one."""

from __future__ import annotations

import tempfile
from pathlib import Path

from suite import measure, records
from suite import pack as packing
from suite.graph import Graph
from suite.measure.protocol import check_device
from suite.plan import PruningPlan
from suite.run.workspace import Workspace
from suite.stages import Timed

CHOICES = "executions.json"
"""Execution of each layer of the dense and of the packed network, with the times that decided it."""


def do_timed(work: Workspace[Timed]) -> None:
    """Measure eagerly and, on a GPU, as a captured graph.

    The row's main columns are those of the last of these.
    Raises ValueError if the device is missing, and Interrupted between the processes of the "full" protocol.
    """
    timing, watch = work.stage.timing, work.watch
    check_device(timing)
    watch.report("timing", share=0.0)
    packed = work.context.folder(work.stage.pruned) / "packed.safetensors"
    model, shape = work.model("final", "cpu").eval(), work.dataset.input_shape
    graph = Graph(model, shape)
    with tempfile.TemporaryDirectory() as folder:
        dense = Path(folder) / "dense"
        about = {name: packing.header(packed)[name] for name in ("model", "classes", "input_shape")}
        packing.save(packing.pack(model, graph, PruningPlan({})), dense, **about, about={})
        comparison = measure.compare(dense, packed, timing, shape=shape, watch=watch)
    row = work.row(
        "done",
        **{**comparison.columns(), "device": records.device_name(timing.device)},
        theoretical_x=graph.dense_macs.total / graph.macs(packing.plan_of(packed)).total,
    )
    if comparison.choices:
        work.watch.check_holder()
        packing.save_choices(work.folder / CHOICES, comparison.choices)
    work.finish((CHOICES,) if comparison.choices else (), row=row)
