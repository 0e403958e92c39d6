"""Schedulers with diffusers' names, whose steps are the kernels'."""

from __future__ import annotations

import fastdiff.integrations.diffusers.installed  # noqa: F401

# isort: split

from diffusers.utils import is_torchsde_available

from fastdiff.integrations.diffusers.ddim import DDIMInverseScheduler, DDIMParallelScheduler, DDIMScheduler
from fastdiff.integrations.diffusers.ddpm import DDPMParallelScheduler, DDPMScheduler
from fastdiff.integrations.diffusers.deis import DEISMultistepScheduler
from fastdiff.integrations.diffusers.distilled import CMStochasticIterativeScheduler, LCMScheduler, TCDScheduler
from fastdiff.integrations.diffusers.dpm import DPMSolverMultistepScheduler, EDMDPMSolverMultistepScheduler
from fastdiff.integrations.diffusers.dpm_single import DPMSolverSinglestepScheduler
from fastdiff.integrations.diffusers.edm import EDMEulerScheduler
from fastdiff.integrations.diffusers.euler import EulerAncestralDiscreteScheduler, EulerDiscreteScheduler
from fastdiff.integrations.diffusers.flow import FlowMatchEulerDiscreteScheduler
from fastdiff.integrations.diffusers.ipndm import IPNDMScheduler
from fastdiff.integrations.diffusers.lms import LMSDiscreteScheduler
from fastdiff.integrations.diffusers.pndm import PNDMScheduler
from fastdiff.integrations.diffusers.sa import SASolverScheduler
from fastdiff.integrations.diffusers.second_order import (
    HeunDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
)
from fastdiff.integrations.diffusers.unipc import UniPCMultistepScheduler

__all__ = [
    "CMStochasticIterativeScheduler",
    "DDIMInverseScheduler",
    "DDIMParallelScheduler",
    "DDIMScheduler",
    "DDPMParallelScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EDMDPMSolverMultistepScheduler",
    "EDMEulerScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "IPNDMScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "SASolverScheduler",
    "TCDScheduler",
    "UniPCMultistepScheduler",
]

if is_torchsde_available():
    from fastdiff.integrations.diffusers.dpm_sde import DPMSolverSDEScheduler

    __all__ += ["DPMSolverSDEScheduler"]
