"""Cost of stages in MACs, device-hours and bytes, without data, weights or a GPU.

A training step takes three forward passes of the dense network. The seconds of an image come from finished rows of the same
network on the device. Without such rows they come, for a GPU, from rows of the grid `STEPS_GRID`, else from the stated throughput
of one GPU; for a CPU, from a probe of a few training steps (`speed`).
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from suite import cli, data, grids, records, registry, weights
from suite.contract import Budget
from suite.launch import speed
from suite.launch.speed import BACKWARD, GPU, Network
from suite.launch.status import TIMED_S
from suite.run import Context
from suite.schedule import Schedule
from suite.select import check_ignored
from suite.stages import Base, Learned, Pruned, Stage, Timed, TimedSteps, describe

STEPS_GRID = "gpu_training"
"""Grid whose rows of plain training steps give the seconds of an image."""
CPU_STAGE_S = 1.0
"""Seconds of a stage on a CPU besides training: planning, packing, measuring, writing."""


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

    jobs       stages side by side on a CPU; the seconds of a stage are those beside others
    measured   (data, model, precision) -> seconds of an image in rows of `device`
    steps      (input shape, model, precision) -> the same, in rows of training steps on `device`
    probed     network -> the same, in a probe on this CPU
    """

    context: Context
    device: str
    measured: dict[tuple[str, str, str], float]
    steps: dict[tuple[tuple[int, int, int], str, str], float] = field(default_factory=dict)
    probed: dict[Network, float] = field(default_factory=dict)
    jobs: int = 1

    @staticmethod
    def make(stages: Sequence[Stage], context: Context, *, jobs: int = 1, probe: bool = True) -> Estimator:
        """Return an estimator with the rows of these stages.

        They are those of the most frequent GPU or of this kind of CPU.
        """
        if context.device != "cuda":
            device = records.device_name("cpu")
            measured = _medians(_timed(stages, context).get(device, {}))
            missing = [network for name, network in _networks(stages, context) if name not in measured]
            probed = speed.probe(missing, threads=_threads(context), jobs=jobs) if probe else {}
            return Estimator(context=context, device=device, measured=measured, probed=probed, jobs=jobs)
        timed = {device: rows for device, rows in _timed(stages, context).items() if not device.startswith("cpu")}
        count = Counter({device: sum(map(len, of_device.values())) for device, of_device in timed.items()})
        steps = _steps(context)
        device = next((name for name, _ in count.most_common(1)), next(iter(steps), GPU.device))
        return Estimator(
            context=context, device=device, measured=_medians(timed.get(device, {})), steps=steps.get(device, {})
        )

    @property
    def on_cpu(self) -> bool:
        """True if the stages run on a CPU."""
        return self.context.device != "cuda"

    def __call__(self, stage: Stage) -> Cost:
        """Return the cost of one stage.

        On a GPU packed networks cost as much as dense ones. A base network stays on disk with its initial and its final weights.
        Latency is measured alone on its device.
        """
        if isinstance(stage, Timed):
            return Cost(seconds=TIMED_S[stage.timing.protocol] * self.jobs)
        base, schedule = stage.base, stage.schedule
        network = _network(base, schedule, self.context)
        disk_bytes = network.size.bytes * (2 if isinstance(stage, Base) else 1)
        besides_s = CPU_STAGE_S if self.on_cpu else 0.0
        if schedule is None:
            return Cost(seconds=besides_s, disk_bytes=disk_bytes)
        images = _images(base, schedule, self.context)
        images *= stage.settings.step_cost if isinstance(stage, Learned) else 1.0
        share = _packed(stage.budget) if isinstance(stage, Pruned) and self.on_cpu else 1.0
        return Cost(
            training_macs=BACKWARD * network.size.macs * images,
            seconds=besides_s + share * images * self._image_s(base, network, schedule.batch),
            disk_bytes=disk_bytes,
        )

    def measures(self, stage: Stage) -> bool:
        """Return True if rows or a probe on the device have the stage's training steps."""
        base, schedule = stage.base, stage.schedule
        return schedule is not None and self._measured_s(base, _network(base, schedule, self.context)) is not None

    def _measured_s(self, base: Base, network: Network) -> float | None:
        return (
            self.measured.get((base.data, base.model, network.precision))
            or self.steps.get((network.input_shape, base.model, network.precision))
            or self.probed.get(network)
        )

    def _image_s(self, base: Base, network: Network, batch: int) -> float:
        """Return the seconds of an image in a training step of the dense network."""
        image_s = self._measured_s(base, network)
        if image_s is None and self.on_cpu:
            return BACKWARD * network.size.macs / (speed.CPU_MACS_PER_S * _threads(self.context))
        return GPU.image_s(network.size, network.precision, batch) if image_s is None else image_s

    @property
    def source(self) -> str:
        """Origin of the seconds."""
        if self.on_cpu:
            names = sorted(f"{data}/{model}" for data, model, _ in self.measured)
            probed = sorted({network.model for network in self.probed})
            parts = [f"rows of {', '.join(names)} on it"] * bool(names) + [f"a probe of {', '.join(probed)}"] * bool(
                probed
            )
            stated = f"other networks at {speed.CPU_MACS_PER_S / 1e9:g} GMACs/s a thread (ours)"
            return "; ".join([*parts, stated])
        if not self.measured and not self.steps:
            return GPU.source
        measured = {f"{name}/{model}" for name, model, _ in self.measured} | {
            f"{STEPS_GRID} {model}" for _, model, _ in self.steps
        }
        return f"rows of {', '.join(sorted(measured))} on it; other networks as {GPU.device}, {GPU.source}"


