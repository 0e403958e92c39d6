"""Score fields: the learned score where the arrows stand, whatever the network predicts."""

from __future__ import annotations

import pytest
import torch

from fastdiff import prediction, schedules
from fastdiff.errors import InputError
from fastdiff.models import MLP, GaussianMixture, MLPConfig
from fastdiff.score_field import score_field

MIXTURE = GaussianMixture([[1.0, 0.0], [-1.0, 0.5]], [0.3, 0.5])
SCHEDULES = {"NCSN": schedules.geometric(10, 0.05, 3.0).with_unit_input(), "VP": schedules.cosine(20)}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("predicted", prediction.names())
def test_field_of_the_best_network_is_the_true_score(predicted: str, schedule: schedules.Schedule) -> None:
    """At each of three levels the closed form, to float32: eps is a difference of parts that sigma divides twice."""
    model = MIXTURE.network(schedule, predicted)
    x0 = MIXTURE.sample(200, seed=1).float()
    for level in (0, len(schedule) // 2, len(schedule) - 1):
        field = score_field(model, x0, level, schedule, predicted, side=7)
        sigma = float(schedule.sigma[level])
        assert field.sigma == sigma
        assert field.points.shape == field.score.shape == (49, 2)
        assert float(field.points.max()) == pytest.approx(float(field.noised.abs().max()))
        expected = MIXTURE.score(field.points, float(schedule.alpha[level]), sigma)
        # Rounding of out, 6e-8 of the largest point, is divided by sigma^2 where out is x0.
        error = 1e-6 * float(field.points.abs().max()) / sigma**2
        torch.testing.assert_close(field.score.double(), expected, rtol=1e-4, atol=error)


def test_noised_data_are_at_the_level() -> None:
    """Of a point at 0, x_t has deviation sigma, within five standard errors of 2000 numbers."""
    schedule = SCHEDULES["NCSN"]
    field = score_field(MIXTURE.network(schedule, "score"), torch.zeros(1000, 2), 4, schedule, "score")
    assert float(field.noised.std()) == pytest.approx(field.sigma, rel=5 / (2 * 2000) ** 0.5)


def test_network_with_classes_and_a_learned_variance_is_asked_without() -> None:
    """The null token is what a network takes where it is given no label; of its outputs the first two are drawn."""
    schedule = SCHEDULES["VP"]
    model = MLP(MLPConfig(width=8, classes=3, learn_variance=True))
    assert score_field(model, torch.zeros(5, 2), 3, schedule, "eps", side=4).score.shape == (16, 2)


def test_only_points_of_the_plane_have_one() -> None:
    """The error gives the shape that is needed."""
    schedule = SCHEDULES["VP"]
    with pytest.raises(InputError, match=r"x0 must be \[N, 2\], got \(5, 3\)"):
        score_field(MIXTURE.network(schedule), torch.zeros(5, 3), 0, schedule, "eps")
