"""Pruning from Python: `suite.prune`, `suite.load`, `suite.compare` and `suite.count`.

The same planners, packing, training loop and counting as in a grid, on a network and a loader of one's own.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from suite import methods
from suite import pack as packing
from suite.contract import Batch, Learner, Pruner, State, Task
from suite.data import Loader, check_labels
from suite.graph import Graph
from suite.graph.checks import check_modules
from suite.measure import Comparison, Timing, latency_budget
from suite.measure import compare as compare_files
from suite.measure.counting import Count, count_macs, count_params
from suite.measure.protocol import DTYPES
from suite.pack.checkpoint import OWN_CLASS
from suite.pack.export import export, write_torchscript
from suite.plan import Budget, PruningPlan
from suite.progress import Watch
from suite.schedule import Schedule
from suite.select import Selection, ignoring
from suite.train import fit, seed_everything
from suite.trainer import Trainer

LEARNING = Schedule(epochs=10, lr=0.01, weight_decay=5e-4)
"""Learning of a method before it prunes, unless given."""
Training = Callable[[nn.Module, Learner], object]
"""A training loop of one's own; it calls the learner's hooks as `suite.contract.Learner` describes them."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """Size of the dense and of the packed network.

    layers  name -> (remaining filters, filters, remaining channels, channels, filter groups) of each convolution
    coarse  the next smaller cut misses the budget, and this one exceeds it by too much; of a budget of time: the measured share
            of time is not close to the budget
    predicted_time_cut_pct, time_cut_pct  predicted and measured share of the dense time that is removed, of a budget of time
    """

    method: str
    dense_macs: int
    macs: int
    dense_params: int
    params: int
    coarse: bool
    layers: dict[str, tuple[int, int, int, int, int]]
    predicted_time_cut_pct: float | None = None
    time_cut_pct: float | None = None

    @property
    def macs_cut_pct(self) -> float:
        """Removed share of the MACs, in percent."""
        return 100 * (1 - self.macs / self.dense_macs)

    @property
    def params_cut_pct(self) -> float:
        """Removed share of the parameters, in percent."""
        return 100 * (1 - self.params / self.dense_params)

    def __str__(self) -> str:
        lines = [
            f"{self.method}: MACs {self.dense_macs:,} -> {self.macs:,} ({self.macs_cut_pct:.2f} % cut), "
            f"parameters {self.dense_params:,} -> {self.params:,} ({self.params_cut_pct:.2f} % cut)"
        ]
        if self.predicted_time_cut_pct is not None:
            lines.append(f"time: {self.time_cut_pct:.1f} % cut, predicted {self.predicted_time_cut_pct:.1f} %")
        for name, (left, filters, read, channels, groups) in self.layers.items():
            lines.append(f"{name}: {left} of {filters} filters, {read} of {channels} channels, {groups} groups")
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class Result:
    """A pruned network: packed module in eval mode, plan and report."""

    network: packing.PackedNetwork
    plan: PruningPlan
    report: Report
    dense: str
    """Class of the network before pruning."""

    def save(self, path: str | os.PathLike[str], **about: Any) -> None:
        """Write plan and weights; `suite.load` reads the file.

        about  entries of the header, such as mean, std and labels
        """
        shape = self.network.input_shape
        packing.save(
            self.network,
            path,
            model=OWN_CLASS + self.dense,
            classes=self._classes,
            input_shape=shape,
            about=about,
        )

    def export(self, path: str | os.PathLike[str], to: str = "onnx", **about: Any) -> None:
        """Write the network as "onnx", "pt2" or "torchscript".

        about  mean and std of a channel, and labels: metadata of an ONNX file
        Raises ValueError if the exported network disagrees.
        """
        export(self.network, self.network.input_shape, to, Path(path), about)

    @property
    def _classes(self) -> int:
        parameter = next(self.network.parameters())
        with torch.no_grad():
            return self.network(parameter.new_zeros(1, *self.network.input_shape)).shape[-1]


def prune(
    model: nn.Module,
    example: Tensor,
    *,
    method: str,
    budget: float | Budget = 0.5,
    train: Iterable[Batch] | Task | None = None,
    learning: Schedule | Training = LEARNING,
    finetune: Schedule | None = None,
    ignored_layers: str | nn.Module | Iterable[str | nn.Module] = (),
    layer_times: Path | None = None,
    seed: int = 0,
    **settings: Any,
) -> Result:
    """Prune a copy of `model` to a budget, and pack it.

    example         images [B, C, H, W]; only their shape and type are read
    budget          share of the MACs to remove, or a `Budget`, for example of the time
    train           batches of training images and labels, such as a DataLoader, or a `Task`, for methods that read images
    learning        schedule of the suite's loop, or a loop of one's own, for methods that learn
    finetune        schedule of the packed network; None leaves its weights as pruned
    ignored_layers  names of layers, or the layers themselves, whose filters and channels all stay; a penalty acts on them, too
    layer_times     folder of the tables of layer times for a budget of time; None measures a table in each call
    settings        hyperparameters of the method
    Raises ValueError if the network cannot be traced, the budget cannot be met, or the method needs data that are not given.
    """
    check_modules(_network(model), type(model).__name__)
    if not isinstance(seed, int):
        raise ValueError(f"seed is a whole number, got {seed!r}")
    if finetune is not None and (train is None or isinstance(train, Task)):
        raise ValueError("finetune needs train: batches of training images and labels, such as a DataLoader")
    kind = methods.get(method)
    kind.check_can_ignore(ignored_layers)
    pruner = kind.for_task("", "", **settings)
    names = {id(module): name for name, module in model.named_modules()}
    layers = [ignored_layers] if isinstance(ignored_layers, str | nn.Module) else ignored_layers
    ignored = [layer if isinstance(layer, str) else names.get(id(layer), repr(layer)) for layer in layers]
    model, shape = copy.deepcopy(model), _shape(example)
    graph, goal = Graph(model, shape), budget if isinstance(budget, Budget) else Budget(share=budget, refill=True)
    packing.check_dense(model, graph)
    if kind.learns or finetune is not None:
        graph.check_gradient()
    if goal.timing is not None:
        graph.times = latency_budget.table_for(model, graph, goal.timing, layer_times)
    batches = None if train is None or isinstance(train, Task) else Batches(train, example, next(model.parameters()))
    task = train if isinstance(train, Task) else _task(batches, method, seed, goal if kind.needs_budget else None)
    if kind.needs_reference and task.reference is None:
        raise ValueError(f"{method} follows the plan of another run: give train=Task(..., reference=PLAN)")
    seed_everything(seed)
    with _labels_named(batches, graph.classes):
        state = _learn(pruner, model, graph, task, batches, learning, seed) if kind.learns else {}
        model.eval()
        planner = ignoring(pruner.planner(model, graph, state, task), graph, ignored)
        selection = latency_budget.meet(planner, model, graph, goal)
        pruner.reconstruct(model, graph, selection.plan, task)
        packed = packing.pack(model, graph, selection.plan)
        if finetune is not None:
            _fit(Trainer(packed, cast(Loader, batches), finetune), seed)
    report = _report(pruner, model, graph, packed, selection)
    return Result(network=packed.eval(), plan=packed.plan, report=report, dense=type(model).__name__)


def load(
    path: str | os.PathLike[str], model: nn.Module | None = None, device: str | torch.device = "cpu"
) -> packing.PackedNetwork:
    """Load a packed network: of a grid's run, or of `Result.save`.

    model  a network of the class that was pruned, made with the same arguments; its weights are not read. A model of the suite
           needs none.
    Raises FileNotFoundError, or ValueError if the file does not fit.
    """
    return packing.load(path, device, model)


def compare(dense: nn.Module, other: nn.Module, images: Tensor, *, protocol: str = "quick") -> Comparison:
    """Measure the latency of a network beside the dense one, in batches like `images`.

    Both networks get the device, the type and the memory layout of the images. Beside a packed network, batch norm is folded in
    both networks, or in none if the other one cannot be packed.

    protocol  "quick" takes about a second, "full" three processes and minutes
    Raises ValueError if a network does not take the images, or if nothing is timed in their type.
    """
    shape, timing = _shape(images), _timing(images, protocol)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("dense", "other")]
        for path, network, form in zip(paths, (dense, other), _alike(dense, other, shape), strict=True):
            with _taking(network, shape):
                write_torchscript(form.to(images.dtype), images.cpu(), path)
        return compare_files(paths[0], paths[1], timing, shape=shape)


def _timing(images: Tensor, protocol: str) -> Timing:
    """Return the conditions of these images. Raises ValueError if nothing is timed in their type."""
    precision = next((name for name, dtype in DTYPES.items() if dtype == images.dtype), None)
    if precision is None:
        allowed = ", ".join(map(str, DTYPES.values()))
        raise ValueError(f"latency is measured on images of {allowed}, got {images.dtype}: convert them by images.to")
    is_last = images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
    layout = "channels_last" if is_last else "contiguous"
    about: dict[str, Any] = {
        "device": images.device.type,
        "precision": precision,
        "layout": layout,
        "protocol": protocol,
    }
    return Timing(**about, batch=len(images))


def _alike(dense: nn.Module, other: nn.Module, shape: tuple[int, int, int]) -> list[nn.Module]:
    """Return copies for inference on the CPU, both or none with folded batch norm.

    A packed network has one convolution a filter group. Two networks that are not packed stay as they are.
    """
    copies = [copy.deepcopy(_network(network)).cpu().float().eval() for network in (dense, other)]
    if not any(isinstance(network, packing.PackedNetwork) for network in copies):
        return copies
    try:
        return [packing.per_group(_packed(network, shape)) for network in copies]
    except ValueError:
        return [
            packing.per_group(network, fold=False) if isinstance(network, packing.PackedNetwork) else network
            for network in copies
        ]


def _packed(network: nn.Module, shape: tuple[int, int, int]) -> packing.PackedNetwork:
    """Return the network packed without a cut. Raises ValueError if it cannot be packed."""
    if isinstance(network, packing.PackedNetwork):
        return network
    network = copy.deepcopy(network)  # a graph changes the class of linear layers
    graph = Graph(network, shape)
    packing.check_dense(network, graph)
    return packing.pack(network, graph, PruningPlan({}))


def count(model: nn.Module, images: Tensor) -> Count:
    """Count MACs of one image; parameters are `count_params(model)`.

    A layer of several filter groups counts as one convolution a group, as in a plan and in a row.
    """
    shape, network = _shape(images), _deployed(model)
    with _taking(model, shape):
        return count_macs(network, shape)


def _network(model: nn.Module) -> nn.Module:
    """Return the network.

    Raises ValueError if it is no module, or if a layer is quantized.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"the network is a torch.nn.Module, got {type(model).__name__}")
    for name, layer in model.named_modules():
        quantized = re.match(r"torch\.ao\.nn\.(\w+\.)*quantized\.", type(layer).__module__)
        if quantized and not type(layer).__name__.endswith("FloatFunctional"):  # operators of floats in these packages
            raise ValueError(
                f"{name or 'the network'} of {type(model).__name__} is quantized ({type(layer).__name__}): give the "
                "network from before torch.ao.quantization.convert, whose MACs are the same"
            )
    return model


