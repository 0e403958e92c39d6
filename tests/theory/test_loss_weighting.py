"""Section 3 of math.md: weights of losses matter to a shared network, and not to one that treats every t apart."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

Array = npt.NDArray[np.float64]

# Rows (x, y1, y2); the loss is L = L_1 + lam L_2 with L_t = mean (model(x, t) - y_t)^2.
X, Y1, Y2 = np.array([[1.0, 2.0, 20.0], [2.0, 4.0, 40.0], [3.0, 6.0, 60.0]]).T


def optimum(features: tuple[Array, Array], lam: float) -> float:
    """The theta of `theta features_t` with the least L, by least squares."""
    weights = np.repeat([1.0, lam**0.5], len(X))
    theta, *_ = np.linalg.lstsq(
        (weights * np.concatenate(features))[:, None], weights * np.concatenate([Y1, Y2]), rcond=None
    )
    return float(theta[0])


@pytest.mark.parametrize(("lam", "theta"), [(1, 11), (2, 14), (0.5, 8)])
def test_model_without_t(lam: float, theta: float) -> None:
    """`theta x` has its optimum at 11, 14 and 8 for lam = 1, 2 and 1/2: a compromise that the weight chooses."""
    assert optimum((X, X), lam) == pytest.approx(theta, rel=1e-14)  # some roundings


@pytest.mark.parametrize(("lam", "theta"), [(1, 8.4), (2, 82 / 9), (0.5, 22 / 3)])
def test_model_with_t(lam: float, theta: float) -> None:
    """`theta t x` at 8.4, 9.11 and 7.33: to know t is not enough where one parameter serves all t."""
    assert optimum((X, 2 * X), lam) == pytest.approx(theta, rel=1e-14)


@given(st.floats(0, 1e3))
def test_optima_in_closed_form(lam: float) -> None:
    """theta(lam) = 2 (1 + 10 lam) / (1 + lam) for `theta x`, and 2 (1 + 20 lam) / (1 + 4 lam) for `theta t x`."""
    assert optimum((X, X), lam) == pytest.approx(2 * (1 + 10 * lam) / (1 + lam), rel=1e-13)
    assert optimum((X, 2 * X), lam) == pytest.approx(2 * (1 + 20 * lam) / (1 + 4 * lam), rel=1e-13)


@pytest.mark.parametrize("lam", [0.5, 1.0, 2.0, 100.0])
@pytest.mark.parametrize("start", [(1.0, 1.0, 1.0), (0.3, 2.0, -1.0)])
def test_learned_embedding_makes_the_weight_irrelevant(lam: float, start: tuple[float, float, float]) -> None:
    """`theta e_t x`, all three learned, finds `e_2 = 10 e_1`, which minimises L_1 and L_2 at once for every lam."""
    theta, e1, e2 = parameters = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in start]
    x, y1, y2 = (torch.from_numpy(values) for values in (X, Y1, Y2))
    optimiser = torch.optim.LBFGS(
        parameters, max_iter=200, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def losses() -> tuple[torch.Tensor, torch.Tensor]:
        return (theta * e1 * x - y1).square().mean(), (theta * e2 * x - y2).square().mean()

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        first, second = losses()
        loss = first + lam * second
        loss.backward()
        return loss

    optimiser.step(closure)
    # Gradients of 1e-12 leave errors of that size over the curvature, at least 1 across the valley of optima.
    assert [float(loss.detach()) for loss in losses()] == pytest.approx([0, 0], abs=1e-16)
    assert (theta * e1).item() == pytest.approx(2, rel=1e-8)
    assert (e2 / e1).item() == pytest.approx(10, rel=1e-8)
