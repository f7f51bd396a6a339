"""The maths of group learning: relaxed groups, the group penalty R and its derivatives.

Shapes: L layers of equal shape, G filter groups, O filters, I input channels, K kernel positions.

With p_LGO the share of group g in filter o,

    R = sum_g s_g sum_i N_gi        N_gi = || p_g (.) W[:, i] ||        s_g = (sum_o p_go^(1/2))^2

Every norm needs only the energy of a kernel, E_oi = sum_k w_oik^2: N^2 = p^2 @ E. So R and all its derivatives are
matrix products over [G, O] and [O, I], for all layers of one shape at once, and dR/dW is W times a factor [O, I].

Derivatives by p are returned times p: what softmax's backward needs anyway, and finite where p is 0, as dR/dp is not.
A norm of 0 has the subgradient 0.
"""

from __future__ import annotations

from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from suite.graph import Conv

SecondOrder = Literal["exact", "released", "none"]
PenaltyScale = Literal["activations", "size"]

RELEASED_EPSILON = 1e-8
"""What the released code adds to its denominators."""
NORM_FLOOR = 1e-16
"""A smaller norm counts as 0: the inverse of its square would come close to the end of float32."""
_REFERENCE_ELEMENTS = 16 * 32 * 32
_REFERENCE_PIXELS = 32 * 32


def input_size(conv: Conv, input_shape: tuple[int, ...]) -> float:
    """Return a: the layer's input elements for 32x32 images, over 16,384.

    For other images it is what it would be for 32x32, as in the released code: lambda would not carry over otherwise.
    """
    return conv.input_elements / _REFERENCE_ELEMENTS * _REFERENCE_PIXELS / (input_shape[-1] * input_shape[-2])


def penalty_scale(filters: int, kernel: int, groups: int, input_size: float = 1.0) -> float:
    """Return c = sqrt(a) k (G/O)^1.5, with k^2 = `kernel`, a = `input_size`."""
    return (input_size * kernel) ** 0.5 * (groups / filters) ** 1.5


def relaxed_groups(logits_LGO: Tensor, noise_LGO: Tensor, temperature: float) -> Tensor:
    """p [L, G, O] = softmax over groups of logits / temperature + noise.

    The temperature does not divide the Gumbel noise, as in the released code; the textbook form divides both.
    """
    return torch.softmax(logits_LGO / temperature + noise_LGO, dim=-2)


def hard_groups(logits_LGO: Tensor) -> Tensor:
    """One-hot p [L, G, O]: each filter in the group of its largest logit."""
    return torch.zeros_like(logits_LGO).scatter_(-2, logits_LGO.argmax(-2, keepdim=True), 1.0)


def logit_gradient(gradient_LGO: Tensor, p_LGO: Tensor, temperature: float) -> Tensor:
    """Return the logits' gradient [L, G, O] from p times p's gradient."""
    return (gradient_LGO - p_LGO * gradient_LGO.sum(-2, keepdim=True)) / temperature


class GroupPenalty:
    """R of equal layers at p [L, G, O] and energies [L, O, I].

    epsilon 0 is the formula; RELEASED_EPSILON reproduces the released code.
    """

    def __init__(self, p_LGO: Tensor, energy_LOI: Tensor, epsilon: float = 0.0) -> None:
        self.p_LGO = p_LGO
        self.energy_LOI = energy_LOI
        self.epsilon = epsilon
        self._square_LGO = p_LGO.square()
        self.norm_LGI = (self._square_LGO @ energy_LOI).sqrt()
        self._inverse_LGI = self._inverse(self.norm_LGI + epsilon)
        self._root_LGO = p_LGO.sqrt()
        self._root_sum_LG1 = self._root_LGO.sum(-1, keepdim=True)
        self.size_LG1 = self._root_sum_LG1.square()

    def value_L(self) -> Tensor:
        """R of each layer, without c."""
        return (self.size_LG1 * self.norm_LGI).sum((-2, -1))

    def weight_factor_LOI(self) -> Tensor:
        """Return the factor of W, kernel by kernel, that gives dR/dW."""
        return self._square_LGO.mT @ (self.size_LG1 * self._inverse_LGI)

    def first_order_LGO(self) -> Tensor:
        """p * dR/dp."""
        own_LGO = self._inverse_LGI @ self.energy_LOI.mT
        return self._p_size_slope_LGO * self.norm_LGI.sum(-1, keepdim=True) + self.size_LG1 * self._square_LGO * own_LGO

    def second_order_LGO(self, inner_LOI: Tensor, mode: Literal["exact", "released"]) -> Tensor:
        """Return p * (d2R / dp dW) D, given <W, D> [L, O, I]."""
        return self._exact_LGO(inner_LOI) if mode == "exact" else self._released_LGO(inner_LOI)

    @cached_property
    def _p_size_slope_LGO(self) -> Tensor:
        """p * ds/dp."""
        if self.epsilon == 0:
            return self._root_sum_LG1 * self._root_LGO
        return self.p_LGO * self._root_LGO * self.size_LG1 / (self.p_LGO * self._root_sum_LG1 + self.epsilon)

    def _inverse(self, positive: Tensor) -> Tensor:
        return torch.where(self.norm_LGI > NORM_FLOOR, positive.reciprocal(), 0)

    def _exact_LGO(self, inner_LOI: Tensor) -> Tensor:
        """Return the derivative of `first_order_LGO` along D.

        Norms change by (p^2 @ <W, D>) / N.
        """
        inverse_LGI = self._inverse_LGI
        change_LGI = (self._square_LGO @ inner_LOI) * inverse_LGI
        own_LGO = 2 * inverse_LGI @ inner_LOI.mT - (change_LGI * inverse_LGI.square()) @ self.energy_LOI.mT
        return self._p_size_slope_LGO * change_LGI.sum(-1, keepdim=True) + self.size_LG1 * self._square_LGO * own_LGO

    def _released_LGO(self, inner_LOI: Tensor) -> Tensor:
        """Return the term of the released code, which is not the derivative.

        It keeps only what a filter's own weights contribute, and multiplies two sums over the input channels where the
        sum of the products is meant.
        """
        p_LGO, inverse_LGI = self.p_LGO, self._inverse_LGI
        inverse_square_LGI = inverse_LGI * self._inverse(self.norm_LGI)
        inner_LGO = p_LGO * (inverse_LGI @ inner_LOI.mT)
        own_LGO = p_LGO * (inverse_LGI @ self.energy_LOI.mT)
        crossed_LGO = p_LGO.square() * own_LGO * (inverse_square_LGI @ inner_LOI.mT)
        straight_LGO = (2 * self.size_LG1 + self._p_size_slope_LGO) * inner_LGO
        return p_LGO * (straight_LGO - self.size_LG1 * crossed_LGO)
