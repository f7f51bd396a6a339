"""DSP's settings for each network, and where they come from.

The authors publish lambda for two networks and advise to scale it inversely to the number of weights. Their product for
ResNet-20, 2e-3 x 267,264 prunable weights = 535, gives 6.3e-4 for ResNet-56 (published: 5e-4) and 4.9e-5 for ResNet-18
(their example: 5e-5); the rest below follow from it, to two digits.
"""

from __future__ import annotations

from collections.abc import Mapping

from suite.contract import OptOut, Recipe

LAM_TIMES_WEIGHTS = 2e-3 * 267_264

_RELEASED = "Park et al. 2023 and the authors' released code (github irishev/DSP)"
_SCALED = "ours: the authors' lambda for ResNet-20, scaled inversely to the number of prunable weights as they advise"
_LAM = {
    "resnet8": 7.3e-3,
    "resnet20": 2e-3,
    "resnet32": 1.2e-3,
    "resnet44": 8.2e-4,
    "resnet110": 3.1e-4,
    "resnet34": 2.5e-5,
    "resnet50": 2.6e-5,
    "vgg6": 7.7e-3,
    "vgg16": 3.6e-5,
    "vgg16_bn": 3.6e-5,
}
_RESNET56 = 5e-4


def _recipes() -> dict[tuple[str, str], Recipe | OptOut]:
    recipes: dict[tuple[str, str], Recipe | OptOut] = {
        ("*", model): Recipe(settings={"lam": lam}, source=_SCALED) for model, lam in _LAM.items()
    }
    for model, lam in (("resnet20", _LAM["resnet20"]), ("resnet56", _RESNET56)):
        recipes["cifar10", model] = Recipe(settings={"lam": lam}, source=_RELEASED)
    recipes["*", "resnet56"] = Recipe(settings={"lam": _RESNET56}, source=f"ours: lambda for CIFAR-10 in {_RELEASED}")
    recipes["*", "resnet18"] = Recipe(
        settings={"lam": 5e-5},
        source=f"the authors' example of scaling lambda, for a ResNet-18 of 11.4 M weights; {_RELEASED}",
    )
    for model in ("resnet8", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110"):
        same = recipes["*", model]
        assert isinstance(same, Recipe)
        recipes["*", f"{model}_a"] = Recipe(
            settings=same.settings, source="ours: as with 1x1-convolution shortcuts, which are not pruned"
        )
    recipes["*", "*"] = Recipe(
        settings={"lam": 5e-4}, source="ours: lambda of ResNet-56; scale it inversely to the number of prunable weights"
    )
    return recipes


RECIPES: Mapping[tuple[str, str], Recipe | OptOut] = _recipes()
