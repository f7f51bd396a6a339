"""Cost of stages in MACs, GPU-hours and bytes, without data, weights or a GPU.

A training step takes three forward passes of the dense network. The seconds of an image come from finished rows of the same
network on a GPU, else from rows of the grid `STEPS_GRID`, else from the stated throughput of one GPU (`STATED`).
"""

from __future__ import annotations

import functools
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from suite import data, grids, models, records, weights
from suite.contract import Budget
from suite.graph import Graph
from suite.launch.status import TIMED_S
from suite.run import Context
from suite.schedule import Schedule
from suite.stages import Base, Learned, Pruned, Stage, Timed, TimedSteps, describe

BACKWARD = 3
"""Forward passes that a training step costs."""
STEPS_GRID = "gpu_training"
"""Grid whose rows of plain training steps give the seconds of an image."""


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Training speed of a GPU.

    macs_per_s  precision -> MACs of training (forward and backward) a second
    layer_s     least seconds of a step for each convolution and linear layer, which small networks do not get below
    """

    device: str
    macs_per_s: dict[str, float]
    layer_s: float
    source: str


_RESNET50_MACS = BACKWARD * 4_089_184_256
STATED = Throughput(
    device="NVIDIA A100 80GB",
    macs_per_s={"fp32": 938 * _RESNET50_MACS, "bf16": 2470 * _RESNET50_MACS, "fp16": 2470 * _RESNET50_MACS},
    layer_s=6e-4,
    source="NVIDIA DeepLearningExamples, ResNet-50 v1.5: 938 images/s in TF32, 2470 in mixed precision; at least 0.6 ms a step "
    "for each layer (ours)",
)


@dataclass(frozen=True, kw_only=True)
class Size:
    """Size of a network.

    macs     of the forward pass of an image
    layers   convolutions and linear layers
    bytes    of the weights in fp32
    """

    macs: int
    layers: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of stages that run one after the other on a GPU; `disk_bytes` stay."""

    training_macs: float = 0.0
    seconds: float = 0.0
    disk_bytes: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            training_macs=self.training_macs + other.training_macs,
            seconds=self.seconds + other.seconds,
            disk_bytes=self.disk_bytes + other.disk_bytes,
        )

    def __truediv__(self, parts: int) -> Cost:
        return Cost(
            training_macs=self.training_macs / parts,
            seconds=self.seconds / parts,
            disk_bytes=self.disk_bytes / parts,
        )


@dataclass(frozen=True, kw_only=True)
class Estimator:
    """Costs of stages.

    measured   (data, model, precision) -> seconds of an image in rows of `device`
    steps      (input shape, model, precision) -> the same, in rows of training steps on `device`
    """

    context: Context
    device: str
    measured: dict[tuple[str, str, str], float]
    steps: dict[tuple[tuple[int, int, int], str, str], float] = field(default_factory=dict)

    @staticmethod
    def make(stages: Iterable[Stage], context: Context) -> Estimator:
        """Return an estimator with the rows of these stages; their most frequent GPU counts."""
        runs = {stage.key: stage for stage in stages if isinstance(stage, Pruned)}
        timed: dict[str, dict[tuple[str, str, str], list[float]]] = {}
        rows = records.read_all(context.results, runs) if records.rows_folder(context.results).is_dir() else []
        for row in rows:
            run, device = runs[row.key], str(row.provenance.get("device", "cpu"))
            epochs = run.finetune.epochs
            if isinstance(row, records.PrunedRow) and row.seconds and epochs and not device.startswith("cpu"):
                name = run.base.data, run.base.model, run.finetune.compute.precision
                images = _images(run.base, run.finetune, context)
                timed.setdefault(device, {}).setdefault(name, []).append(row.seconds / images)
        count = Counter({device: sum(map(len, of_device.values())) for device, of_device in timed.items()})
        steps = _steps(context)
        device = next((name for name, _ in count.most_common(1)), next(iter(steps), STATED.device))
        measured = {name: statistics.median(values) for name, values in timed.get(device, {}).items()}
        return Estimator(context=context, device=device, measured=measured, steps=steps.get(device, {}))

    def __call__(self, stage: Stage) -> Cost:
        """Return the cost of one stage; packed networks cost as much as dense ones.

        A base network stays on disk with its initial and its final weights.
        """
        if isinstance(stage, Timed):
            return Cost(seconds=TIMED_S[stage.timing.protocol])
        base = stage if isinstance(stage, Base) else stage.base
        schedule = stage.schedule if isinstance(stage, Base | Learned) else stage.finetune
        about = data.size(base.data, self.context.data)
        network = size_of(base.model, about.classes, about.input_shape)
        disk_bytes = network.bytes * (2 if isinstance(stage, Base) else 1)
        if schedule is None:
            return Cost(disk_bytes=disk_bytes)
        images = _images(base, schedule, self.context)
        images *= stage.settings.step_cost if isinstance(stage, Learned) else 1.0
        macs = BACKWARD * network.macs * images
        precision = schedule.compute.precision
        image_s = self.measured.get((base.data, base.model, precision)) or self.steps.get(
            (about.input_shape, base.model, precision)
        )
        if image_s is None:
            launches_s = STATED.layer_s * network.layers * images / schedule.batch
            seconds = max(macs / STATED.macs_per_s[precision], launches_s)
        else:
            seconds = image_s * images
        return Cost(training_macs=macs, seconds=seconds, disk_bytes=disk_bytes)

    @property
    def source(self) -> str:
        """Origin of the seconds."""
        if not self.measured and not self.steps:
            return STATED.source
        measured = {f"{name}/{model}" for name, model, _ in self.measured} | {
            f"{STEPS_GRID} {model}" for _, model, _ in self.steps
        }
        return f"rows of {', '.join(sorted(measured))} on it; other networks as {STATED.device}, {STATED.source}"


