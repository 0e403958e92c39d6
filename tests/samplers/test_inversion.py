"""DDIM inversion against its own loop, there and back again."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fastdiff as fd
from fastdiff import prediction
from fastdiff.samplers import ddim, ddim_inversion
from fastdiff.schedules import Schedule
from tests.samplers.exploding import EVERY_SYSTEM, TOLERANCE, denoiser, error, levels, network
from tests.samplers.loops import LINEAR, gaussian, trajectory
from tests.samplers.loops import denoiser as named_network

DATA = torch.tanh(gaussian(3, 5))


@EVERY_SYSTEM
def test_is_euler_upwards(schedule: Schedule) -> None:
    """x + (s' - s) eps, where eps is what the network finds in the state as if it were at s' already."""
    plan = ddim_inversion(schedule, 8, spacing="karras", prediction="x0", clip=None)
    s, denoise = levels(schedule, 8)[::-1], denoiser(schedule)
    x, expected = DATA, []
    for i in range(8):
        alpha = plan.alpha[i] / plan.alpha[i + 1]  # the state, at its own level, over the alpha of the next
        eps = (alpha * x - denoise(alpha * x, s[i + 1])) / s[i + 1]
        x = x + (s[i + 1] - s[i]) * eps
        expected.append(x)
    states, _ = trajectory(network, plan, DATA)
    assert error(list(states / torch.from_numpy(plan.alpha[1:].copy())[:, None, None]), expected) < TOLERANCE


def test_levels_are_ddims_backwards() -> None:
    """From where DDIM lands to where it begins; the network's times are those of the levels to go to."""
    for options in ({}, {"final": "sigma_min", "spacing": "trailing"}, {"start": 3}):
        there, back = ddim(LINEAR, 13, **options), ddim_inversion(LINEAR, 13, **options)
        np.testing.assert_array_equal(back.alpha, there.alpha[::-1])
        np.testing.assert_array_equal(back.sigma, there.sigma[::-1])
        np.testing.assert_array_equal(back.t, there.t[::-1])
    assert ddim_inversion(LINEAR).init_scale == 0.0


@pytest.mark.parametrize("clip", [None, 0.7])
def test_predictions_agree(clip: float | None) -> None:
    """One denoiser, said in any way, gives one trajectory, from clean data on."""
    runs = {}
    for name in prediction.names():
        plan = ddim_inversion(LINEAR, 13, prediction=name, clip=clip)
        runs[name], _ = trajectory(named_network(LINEAR, name), plan, DATA)
    for name, states in runs.items():
        # eps from x0 divides its rounding by sigma, at least 0.01.
        assert (states - runs["x0"]).abs().max() < 1e-12, name


@EVERY_SYSTEM
def test_there_and_back(schedule: Schedule) -> None:
    """DDIM over the same levels leads back to the data, up to an error that more steps make smaller, at first order."""
    errors = []
    for steps in (40, 80, 160):
        options = {"clip": None, "spacing": "karras"}  # the network as an eps, which is smooth down to clean data
        there, back = ddim_inversion(schedule, steps, **options), ddim(schedule, steps, **options)
        latents = trajectory(network, there, DATA)[0][-1]
        errors.append(float((trajectory(network, back, latents)[0][-1] - DATA).abs().max()))
    ratios = np.array(errors[:-1]) / errors[1:]
    assert (ratios > 1.7).all() and (ratios < 2.3).all()  # 2, up to the next order


def test_starts_from_data_only() -> None:
    """Without data it starts from 0, not from noise."""
    plan = ddim_inversion(LINEAR, 3)
    seen = []

    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append(x.clone())
        return torch.zeros_like(x)

    fd.sample(model, plan, (2, 3))
    assert not seen[0].any()
