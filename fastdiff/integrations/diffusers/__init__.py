"""Schedulers with diffusers' names, whose steps are the kernels'."""

from __future__ import annotations

from fastdiff.integrations.diffusers.ddim import DDIMScheduler
from fastdiff.integrations.diffusers.euler import EulerDiscreteScheduler

__all__ = ["DDIMScheduler", "EulerDiscreteScheduler"]