def expected(stages: Sequence[Stage], context: Context) -> dict[str, float]:
    """Return key -> seconds of each stage, from rows or the stated throughput.

    The result is empty if the cost is not known.
    """
    try:
        estimate = Estimator.make(stages, context, probe=False)
        return {stage.key: estimate(stage).seconds for stage in stages}
    except (ValueError, OSError):  # a data set of a plug-in that states no size, and is missing
        return {}


def refused(stages: Sequence[Stage], context: Context) -> list[str]:
    """Return a line for each network that cannot be traced and each unknown ignored layer."""
    lines = []
    for data_name, model in dict.fromkeys((base.data, base.model) for base in stages if isinstance(base, Base)):
        try:
            about = data.size(data_name, context.data)
        except (ValueError, OSError):  # a data set of a plug-in that states no size, and is missing
            continue
        try:
            speed.size_of(model, about.classes, about.input_shape)
        except ValueError as error:
            lines.append(f"{data_name}/{model}: {error}")
    return [*lines, *unknown_layers(stages, context)]


def unknown_layers(stages: Iterable[Stage], context: Context) -> list[str]:
    """Return a line for each name in `ignored_layers` that is no layer."""
    lines = []
    runs = (run for run in stages if isinstance(run, Pruned) and run.ignored_layers)
    for data_name, model, names in dict.fromkeys((run.base.data, run.base.model, run.ignored_layers) for run in runs):
        try:
            about = data.size(data_name, context.data)
            size = speed.size_of(model, about.classes, about.input_shape)
        except (ValueError, OSError):  # a data set that states no size, or a network that cannot be traced
            continue
        try:
            check_ignored(names, size.modules, size.convs)
        except ValueError as error:
            lines.append(f"{data_name}/{model}: {error}")
    return lines


def _threads(context: Context) -> int:
    return context.threads or cli.cores()


def _packed(budget: Budget) -> float:
    """Return the time of a packed network's training step / that of the dense network.

    In rows of ResNet-8, ResNet-20, VGG-6 and VGG-16 on a CPU it is 1.0 to 1.2 at 50 %, 0.74 and 0.80 at 65 %, 0.6 to 0.7 at 90 %.
    `python -m tests.benchmarks.training` prints it for one network: the time of a packed step / that of a masked step.
    """
    return 1 - budget.share**2 / 2


def _timed(stages: Iterable[Stage], context: Context) -> dict[str, dict[tuple[str, str, str], list[float]]]:
    """Return device -> (data, model, precision) -> seconds of an image of the dense network.

    They are those of the rows of these stages.
    Rows on a CPU count if they had as many threads as the launch.
    """
    runs = {stage.key: stage for stage in stages if isinstance(stage, Pruned)}
    timed: dict[str, dict[tuple[str, str, str], list[float]]] = {}
    rows = (
        records.read_all(context.results, runs, set_aside=False)
        if records.rows_folder(context.results).is_dir()
        else []
    )
    for row in rows:
        run, device = runs[row.key], str(row.provenance.get("device", "cpu"))
        if not isinstance(row, records.PrunedRow) or not row.seconds or not run.finetune.epochs:
            continue
        on_cpu = device.startswith("cpu")
        if not on_cpu or row.provenance.get("threads") == _threads(context):
            name = run.base.data, run.base.model, run.finetune.compute.precision
            images = _images(run.base, run.finetune, context) * (_packed(run.budget) if on_cpu else 1.0)
            timed.setdefault(device, {}).setdefault(name, []).append(row.seconds / images)
    return timed