def _deployed(model: nn.Module) -> nn.Module:
    """Return the network, a packed one with one convolution a filter group."""
    return packing.per_group(model) if isinstance(model, packing.PackedNetwork) else _network(model)


@contextmanager
def _taking(model: nn.Module, shape: tuple[int, ...]) -> Iterator[None]:
    """Raise ValueError if the network does not run on images of this shape."""
    try:
        yield
    except (RuntimeError, NotImplementedError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{type(model).__name__} takes no images of shape {list(shape)}: {reason}") from error


def _shape(images: Tensor) -> tuple[int, int, int]:
    """Return (C, H, W). Raises ValueError if this is no batch of images."""
    if not isinstance(images, Tensor) or images.ndim != 4:
        kind = f"shape {list(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"images are a tensor [B, C, H, W], got {kind}; one image is images[None]")
    return images.shape[1], images.shape[2], images.shape[3]


@dataclass(frozen=True)
class Batches:
    """Epochs for the training loop: each is one pass over `batches`, moved to the device.

    example  images: those of a batch have as many channels
    weight   of the network: a batch is moved to its device, and has its type or the example's
    """

    batches: Iterable[Batch]
    example: Tensor
    weight: Tensor

    def __post_init__(self) -> None:
        try:
            count = len(cast(Sized, self.batches))
        except TypeError:  # an iterator, or the DataLoader of an IterableDataset
            count = 0
        if not count:
            raise ValueError(
                f"train has no batches or no length ({type(self.batches).__name__}): give a list, or a DataLoader with a length"
            )

    def __len__(self) -> int:
        return len(cast(Sized, self.batches))

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of one pass from step `start` on."""
        for batch in itertools.islice(self.batches, start, None):
            if not isinstance(batch, Sequence) or len(batch) != 2:
                raise ValueError(f"a batch of train is (images, labels), got {type(batch).__name__}")
            images, labels = batch
            if not isinstance(images, Tensor) or not isinstance(labels, Tensor):
                kinds = f"{type(images).__name__} and {type(labels).__name__}"
                raise ValueError(f"images and labels of train are tensors, got {kinds}: use torch.as_tensor")
            channels, types = self.example.shape[1], (self.weight.dtype, self.example.dtype)
            if images.ndim != 4 or images.shape[1] != channels or images.dtype not in types:
                raise ValueError(
                    f"images of train are [B, {channels}, H, W] of {types[0]}, as the example and the weights, got "
                    f"{list(images.shape)} of {images.dtype}"
                )
            if labels.ndim != 1 or labels.dtype not in (torch.int64, torch.uint8):
                raise ValueError(
                    f"labels of train are class numbers, int64 [B], got {labels.dtype} {list(labels.shape)}: "
                    "give labels.argmax(1) for rows of a number per class, labels.long() for numbers of another type"
                )
            yield images.to(self.weight.device), labels.to(self.weight.device)

    def samples(self, n: int) -> Batch:
        """Return the first `n` images of a pass with their labels, or all."""
        images: list[Tensor] = []
        labels: list[Tensor] = []
        for images_BCHW, labels_B in self.epoch(0):
            images.append(images_BCHW)
            labels.append(labels_B)
            if sum(map(len, labels)) >= n:
                break
        return torch.cat(images)[:n], torch.cat(labels)[:n]


@contextmanager
def _labels_named(batches: Batches | None, classes: int) -> Iterator[None]:
    """Raise ValueError with the label where torch's error is that a label is no class.

    Labels are read after the error alone: a method that needs images only takes any labels.
    """
    try:
        yield
    except (IndexError, RuntimeError) as error:
        if batches is not None and re.search("Target .* out of bounds|device-side assert", str(error)):
            for _, labels in batches.batches:
                check_labels(labels, classes, "train")
        raise


def _task(batches: Batches | None, method: str, seed: int, budget: Budget | None) -> Task:
    if batches is not None:
        return Task(train_epoch=batches.epoch, samples=batches.samples, seed=seed, budget=budget)

    def missing(number: int) -> Any:
        raise ValueError(f"{method} reads training images: give train=LOADER, batches of images and labels")

    return Task(train_epoch=missing, samples=missing, seed=seed, budget=budget)


def _learn(
    pruner: Pruner,
    model: nn.Module,
    graph: Graph,
    task: Task,
    batches: Batches | None,
    learning: Schedule | Training,
    seed: int,
) -> State:
    """Train the model with the method's hooks, and return the learned state."""
    if isinstance(learning, Schedule) and batches is not None:
        task = dataclasses.replace(task, rates=functools.partial(learning.rates, len(batches)))
    learner = pruner.learner(model, graph, task) or Learner()
    if not isinstance(learning, Schedule):
        learning(model, learner)
    elif batches is None:
        raise ValueError(
            f"{pruner.method_name()} learns before it prunes: give train=LOADER, batches of images and labels, or "
            "learning=FUNCTION of the network and the learner"
        )
    else:
        _fit(Trainer(model, cast(Loader, batches), learning, learner=learner), seed)
    learner.finish(model)
    return learner.state_dict()


def _fit(trainer: Trainer, seed: int) -> None:
    if trainer.schedule.cycles > 1:
        raise ValueError("a schedule with cycles plans again between them, which a grid does: take cycles=1")
    with tempfile.TemporaryDirectory() as folder:
        fit(trainer, Path(folder) / "train.pt", Watch(), seed=seed, doing="training")


def _report(
    pruner: Pruner, model: nn.Module, graph: Graph, packed: packing.PackedNetwork, selection: Selection
) -> Report:
    layers = {}
    for name, conv in graph.convs.items():
        layer = packed.plan.get(name)
        left = int(layer.kept_O.sum()) if layer else conv.filters
        read = int(layer.mask_OI.any(0).sum()) if layer else conv.channels
        layers[name] = (left, conv.filters, read, conv.channels, len(layer.kept_GI) if layer else 1)
    return Report(
        method=pruner.method_name(),
        dense_macs=graph.dense_macs.total,
        macs=graph.macs(packed.plan).total,
        dense_params=count_params(model),
        params=count_params(packed),
        coarse=selection.coarse,
        **selection.time_cuts(),
        layers=layers,
    )
