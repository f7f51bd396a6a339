"""Learned groups of DSP against random groups and k-means of the base filters."""

from __future__ import annotations

from suite.grids._ablation import ablation

GRID = ablation(
    title="DSP's learned groups against given ones on CIFAR-10",
    about=__doc__ or "",
    changes=lambda data, model: [{"grouping": grouping} for grouping in ("learned", "random", "kmeans")],
    models=("resnet20", "resnet56"),
)
