"""Whole loops against k-diffusion, where its sampling module can be imported, in float64.

Its package imports torchvision, of which there is no build for every torch. So this test runs where somebody has both.
"""

from __future__ import annotations

import math
from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor

import fastdiff as fd
from tests.peers.loops import SHAPE, error, gaussian, network

sampling = pytest.importorskip(
    "k_diffusion.sampling", reason="k-diffusion is an optional peer: it needs torchvision", exc_type=ImportError
)

# x = x0 + sigma eps, and a network that is given log(sigma), which is exact between levels too.
SCHEDULE = fd.schedules.geometric(1000, 0.01, 50.0)
SCHEDULE = SCHEDULE.with_time([math.log(sigma) for sigma in SCHEDULE.sigma])
STEPS = 9
CHURN = {"churn": 3.0, "churn_min": 0.05, "churn_max": 20.0, "churn_noise": 1.01}
S_CHURN = {"s_churn": 3.0, "s_tmin": 0.05, "s_tmax": 20.0, "s_noise": 1.01}

# Measured, the worst of all cases: 2e-15; some roundings in each of up to 17 rows.
TOLERANCE = 1e-12

# Our sampler, theirs, and what each is given.
CASES = [
    ("euler", "euler", {}, {}),
    ("euler", "euler", CHURN, S_CHURN),
    ("heun", "heun", {}, {}),
    ("heun", "heun", CHURN, S_CHURN),
    ("kdpm2", "dpm_2", {}, {}),
    ("kdpm2", "dpm_2", CHURN, S_CHURN),
    ("euler_ancestral", "euler_ancestral", {}, {}),
    ("euler_ancestral", "euler_ancestral", {"eta": 0.4}, {"eta": 0.4}),
    ("kdpm2_ancestral", "dpm_2_ancestral", {}, {}),
    ("kdpm2_ancestral", "dpm_2_ancestral", {"eta": 0.4}, {"eta": 0.4}),
    *(("lms", "lms", {"order": order}, {"order": order}) for order in (1, 2, 3, 4)),
    ("dpmpp_2m", "dpmpp_2m", {}, {}),
    ("dpmpp_2m_sde", "dpmpp_2m_sde", {}, {}),
    ("dpmpp_2m_sde", "dpmpp_2m_sde", {"solver": "heun", "eta": 0.5}, {"solver_type": "heun", "eta": 0.5}),
    ("dpmpp_3m_sde", "dpmpp_3m_sde", {"third": "peers", "solver": "heun", "lower_order_final": False}, {}),
]


@pytest.mark.parametrize(("name", "peer", "options", "theirs"), CASES)
def test_every_step(
    name: str, peer: str, options: dict[str, Any], theirs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The states before each step, and the sample."""
    model = network(1)
    plan = fd.samplers.make(name, SCHEDULE, steps=STEPS, spacing="karras", prediction="x0", clip=None, **options)
    stages = 2 if len(plan) == 2 * STEPS - 1 else 1
    states: list[Tensor] = []
    fd.sample(
        lambda x, t: model(x, float(t[0])),
        plan,
        SHAPE,
        dtype=torch.float64,
        x_init=gaussian(10_000) * 50.0,
        noise=lambda stream, row, shape: gaussian(row),
        callback=lambda row, x, x0: states.append(x.clone()),
    )
    sigma = torch.from_numpy(fd.samplers.sigmas.karras(STEPS, 0.01, 50.0))
    # What a step of the peer draws, the last row of that step draws here, and before a step that of the step before.
    before, after = count(-1, stages), count(stages - 1, stages)
    monkeypatch.setattr(torch, "randn_like", lambda x: gaussian(max(next(before), 0)))
    if "ancestral" in peer or "sde" in peer:
        theirs = {**theirs, "noise_sampler": lambda now, following: gaussian(next(after))}
    seen: list[Tensor] = []
    final = getattr(sampling, f"sample_{peer}")(
        lambda x, s: model(x, math.log(float(s[0]))),
        gaussian(10_000) * 50.0,
        torch.cat([sigma, sigma.new_zeros(1)]),
        callback=lambda at: seen.append(at["x"].clone()),
        disable=True,
        **theirs,
    )
    ends = [*states[stages - 1 :: stages], states[-1]][:STEPS]
    assert error(ends, [*seen[1:], final]) < TOLERANCE
