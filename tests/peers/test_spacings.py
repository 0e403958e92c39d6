"""The sigmas of every diffusers scheduler that can choose them, in float64, and the tables of Align Your Steps."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from diffusers.schedulers import AysSchedules

from fastdiff.samplers import sigmas
from fastdiff.schedules import Array
from tests.peers.doubles import doubled
from tests.peers.loops import schedule_of

# Diffusers calls numpy's functions on tensors, and numpy deprecates how torch answers.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

SCHEDULE = schedule_of(1000)
RATIO = SCHEDULE.sigma / SCHEDULE.alpha
SIGMAS = {
    "use_karras_sigmas": sigmas.karras,
    "use_exponential_sigmas": sigmas.exponential,
    "use_beta_sigmas": sigmas.beta,
}
LAMBDAS = {"use_lu_lambdas": sigmas.exponential}
# All but DPMSolverSDE, whose file needs torchsde.
SCHEDULERS: dict[tuple[str, str], dict[str, Callable[[int, float, float], Array]]] = {
    ("deis_multistep", "DEISMultistepScheduler"): SIGMAS,
    ("dpmsolver_multistep", "DPMSolverMultistepScheduler"): SIGMAS | LAMBDAS,
    ("dpmsolver_singlestep", "DPMSolverSinglestepScheduler"): SIGMAS,
    ("euler_discrete", "EulerDiscreteScheduler"): SIGMAS,
    ("heun_discrete", "HeunDiscreteScheduler"): SIGMAS,
    ("k_dpm_2_ancestral_discrete", "KDPM2AncestralDiscreteScheduler"): SIGMAS,
    ("k_dpm_2_discrete", "KDPM2DiscreteScheduler"): SIGMAS,
    ("lms_discrete", "LMSDiscreteScheduler"): SIGMAS,
    ("sasolver", "SASolverScheduler"): SIGMAS,
    ("unipc_multistep", "UniPCMultistepScheduler"): SIGMAS,
}


@pytest.mark.parametrize(("kind", "name"), SCHEDULERS)
@pytest.mark.parametrize("steps", [2, 10])
def test_sigmas(kind: str, name: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kind is one of ours; some peers repeat sigmas for their stages or at the end, or end with 0."""
    for option, spaced in SCHEDULERS[kind, name].items():
        config = {"lower_order_final": True} if kind == "dpmsolver_singlestep" else {}
        scheduler = doubled(monkeypatch, kind, name, SCHEDULE, **{option: True}, **config)
        scheduler.set_timesteps(steps)
        found = np.unique(np.asarray(scheduler.sigmas))[::-1]
        assert np.asarray(scheduler.sigmas).dtype == np.float64
        # Theirs have 1 - abar >= 1e-4 with an error of 1e-16, and Karras takes the 7th power of a rounded root.
        np.testing.assert_allclose(found[found > 0], spaced(steps, RATIO[0], RATIO[-1]), rtol=1e-11)


@pytest.mark.parametrize(
    ("model", "name"), [("sd15", "StableDiffusion"), ("sdxl", "StableDiffusionXL"), ("svd", "StableDiffusionVideo")]
)
def test_align_your_steps(model: str, name: str) -> None:
    """The tables as they are; the peer's pipelines are given these 10 and the 0."""
    np.testing.assert_allclose([*sigmas.ays(10, model), 0], AysSchedules[f"{name}Sigmas"], rtol=1e-14)