def _medians(values: dict[tuple[str, str, str], list[float]]) -> dict[tuple[str, str, str], float]:
    return {name: statistics.median(each) for name, each in values.items()}


def _networks(stages: Iterable[Stage], context: Context) -> list[tuple[tuple[str, str, str], Network]]:
    """Return (data, model, precision) and the network of all training.

    The network with most MACs of training is first.
    """
    macs: Counter[tuple[tuple[str, str, str], Network]] = Counter()
    for stage in stages:
        base, schedule = stage.base, stage.schedule
        if schedule is not None and schedule.epochs:
            network = _network(base, schedule, context)
            about = (base.data, base.model, network.precision), network
            macs[about] += int(network.size.macs * _images(base, schedule, context))
    return [about for about, _ in macs.most_common()]


def _network(base: Base, schedule: Schedule | None, context: Context) -> Network:
    about = data.size(base.data, context.data)
    precision = schedule.compute.precision if schedule else "fp32"
    return Network(base.model, about.classes, about.input_shape, precision)


def _steps(context: Context) -> dict[str, dict[tuple[tuple[int, int, int], str, str], float]]:
    """Return GPU -> `Estimator.steps` of the rows of plain training steps."""
    grid = grids.load(STEPS_GRID)
    stages = [stage for stage in grids.stages_of(grid, grids.runs_of(grid)) if isinstance(stage, TimedSteps)]
    shapes = {stage.key: data.size(stage.base.data).input_shape for stage in stages if _has_row(stage, context)}
    result: dict[str, dict[tuple[tuple[int, int, int], str, str], float]] = {}
    for row in records.read_all(context.results, shapes, set_aside=False):
        if isinstance(row, records.StepsRow) and row.base_ms and not row.device.startswith("cpu"):
            name = shapes[row.key], row.model, row.precision
            result.setdefault(row.device, {})[name] = row.base_ms / 1e3 / row.batch
    return result


def _has_row(stage: Stage, context: Context) -> bool:
    return records.row_path(context.results, stage.key).is_file()


def _images(base: Base, schedule: Schedule, context: Context) -> float:
    """Return the images of all epochs of a schedule."""
    every = data.size(base.data, context.data).train_size(base.split)
    return float(min(every, schedule.epoch_images or every) * schedule.epochs)


# ---- a line for each method and network ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Line:
    """Stages of one method on one network.

    budgets   of the runs to do, in percent
    epochs    of a stage's schedule: "90", of learning and fine-tuning "30+90"
    rows      runs to do
    measured  True if the speed of a stage's training was measured on the device
    """

    network: str
    method: str
    budgets: tuple[str, ...]
    epochs: str
    stages: int
    rows: int
    cost: Cost
    measured: bool

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
            measured=any(map(estimate.measures, own)),
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
    network = f"{run.base.data}/{run.base.model}"
    if isinstance(run, Base):
        return network, "base networks"
    return network, run.described if isinstance(run, Pruned) else describe(run.settings)


def missing(stages: Iterable[Stage], context: Context) -> dict[str, bool]:
    """Return a line for each missing data set or file of weights, without reading any.

    The value is True if `suite.prefetch` can fetch it.
    """
    fetchers = registry.collect("data", "FETCHERS")

    def find_weights(base: Base) -> None:
        if base.weights:
            weights.find(base.weights, context.data)

    def find_data(base: Base) -> None:
        if not data.present(base.data, context.data):
            context.dataset(base)

    fetchable: dict[str, bool] = {}
    for base in (stage for stage in stages if isinstance(stage, Base)):
        public = bool(base.weights) and weights.own_file(base.weights) is None
        for find, can_be_fetched in ((find_weights, public), (find_data, base.data in fetchers)):
            try:
                find(base)
            except (ValueError, OSError) as error:
                fetchable[str(error)] = can_be_fetched
    return fetchable
