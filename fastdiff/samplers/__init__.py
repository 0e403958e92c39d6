"""Samplers: functions (schedule, steps, ...) -> Plan. None has a kernel, a loop or a class of its own."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from fastdiff.errors import lookup
from fastdiff.plan import Plan
from fastdiff.samplers import sigmas, spacing
from fastdiff.samplers.adams import deis, ipndm, plms, pndm
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
from fastdiff.samplers.lms import lms
from fastdiff.samplers.progressive_vae import epsilon_decoder
from fastdiff.samplers.resampling import repaint, restart
from fastdiff.samplers.rows import Options
from fastdiff.samplers.sa import sa_solver
from fastdiff.samplers.second_order import heun, kdpm2, kdpm2_ancestral
from fastdiff.samplers.sigma_space import gradient_estimation, sigma_space
from fastdiff.samplers.unipc import unipc
from fastdiff.schedules import Schedule

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
    "plms",
    "pndm",
    "predictor_corrector",
    "repaint",
    "restart",
    "sa_solver",
    "sigma_space",
    "sigmas",
    "spacing",
    "tcd",
    "unipc",
]

# Every sampler by its name; the proofs in tests/samplers run for each that stands here.
SAMPLERS: dict[str, Callable[..., Plan]] = {
    "annealed_langevin": annealed_langevin,
    "consistency": consistency,
    "ddim": ddim,
    "ddim_inversion": ddim_inversion,
    "ddpm": ddpm,
    "deis": deis,
    "dpm_solver": dpm_solver,
    "dpm_solver_single": dpm_solver_single,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "dpmpp_2s": dpmpp_2s,
    "dpmpp_2s_ancestral": dpmpp_2s_ancestral,
    "dpmpp_3m": dpmpp_3m,
    "dpmpp_3m_sde": dpmpp_3m_sde,
    "dpmpp_3s": dpmpp_3s,
    "dpmpp_sde": dpmpp_sde,
    "epsilon_decoder": epsilon_decoder,
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "flow_heun": flow_heun,
    "gradient_estimation": gradient_estimation,
    "heun": heun,
    "ipndm": ipndm,
    "kdpm2": kdpm2,
    "kdpm2_ancestral": kdpm2_ancestral,
    "langevin": langevin,
    "lcm": lcm,
    "lms": lms,
    "plms": plms,
    "pndm": pndm,
    "predictor_corrector": predictor_corrector,
    "repaint": repaint,
    "restart": restart,
    "sa_solver": sa_solver,
    "sigma_space": sigma_space,
    "tcd": tcd,
    "unipc": unipc,
}


def make(name: str, schedule: Schedule, **options: Any) -> Plan:
    """Build a plan by the sampler's name. Raises InputError for an unknown name or an option it does not take."""
    sampler = lookup("sampler", name, SAMPLERS)
    known = dict.fromkeys([*inspect.signature(sampler).parameters, *Options.__annotations__])
    del known["schedule"], known["options"]
    for option in options:
        lookup(f"option of {name}", option, known)
    return sampler(schedule, **options)
