"""Methods at equal measured time beside equal MACs, on two cores.

The public ResNet-20 is fine-tuned for a quarter of an epoch in bf16. Time is that of batches of 32 in fp32 on one core. There is
one base network: n counts fine-tunings. Accuracies are on the test set and support no claim on full training. Slimming needs
a training from scratch and is left to `latency_budget`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from suite.grids import Grid, cross, dense_control
from suite.grids.latency_budget import budgets, variants
from suite.schedule import Compute, Schedule
from suite.stages import Base, Pruned, Timing

SEEDS = (0, 1, 2)
SHARE, MACS = 0.4, 0.5
TIMING = Timing(batch=32, protocol="quick", threads=1)
FINETUNE = Schedule(
    epochs=1,
    lr=0.01,
    weight_decay=5e-4,
    epoch_images=12_500,
    compute=Compute(precision="bf16", layout="channels_last"),
)
LEARN = replace(FINETUNE, lr=0.05)
DOSE = 1.0
"""From about this dose on, DSP's penalty makes channels small (`dsp.dose`)."""
STEP = 4
"""Filters that go at once in `ms` variants: a quarter of the narrowest layers."""
AT_ONCE = {"fpgm": "fpgm_once"}
"""Methods that learn, and their forms without learning."""


def runs() -> list[Pruned]:
    """Return the dense control and all methods but slimming."""
    bases = [Base(data="cifar10", model="resnet20_a", schedule=None, weights="cifar10_resnet20_a", seed=0)]
    shared: dict[str, Any] = {"bases": bases, "finetune": FINETUNE, "learning": LEARN, "seeds": SEEDS}
    planned = dense_control(**shared)
    for method, changes in variants({"dose": DOSE}, STEP):
        if method != "slimming":
            own = budgets((SHARE,), () if "per" in changes else (MACS,), TIMING)
            planned += cross(method=AT_ONCE.get(method, method), budgets=own, **shared, **changes)
    return planned


GRID = Grid(title="Equal time beside equal MACs, short", about=__doc__ or "", runs=runs, timings=(TIMING,))
