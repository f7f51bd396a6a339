"""Trials of executions: every output is checked against the reference, and the times are compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from suite.cudagraph import captured
from suite.pack import executions
from suite.pack.layer import Built, Layer, Operands, positions
from suite.pack.operations import Read
from suite.timing import Run, least_ms, steady_clock

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest error of a layer's output and of the logits, as a share of the largest entry (of 1e-3 at least)."""
TF32_TOLERANCE = 1e-2
"""The same if torch lets convolutions round fp32 to the ten bits of TF32, its default on a GPU."""
GATHERS_X = 1.05
"""Gain that an execution with a gathered input must have: the copy takes memory, and a smaller gain may be chance."""
ROUNDS = range(3, 17)
SECONDS = 0.5
GPU_SECONDS, REPLAYS = 0.05, 5
"""A GPU is steadier. Several replays per time make the wait for the last one a small part of it."""


def in_torch(module: nn.Module, inputs: Sequence[Tensor]) -> Run:
    """Return a run of the module as it is."""
    return lambda: module(*inputs)


def choose(
    names: Sequence[str],
    layer: Layer,
    operands: Operands,
    *,
    build: Callable[[str, Layer, Operands], Built] = executions.build,
    prepare: Callable[[nn.Module, Sequence[Tensor]], Run] = in_torch,
) -> tuple[str, dict[str, float]]:
    """Return the fastest execution and the milliseconds of all.

    build     returns the module of an execution
    prepare   returns a run of a module and its inputs in the runtime for which the network is tuned

    Nothing is prepared or timed if there is one name. An execution that gathers its input must gain `GATHERS_X`.
    Raises ValueError naming layer and execution if an output disagrees with the reference.
    """
    expected = layer.reference(operands)
    order = torch.arange(layer.width)
    runs: dict[str, Run] = {}
    handicap: dict[str, float] = {}
    for name in names:
        module, columns_C = build(name, layer, operands)
        inputs = [operands.x] if operands.addend is None else [operands.x, operands.addend.clone()]
        output = module(*inputs)
        in_order = Read(positions(order, columns_C), output.shape[1]).to(output.device)
        check(f"{layer.name} as {name!r}", in_order(output), expected)
        if len(names) > 1:
            runs[name] = prepare(module, inputs)
        handicap[name] = GATHERS_X if getattr(module, "gathers", False) else 1.0
    milliseconds = fastest_ms(runs, operands.x.device)
    return min(names, key=lambda name: milliseconds.get(name, 0) * handicap[name]), milliseconds


def check(name: str, output: Tensor, expected: Tensor) -> None:
    """Raise ValueError with name and error if an output disagrees with its reference."""
    error = float((output - expected).abs().max()) if output.shape == expected.shape else float("inf")
    allowed = tolerance(expected) * max(1e-3, float(expected.abs().max()))
    if not error <= allowed:
        raise ValueError(
            f"{name} disagrees with its reference: largest error {error:.3g}, allowed {allowed:.3g} for {expected.dtype}; "
            "it is not measured"
        )


def tolerance(expected: Tensor) -> float:
    """Return the allowed error of an output, as a share of its largest entry."""
    tf32 = expected.is_cuda and expected.dtype == torch.float32 and torch.backends.cudnn.allow_tf32
    return TF32_TOLERANCE if tf32 else TOLERANCE[expected.dtype]


def fastest_ms(runs: Mapping[str, Run], device: torch.device) -> dict[str, float]:
    """Return the least milliseconds of each run, {} if there is one run.

    The clock of a CPU is CPU time with one thread, else the wall clock. On a GPU the runs are captured in CUDA graphs, as whole
    networks are: a launch takes longer than a small kernel.
    """
    if len(runs) < 2:
        return {}
    if device.type == "cuda":
        graphs = {name: captured(run) for name, run in runs.items()}
        return least_ms(graphs, device, REPLAYS, seconds=GPU_SECONDS, counts=ROUNDS)
    return least_ms(runs, device, seconds=SECONDS, counts=ROUNDS, **steady_clock(device))
