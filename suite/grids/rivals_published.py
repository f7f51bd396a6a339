"""Positive controls: each rival at a published operating point on CIFAR-10 and ImageNet.

Cuts are those of `suite/report/papers/baselines.csv`: of each row that states its cut and starts from trained weights.
Schedules are those of the authors where they are known (`source` of the point has what differs), else ours. Base networks are our
own on CIFAR-10 (n counts base networks); on ImageNet they are the public weights (n counts fine-tunings of one base). Methods
that fine-tune after soft pruning or compactors get a short fine-tuning, since a removed filter loses its batch norm's shift here.
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
IMAGENET_SHORT = Schedule(epochs=5, lr=0.001, weight_decay=1e-4, batch=256)
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
        cuts={"resnet56": (0.276,)},
        source="Li et al. 2017, section 4: 40 epochs at 0.001, there without a decay of the rate",
        finetune=Schedule(epochs=40, lr=0.001, weight_decay=5e-4, shape="steps"),
    ),
    Point(
        method="l1_filter",
        cuts={"vgg16": (0.342,)},
        source="PFEC_finetune.py of He et al. 2019: 160 epochs at 0.001, there without a decay of the rate",
        finetune=Schedule(epochs=160, lr=0.001, weight_decay=1e-4, batch=64, shape="steps"),
    ),
    Point(method="lasso_one_pass", cuts={"resnet56": (0.5,)}, source="ours", finetune=FINETUNE),
    Point(
        method="sfp",
        cuts={"resnet56": (0.526,)},
        source="no script of He et al. 2018 trains a trained network on CIFAR-10; as fpgm",
        learning=LEARN,
        finetune=SHORT,
    ),
    Point(
        method="fpgm",
        cuts={"resnet56": (0.526,)},
        source="scripts/pruning_cifar10.sh of He et al. 2019, trained networks: 200 epochs at 0.01, decay 5e-4, a fifth of the "
        "rate at 60, 120 and 160, Nesterov's momentum; here a tenth at 100 and 150, plain momentum",
        learning=LEARN,
        finetune=SHORT,
    ),
    Point(
        method="fpgm",
        cuts={"vgg16": (0.342,)},
        source="pruning_cifar_vgg.py of He et al. 2019: 160 epochs at 0.1, batch 64; there gradients are not masked",
        learning=Schedule(epochs=160, lr=0.1, weight_decay=1e-4, batch=64, shape="steps"),
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
        source="rr/exp_resrep.py: 480 epochs at 0.01, batch 64",
        learning=Schedule(epochs=480, lr=0.01, weight_decay=1e-4, batch=64),
        finetune=SHORT,
    ),
    Point(method="tmi_gkp", cuts={"resnet56": (0.4323,)}, source="ours", finetune=FINETUNE, learning=_released.BASE),
    Point(
        method="depgraph",
        cuts={"resnet56": (0.531, 0.611)},
        source="reproduce/main.py of the authors: 100 epochs of learning and of fine-tuning at 0.01, a tenth of the rate at 60 "
        "and 80; here at 50 and 75",
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
COUPLED: dict[str, Any] = {"ranking": "global", "scope": "coupled"}
PRUNINGBENCH: dict[str, dict[str, tuple[float, ...]]] = {
    "l1_filter": {"resnet50": (0.5, 0.667)},
    "l2_filter": {"resnet18": (0.5,), "resnet50": (0.5, 0.667)},
    "random_filter": {"resnet18": (0.5,), "resnet50": (0.5,)},
    "fpgm_once": {"resnet18": (0.5,), "resnet50": (0.5, 0.667)},
    "taylor_once": {"resnet18": (0.5,), "resnet50": (0.5, 0.667)},
    "hrank": {"resnet18": (0.5,), "resnet50": (0.5,)},
}
"""Cuts of the leaderboard's "global" rows: one order over the network, filters tied by DepGraph, no learning."""
IMAGENET = (
    *(
        Point(method=method, cuts=cuts, source="ours", finetune=IMAGENET_FINETUNE, changes=COUPLED)
        for method, cuts in PRUNINGBENCH.items()
    ),
    Point(
        method="l1_filter",
        cuts={"resnet50": (0.567, 0.609)},
        source="Wang et al., arXiv 2301.05219: 90 epochs at 0.01",
        finetune=IMAGENET_FINETUNE,
    ),
    Point(
        method="fpgm",
        cuts={"resnet18": (0.418,), "resnet50": (0.422, 0.535)},
        source="README and pruning_imagenet.py of He et al. 2019, trained networks: 100 epochs at 0.01, a tenth of the rate at "
        "30, 60 and 90, Nesterov's momentum; here at 50 and 75, plain momentum",
        learning=Schedule(epochs=100, lr=0.01, weight_decay=1e-4, batch=256, shape="steps"),
        finetune=IMAGENET_SHORT,
    ),
    Point(method="thinet_one_pass", cuts={"resnet50": (0.367,)}, source="ours", finetune=IMAGENET_FINETUNE),
    Point(
        method="taylor",
        cuts={"resnet50": (0.451, 0.672)},
        source="the authors' README: 25 epochs at 0.001 without decay, a tenth of the rate every 10 (here at 12.5 and 18.75); "
        "removal in the first 1 %",
        learning=Schedule(epochs=25, lr=0.001, weight_decay=0.0, batch=256, shape="steps"),
        finetune=IMAGENET_SHORT,
        changes={"prune_share": 0.01},
    ),
    Point(method="hrank", cuts={"resnet50": (0.438,)}, source="ours", finetune=IMAGENET_FINETUNE),
    Point(
        method="greg",
        cuts={"resnet50": (0.567, 0.609, 0.673)},
        source="0.001 while the factors grow; fine-tuning as for l1_filter",
        learning=IMAGENET_LEARN,
        finetune=IMAGENET_FINETUNE,
    ),
    Point(method="chip", cuts={"resnet50": (0.487, 0.628, 0.767)}, source="ours", finetune=IMAGENET_FINETUNE),
    *(
        Point(
            method="eagle_eye",
            cuts={"resnet50": (cut,)},
            source="the largest rate from the authors' README; fine-tuning ours",
            finetune=IMAGENET_FINETUNE,
            changes={"max_rate": rate},
        )
        for cut, rate in ((0.266, 0.4), (0.497, 0.7), (0.755, 0.8))
    ),
    Point(method="one_by_n", cuts={"resnet50": (0.5,)}, source="ours", finetune=IMAGENET_FINETUNE),
    Point(method="one_by_n", cuts={"resnet50": (0.5,)}, source="ours", finetune=IMAGENET_FINETUNE, changes={"n": 4}),
    Point(
        method="resrep",
        cuts={"resnet50": (0.545,)},
        source="rr/exp_resrep.py: 180 epochs at 0.01",
        learning=Schedule(epochs=180, lr=0.01, weight_decay=1e-4, batch=256),
        finetune=IMAGENET_SHORT,
    ),
)
NETWORKS = {
    "cifar10": ("resnet56", "vgg16"),
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
