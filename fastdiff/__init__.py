"""fastdiff: a diffusion sampler whose samplers are tables and whose step is one kernel."""

from importlib.metadata import version as _version

from fastdiff import graph, guidance, latents, likelihood, models, noise, samplers, schedules
from fastdiff.checkpoint import Checkpoint, load
from fastdiff.errors import (
    BackendError,
    CheckpointError,
    FastdiffError,
    InputError,
    MissingDependencyError,
    NonFiniteError,
)
from fastdiff.forward import q_sample
from fastdiff.integrations import accelerate
from fastdiff.noise_loss import noise_loss
from fastdiff.plan import Plan
from fastdiff.sample import sample
from fastdiff.schedules import Schedule
from fastdiff.serve import Request, serve
from fastdiff.system import info

__version__ = _version("fastdiff-sampler")

__all__ = [
    "BackendError",
    "Checkpoint",
    "CheckpointError",
    "FastdiffError",
    "InputError",
    "MissingDependencyError",
    "NonFiniteError",
    "Plan",
    "Request",
    "Schedule",
    "accelerate",
    "graph",
    "guidance",
    "info",
    "latents",
    "likelihood",
    "load",
    "models",
    "noise",
    "noise_loss",
    "q_sample",
    "sample",
    "samplers",
    "schedules",
    "serve",
]
