"""What each sampler claims, for the tests that run for every one in the registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fastdiff.samplers import SAMPLERS


@dataclass(frozen=True)
class Claim:
    """What a sampler is held to; one that is not listed below, to this.

    Attributes:
        order: of convergence, halving every step divides the error by 2^order; None where an error stays.
        noise: whether it draws noise.
        marginals: whether every state is distributed as its level says if the data are one point.
        options: with which all this holds, given how many steps.
    """

    order: int | None = 1
    noise: bool = False
    marginals: bool = True
    options: Callable[[int], Mapping[str, Any]] = lambda steps: {}


SECOND_ORDER = (
    "deis",
    "dpm_solver",
    "dpm_solver_single",
    "dpmpp_2m",
    "dpmpp_2s",
    "flow_heun",
    "heun",
    "ipndm",
    "kdpm2",
    "lms",
)
CLAIMS = {
    **dict.fromkeys(SECOND_ORDER, Claim(2)),
    **dict.fromkeys(("plms", "pndm"), Claim(2)),
    **dict.fromkeys(("dpmpp_3m", "dpmpp_3s", "unipc"), Claim(3)),
    # --- with noise, where the order is that of mean and variance
    **dict.fromkeys(("ddpm", "euler_ancestral", "sigma_space"), Claim(1, noise=True)),
    **dict.fromkeys(("dpmpp_2m_sde", "dpmpp_2s_ancestral", "dpmpp_3m_sde", "dpmpp_sde"), Claim(2, noise=True)),
    **dict.fromkeys(("kdpm2_ancestral", "sa_solver"), Claim(2, noise=True)),
    # The variance beta, its default, is wider.
    "epsilon_decoder": Claim(1, noise=True, options=lambda steps: {"variance": "small"}),
    # Its default repeats everything ten times.
    "repaint": Claim(1, noise=True, options=lambda steps: {"jump_samples": 2}),
    # The restarts' steps have to fall with the others.
    "restart": Claim(2, noise=True, options=lambda steps: {"intervals": [(0.3, 0.9, 2, steps // 4 + 1)]}),
    # --- the rest is in test_own_marginals.py
    # The network is asked at the next level.
    "ddim_inversion": Claim(1, marginals=False),
    # A Langevin step of finite size is too wide.
    **dict.fromkeys(("annealed_langevin", "langevin", "predictor_corrector"), Claim(None, noise=True, marginals=False)),
    # Jumps to the data and back stay long, and are exact only with a network that knows where paths end.
    "consistency": Claim(None, noise=True, marginals=False),
    "lcm": Claim(None, noise=True, options=lambda steps: {"timestep_scaling": None}),
    "tcd": Claim(None, noise=True),
}


def claim(name: str) -> Claim:
    """Return what a registered sampler is held to."""
    return CLAIMS.get(name, Claim())


def convergent(noise: bool | None = None) -> list[str]:
    """Return the samplers that converge; only those that draw noise, or only those that do not."""
    found = [name for name in SAMPLERS if claim(name).order is not None]
    return [name for name in found if noise in (None, claim(name).noise)]
