"""Samplers: functions (schedule, steps, ...) -> Plan. None has a kernel, a loop or a class of its own."""

from __future__ import annotations

from fastdiff.samplers import sigmas, spacing
from fastdiff.samplers.adams import deis, ipndm, lms, plms, pndm
from fastdiff.samplers.consistency import consistency, lcm, tcd
from fastdiff.samplers.ddim import ddim
from fastdiff.samplers.ddpm import ddpm
from fastdiff.samplers.dpm import (
    dpm_solver,
    dpm_solver_single,
    dpmpp,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_2s,
    dpmpp_3m,
    dpmpp_3m_sde,
    dpmpp_3s,
    dpmpp_single,
)
from fastdiff.samplers.dpm_sde import dpmpp_2s_ancestral, dpmpp_sde
from fastdiff.samplers.euler import euler, euler_ancestral
from fastdiff.samplers.flow import flow_heun
from fastdiff.samplers.inversion import ddim_inversion
from fastdiff.samplers.langevin import annealed_langevin, langevin, predictor_corrector
from fastdiff.samplers.progressive_vae import epsilon_decoder
from fastdiff.samplers.registry import SAMPLERS, make, named, sampler
from fastdiff.samplers.resampling import repaint, restart
from fastdiff.samplers.sa import sa_solver
from fastdiff.samplers.second_order import heun, kdpm2, kdpm2_ancestral
from fastdiff.samplers.sigma_space import gradient_estimation, sigma_space
from fastdiff.samplers.unipc import unipc

# The modules above register in their own order.
for name in sorted(SAMPLERS):
    SAMPLERS[name] = SAMPLERS.pop(name)

__all__ = [
    "SAMPLERS",
    "annealed_langevin",
    "consistency",
    "ddim",
    "ddim_inversion",
    "ddpm",
    "deis",
    "dpm_solver",
    "dpm_solver_single",
    "dpmpp",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_2s",
    "dpmpp_2s_ancestral",
    "dpmpp_3m",
    "dpmpp_3m_sde",
    "dpmpp_3s",
    "dpmpp_sde",
    "dpmpp_single",
    "epsilon_decoder",
    "euler",
    "euler_ancestral",
    "flow_heun",
    "gradient_estimation",
    "heun",
    "ipndm",
    "kdpm2",
    "kdpm2_ancestral",
    "langevin",
    "lcm",
    "lms",
    "make",
    "named",
    "plms",
    "pndm",
    "predictor_corrector",
    "repaint",
    "restart",
    "sa_solver",
    "sampler",
    "sigma_space",
    "sigmas",
    "spacing",
    "tcd",
    "unipc",
]