def _steps(context: Context) -> dict[str, dict[tuple[tuple[int, int, int], str, str], float]]:
    """Return GPU -> `Estimator.steps` of the rows of plain training steps."""
    grid = grids.load(STEPS_GRID)
    stages = [stage for stage in grids.stages_of(grid, grids.runs_of(grid)) if isinstance(stage, TimedSteps)]
    shapes = {stage.key: data.size(stage.pruned.base.data).input_shape for stage in stages if _has_row(stage, context)}
    result: dict[str, dict[tuple[tuple[int, int, int], str, str], float]] = {}
    for row in records.read_all(context.results, shapes):
        if isinstance(row, records.StepsRow) and row.base_ms and not row.device.startswith("cpu"):
            name = shapes[row.key], row.model, row.precision
            result.setdefault(row.device, {})[name] = row.base_ms / 1e3 / row.batch
    return result


def _has_row(stage: Stage, context: Context) -> bool:
    return (records.rows_folder(context.results) / f"{stage.key}.json").is_file()


def _images(base: Base, schedule: Schedule, context: Context) -> float:
    """Return the images of all epochs of a schedule."""
    every = data.size(base.data, context.data).train_size(base.split)
    return float(min(every, schedule.epoch_images or every) * schedule.epochs)


@functools.cache
def size_of(model: str, classes: int, input_shape: tuple[int, int, int]) -> Size:
    """Return the size of a network, computed on torch's meta device, without values.

    A network that does not run there is built and traced.
    """
    counts: list[int] = []

    def count(layer: nn.Module, _: object, made: torch.Tensor) -> None:
        counts.append(layer.get_parameter("weight")[0].numel() * made.numel())

    try:
        with torch.device("meta"), torch.no_grad():
            network = models.build(model, classes).eval()
            for layer in network.modules():
                if isinstance(layer, nn.Conv2d | nn.Linear):
                    layer.register_forward_hook(count)
            network(torch.empty(1, *input_shape))
    except (NotImplementedError, RuntimeError):
        network = models.build(model, classes)
        graph = Graph(network, input_shape)
        return Size(macs=graph.dense_macs.total, layers=len(graph.convs) + 1, bytes=_bytes(network))
    return Size(macs=sum(counts), layers=len(counts), bytes=_bytes(network))


def _bytes(network: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())


# ---- a line for each method and network ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Line:
    """Stages of one method on one network.

    budgets   of the runs to do, in percent
    epochs    of a stage's schedule: "90", of learning and fine-tuning "30+90"
    rows      runs to do
    """

    network: str
    method: str
    budgets: tuple[str, ...]
    epochs: str
    stages: int
    rows: int
    cost: Cost

    @property
    def row(self) -> Cost:
        """Mean cost of a run, with its share of the learning and its measurements."""
        return self.cost / max(1, self.rows)


def lines(todo: Sequence[Stage], estimate: Estimator) -> list[Line]:
    """Return a line for each network and method, and for the base networks."""
    together: dict[tuple[str, str], list[Stage]] = {}
    for stage in todo:
        together.setdefault(_line_of(stage), []).append(stage)
    return [
        Line(
            network=network,
            method=method,
            budgets=tuple(dict.fromkeys(_percent(run.budget) for run in own if isinstance(run, Pruned))),
            epochs=", ".join(dict.fromkeys(map(_epochs, filter(_trains, own)))),
            stages=len(own),
            rows=sum(isinstance(stage, Pruned) for stage in own),
            cost=sum(map(estimate, own), Cost()),
        )
        for (network, method), own in sorted(together.items(), key=lambda item: item[0][0])
    ]


def _percent(budget: Budget) -> str:
    return f"{100 * budget.share:.4g}" + (" of time" if budget.scope == "latency" else "")


def _trains(stage: Stage) -> bool:
    return isinstance(stage, Base | Pruned)


def _epochs(stage: Stage) -> str:
    """Return the epochs of a base network, or of a run's learning and fine-tuning."""
    if isinstance(stage, Base):
        return str(stage.schedule.epochs) if stage.schedule else "public"
    assert isinstance(stage, Pruned)
    learning = f"{stage.learned.schedule.epochs}+" if stage.learned else ""
    return f"{learning}{stage.finetune.epochs}"


def _line_of(stage: Stage) -> tuple[str, str]:
    run = stage.pruned if isinstance(stage, Timed) else stage
    base = run if isinstance(run, Base) else run.base
    network = f"{base.data}/{base.model}"
    if isinstance(run, Base):
        return network, "base networks"
    return network, run.described if isinstance(run, Pruned) else describe(run.settings)


def missing(stages: Iterable[Stage], context: Context) -> list[str]:
    """Return a line for each missing data set or file of weights, without reading any."""
    messages = []
    for base in (stage for stage in stages if isinstance(stage, Base)):
        try:
            if base.weights:
                weights.find(base.weights, context.data)
            if not data.present(base.data, context.data):
                context.dataset(base)
        except (ValueError, OSError) as error:
            messages.append(str(error))
    return list(dict.fromkeys(messages))
