"""Positive controls: each rival at a published operating point on CIFAR-10 and ImageNet.

Cuts are those of `results/reference/published/baselines.csv`. Schedules are those of the authors where they are known (`source`
of the point), else ours. Base networks are our own on CIFAR-10 (n counts base networks); on ImageNet they are the public weights
(n counts fine-tunings of one base). Methods that fine-tune after soft pruning or compactors get a short fine-tuning, since a
removed filter loses its batch norm's shift here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from suite.grids import Grid, _released, cross, dense_control
from suite.schedule import Schedule
from suite.stages import Base, Pruned

SEEDS = (0, 1, 2, 3, 4)
FINETUNE = Schedule(epochs=200, lr=0.01, weight_decay=5e-4)
LEARN = Schedule(epochs=200, lr=0.01, weight_decay=5e-4, shape="steps")
SHORT = Schedule(epochs=20, lr=0.001, weight_decay=5e-4)
IMAGENET_FINETUNE = Schedule(epochs=90, lr=0.01, weight_decay=1e-4, batch=256)
IMAGENET_LEARN = Schedule(epochs=60, lr=0.01, weight_decay=1e-4, batch=256, shape="steps")
IMAGENET_SCRATCH = Schedule(epochs=90, lr=0.1, weight_decay=1e-4, batch=256, shape="steps")


@dataclass(frozen=True, kw_only=True)
class Point:
    """Published cuts of a method, and the schedules that they are trained with here.

    cuts      model -> shares of MACs that were removed
    source    origin of the schedules
    """

    method: str
    cuts: dict[str, tuple[float, ...]]
    source: str
    finetune: Schedule
    learning: Schedule | None = None
    changes: dict[str, Any] = field(default_factory=dict)


CIFAR10 = (
    Point(
        method="l1_filter",
        cuts={"resnet56": (0.276,), "vgg16": (0.342,)},
        source="Li et al. 2017, section 4: 40 epochs at 0.001, there without a decay of the rate",
        finetune=Schedule(epochs=40, lr=0.001, weight_decay=5e-4, shape="steps"),
    ),
    Point(method="lasso_one_pass", cuts={"resnet56": (0.5,)}, source="ours", finetune=FINETUNE),
    Point(
        method="sfp",
        cuts={"resnet20": (0.422,), "resnet32": (0.415,), "resnet56": (0.526,)},
        source="the released script of He et al. for trained networks: 200 epochs, 0.01",
        learning=LEARN,
        finetune=SHORT,
    ),
    Point(
        method="fpgm",
        cuts={"resnet20": (0.422, 0.54), "resnet32": (0.415,), "resnet56": (0.526,), "vgg16": (0.342,)},
        source="the released script of He et al. for trained networks: 200 epochs, 0.01",
        learning=LEARN,
        finetune=SHORT,
    ),
    Point(method="hrank", cuts={"resnet56": (0.5,), "vgg16": (0.653,)}, source="ours", finetune=FINETUNE),
    Point(
        method="chip",
        cuts={"resnet56": (0.474, 0.741), "vgg16": (0.581, 0.666, 0.786)},
        source="300 to 400 epochs in the authors' README; the rate is ours",
        finetune=Schedule(epochs=400, lr=0.01, weight_decay=5e-4),
    ),
    Point(method="eagle_eye", cuts={"resnet56": (0.504,)}, source="ours", finetune=FINETUNE),
    Point(
        method="resrep",
        cuts={"resnet56": (0.528,)},
        source="rr/exp_resrep.py: 480 epochs, 0.01",
        learning=Schedule(epochs=480, lr=0.01, weight_decay=1e-4),
        finetune=SHORT,
    ),
    Point(method="tmi_gkp", cuts={"resnet56": (0.4323,)}, source="ours", finetune=FINETUNE, learning=_released.BASE),
    Point(
        method="depgraph",
        cuts={"resnet56": (0.531, 0.611)},
        source="the authors' CIFAR runs: 100 epochs of learning and of fine-tuning, 0.01",
        learning=Schedule(epochs=100, lr=0.01, weight_decay=0.0, shape="steps"),
        finetune=Schedule(epochs=100, lr=0.01, weight_decay=5e-4, shape="steps"),
    ),
    Point(
        method="greg",
        cuts={"resnet56": (0.608,)},
        source="the authors' train_params/0_AdaReg_resnet56_cifar10.yaml: batch 256, 114,000 iterations of a constant 0.001 (584 "
        "epochs; here a cosine), fine-tuning for 240 epochs, the first 60 at 0.02 (here at 0.01)",
        learning=Schedule(epochs=584, lr=0.001, weight_decay=5e-4, batch=256),
        finetune=Schedule(epochs=240, lr=0.01, weight_decay=5e-4, batch=256, shape="steps"),
    ),
)
IMAGENET = (
    Point(
        method="l1_filter",
        cuts={"resnet50": (0.567, 0.609)},
        source="Wang et al., arXiv 2301.05219: 90 epochs at 0.01",
        finetune=IMAGENET_FINETUNE,
    ),
    Point(
        method="l2_filter",
        cuts={"resnet18": (0.5,), "resnet50": (0.5,)},
        source="ours",
        finetune=IMAGENET_FINETUNE,
        changes={"ranking": "global"},
    ),
    Point(
        method="random_filter",
        cuts={"resnet18": (0.5,), "resnet50": (0.5,)},
        source="ours",
        finetune=IMAGENET_FINETUNE,
    ),
    Point(
        method="sfp",
        cuts={"resnet18": (0.418,), "resnet50": (0.418,)},
        source="ours",
        learning=IMAGENET_LEARN,
        finetune=IMAGENET_FINETUNE,
    ),
    Point(
        method="fpgm",
        cuts={"resnet18": (0.418,), "resnet50": (0.422, 0.535)},
        source="ours",
        learning=IMAGENET_LEARN,
        finetune=IMAGENET_FINETUNE,
    ),
    Point(method="thinet_one_pass", cuts={"resnet50": (0.367,)}, source="ours", finetune=IMAGENET_FINETUNE),
    Point(
        method="taylor",
        cuts={"resnet18": (0.5,), "resnet50": (0.451,)},
        source="ours",
        learning=IMAGENET_LEARN,
        finetune=IMAGENET_FINETUNE,
    ),
    Point(method="hrank", cuts={"resnet18": (0.5,), "resnet50": (0.438,)}, source="ours", finetune=IMAGENET_FINETUNE),
    Point(
        method="greg",
        cuts={"resnet50": (0.567, 0.609)},
        source="0.001 while the factors grow; fine-tuning as for l1_filter",
        learning=IMAGENET_LEARN,
        finetune=IMAGENET_FINETUNE,
    ),
    Point(method="chip", cuts={"resnet50": (0.487,)}, source="ours", finetune=IMAGENET_FINETUNE),
    Point(method="eagle_eye", cuts={"resnet50": (0.497,)}, source="ours", finetune=IMAGENET_FINETUNE),
    Point(method="one_by_n", cuts={"resnet50": (0.5,)}, source="ours", finetune=IMAGENET_FINETUNE),
    Point(method="one_by_n", cuts={"resnet50": (0.5,)}, source="ours", finetune=IMAGENET_FINETUNE, changes={"n": 4}),
    Point(
        method="resrep",
        cuts={"resnet50": (0.545,)},
        source="ours",
        learning=IMAGENET_LEARN,
        finetune=IMAGENET_FINETUNE,
    ),
)
NETWORKS = {
    "cifar10": ("resnet20", "resnet32", "resnet56", "vgg16"),
    "imagenet": ("resnet18", "resnet50"),
}


def _bases(data: str, model: str) -> list[Base]:
    if data == "cifar10":
        return [Base(data=data, model=model, schedule=_released.BASE, seed=seed) for seed in SEEDS]
    return [Base(data=data, model=model, schedule=None, weights=f"imagenet_{model}", seed=0)]


def _runs(data: str, points: tuple[Point, ...]) -> Iterator[Pruned]:
    for point in points:
        for model, cuts in point.cuts.items():
            yield from cross(
                bases=_bases(data, model),
                method=point.method,
                budgets=cuts,
                finetune=point.finetune,
                learning=point.learning,
                scratch=_released.BASE if data == "cifar10" else IMAGENET_SCRATCH,
                seeds=SEEDS if data == "imagenet" else None,
                **point.changes,
            )


def runs() -> list[Pruned]:
    """Return each rival at its published cuts, and the dense control of each network."""
    planned = [*_runs("cifar10", CIFAR10), *_runs("imagenet", IMAGENET)]
    for model in NETWORKS["cifar10"]:
        planned += dense_control(bases=_bases("cifar10", model), finetune=FINETUNE, learning=LEARN)
    for model in NETWORKS["imagenet"]:
        planned += dense_control(
            bases=_bases("imagenet", model), finetune=IMAGENET_FINETUNE, learning=IMAGENET_LEARN, seeds=SEEDS
        )
    return planned


GRID = Grid(title="Rivals at published operating points", about=__doc__ or "", runs=runs, timings=())
