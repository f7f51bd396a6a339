"""The closed forms of the group penalty agree with autograd, and nothing ever becomes NaN.

Shapes: L layers, G filter groups, O filters, I input channels, K kernel positions.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dsp import groups as maths
from dsp.groups import RELEASED_EPSILON, GroupPenalty

SHAPES = st.tuples(*[st.integers(1, n) for n in (3, 4, 7, 5, 4)])


def assert_close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def reference(p_LGO: Tensor, w_LOIK: Tensor) -> Tensor:
    """R as METHOD writes it, summed over layers."""
    size_LG = p_LGO.sqrt().sum(-1).square()
    grouped_LGOIK = p_LGO[..., None, None] * w_LOIK[:, None]
    norm_LGI = grouped_LGOIK.square().sum((2, 4)).sqrt()
    return (size_LG * norm_LGI.sum(-1)).sum()


def random_case(shape: tuple[int, ...], seed: int) -> tuple[Tensor, Tensor, Tensor]:
    layers, groups, filters, channels, kernel = shape
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    p_LGO = torch.softmax(2 * normal(layers, groups, filters), dim=1)
    return p_LGO, normal(layers, filters, channels, kernel), normal(layers, filters, channels, kernel)


def energy(w_LOIK: Tensor) -> Tensor:
    return w_LOIK.square().sum(-1)


@settings(max_examples=60)
@given(SHAPES, st.integers(0, 10**6))
def test_closed_forms_are_the_derivatives(shape: tuple[int, ...], seed: int) -> None:
    p_LGO, w_LOIK, d_LOIK = random_case(shape, seed)
    p_LGO.requires_grad_()
    w_LOIK.requires_grad_()
    value = reference(p_LGO, w_LOIK)
    by_p, by_w = torch.autograd.grad(value, (p_LGO, w_LOIK), create_graph=True)
    (by_p_along_d,) = torch.autograd.grad((by_w * d_LOIK).sum(), p_LGO)

    with torch.no_grad():
        penalty = GroupPenalty(p_LGO, energy(w_LOIK))
        assert_close(penalty.value_L().sum(), value.detach())
        assert_close(w_LOIK * penalty.weight_factor_LOI()[..., None], by_w.detach())
        assert_close(penalty.first_order_LGO(), p_LGO * by_p.detach())
        inner_LOI = (w_LOIK * d_LOIK).sum(-1)
        assert_close(penalty.second_order_LGO(inner_LOI, "exact"), p_LGO * by_p_along_d)


@settings(max_examples=20)
@given(SHAPES, st.integers(0, 10**6))
def test_logit_gradient_is_that_of_the_softmax(shape: tuple[int, ...], seed: int) -> None:
    p_LGO, w_LOIK, noise_LOIK = random_case(shape, seed)
    logits_LGO = p_LGO.log().requires_grad_()
    noise_LGO = noise_LOIK.mean((2, 3))[:, None].expand_as(p_LGO)
    relaxed_LGO = maths.relaxed_groups(logits_LGO, noise_LGO, 0.5)
    (expected,) = torch.autograd.grad(reference(relaxed_LGO, w_LOIK), logits_LGO)
    relaxed_LGO = relaxed_LGO.detach()
    got = maths.logit_gradient(GroupPenalty(relaxed_LGO, energy(w_LOIK)).first_order_LGO(), relaxed_LGO, 0.5)
    assert_close(got, expected)


def test_temperature_does_not_divide_the_noise() -> None:
    noise_GO = torch.tensor([[1.0], [0.0]])
    assert torch.equal(maths.relaxed_groups(torch.zeros(2, 1), noise_GO, 0.5), torch.softmax(noise_GO, 0))


@pytest.mark.parametrize("epsilon", [0.0, RELEASED_EPSILON])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", ["channel", "filter", "all", "empty group", "tiny", "vanishing share"])
def test_zeros_have_subgradient_zero_and_give_no_nan(case: str, dtype: torch.dtype, epsilon: float) -> None:
    p_LGO, w_LOIK, d_LOIK = (t.to(dtype) for t in random_case((2, 3, 6, 4, 9), 0))
    if case == "channel":
        w_LOIK[:, :, 1] = 0
    elif case == "filter":
        w_LOIK[:, 2] = 0
    elif case == "all":
        w_LOIK.zero_()
    elif case == "empty group":
        p_LGO = maths.hard_groups(torch.tensor([0.0, 1.0, 2.0], dtype=dtype)[:, None].expand(2, 3, 6))
    elif case == "tiny":
        w_LOIK[:, :, 1] *= 1e-22
    else:
        p_LGO[:, 0], p_LGO[:, 1] = 1e-30, 0
    penalty = GroupPenalty(p_LGO, energy(w_LOIK), epsilon)
    inner_LOI = (w_LOIK * d_LOIK).sum(-1)
    results = [
        penalty.value_L(),
        w_LOIK * penalty.weight_factor_LOI()[..., None],
        penalty.first_order_LGO(),
        penalty.second_order_LGO(inner_LOI, "exact"),
        penalty.second_order_LGO(inner_LOI, "released"),
    ]
    for result in results:
        assert bool(result.isfinite().all())
        assert bool(maths.logit_gradient(penalty.first_order_LGO(), p_LGO, 0.5).isfinite().all())
    if case == "channel":
        assert not results[1][:, :, 1].any()


def test_hard_groups_are_penalised_by_their_size() -> None:
    """With one-hot groups, s is the square of the number of filters."""
    p_LGO = maths.hard_groups(torch.tensor([[[5.0, 5.0, 5.0, 0.0], [0.0, 0.0, 0.0, 5.0]]]))
    w_LOIK = torch.zeros(1, 4, 1, 1)
    w_LOIK[0, :, 0, 0] = torch.tensor([1.0, 2.0, 2.0, 7.0])
    assert GroupPenalty(p_LGO, energy(w_LOIK)).value_L().item() == pytest.approx(9 * 3 + 1 * 7)


@settings(max_examples=20)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 10**6))
def test_one_group_is_the_group_lasso_of_channels(filters: int, channels: int, seed: int) -> None:
    """c R = k sqrt(O) sum_i ||W[:, i]|| for G = 1: the group lasso with its usual size factor."""
    _, w_LOIK, _ = random_case((1, 1, filters, channels, 9), seed)
    penalty = GroupPenalty(torch.ones(1, 1, filters, dtype=torch.float64), energy(w_LOIK))
    scale = maths.penalty_scale(filters, 9, groups=1)
    norm_I = w_LOIK[0].square().sum((0, 2)).sqrt()
    assert_close(scale * penalty.value_L()[0], 3 * filters**0.5 * norm_I.sum())
    gradient_OIK = scale * w_LOIK[0] * penalty.weight_factor_LOI()[0, ..., None]
    assert_close(gradient_OIK, 3 * filters**0.5 * w_LOIK[0] / norm_I[:, None])
    assert maths.logit_gradient(penalty.first_order_LGO(), penalty.p_LGO, 0.5).abs().max() < 1e-9


def test_released_second_order_is_not_the_derivative() -> None:
    p_LGO, w_LOIK, d_LOIK = random_case((1, 4, 16, 16, 9), 0)
    penalty, inner_LOI = GroupPenalty(p_LGO, energy(w_LOIK)), (w_LOIK * d_LOIK).sum(-1)
    exact, released = (penalty.second_order_LGO(inner_LOI, mode).flatten() for mode in ("exact", "released"))
    assert torch.cosine_similarity(exact, released, dim=0) < 0.9
