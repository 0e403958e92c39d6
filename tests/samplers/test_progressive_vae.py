"""The epsilon-decoder against the loop of the progressive VAE's slides."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

import fastdiff as fd
from fastdiff.samplers import ddpm, epsilon_decoder
from tests.samplers.loops import denoiser, gaussian, trajectory

L = 100
SCHEDULE = fd.schedules.progressive_vae(L)


@pytest.mark.parametrize("variance", ["large", "small", "none"])
def test_is_the_slides_loop(variance: str) -> None:
    """z_{l-1} = (z_l - sigma_l eps_step) / sqrt(1 - sigma_l^2) and noise of sigma_l^2, of beta~, or none."""
    sigma2 = 1e-4 + 0.02 * np.arange(1, L + 1) / L
    alpha2 = np.append(1.0, np.cumprod(1 - sigma2))
    network = denoiser(SCHEDULE, "eps_step")
    z = gaussian(3, 5)
    states, _ = trajectory(network, epsilon_decoder(SCHEDULE, variance=variance), z)
    for row, level in enumerate(range(L, 0, -1)):
        sigma = math.sqrt(sigma2[level - 1])
        eps_step = network(z, z.new_full((3,), level - 1))
        beta = sigma2[level - 1] * (1 - alpha2[level - 1]) / (1 - alpha2[level])
        drawn = {"large": sigma, "small": math.sqrt(beta), "none": 0.0}[variance] if level > 1 else 0.0
        z = (z - sigma * eps_step) / math.sqrt(1 - sigma2[level - 1]) + drawn * gaussian(3, 5, seed=row)
        # 1 - alpha^2 at l = 1 is 1e-4, which loses 4 digits of 16.
        assert (states[row] - z).abs().max() < 1e-11


def test_is_ddpm_of_the_steps_noise() -> None:
    """Its defaults are the large variance, no clip and a network of one step's noise; others may be given."""
    ours, other = epsilon_decoder(SCHEDULE), epsilon_decoder(SCHEDULE, 10, prediction="v", clip=2.0)
    assert ours == replace(ddpm(SCHEDULE, variance="large", prediction="eps_step", clip=None), name="epsilon_decoder")
    assert other == replace(ddpm(SCHEDULE, 10, "large", prediction="v", clip=2.0), name="epsilon_decoder")
