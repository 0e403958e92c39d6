"""Is a peer's result right? Each is compared in float64 with the formula, and no time is taken where it is not."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastdiff.bench.speed.work import SEED, Job, Tensors, Work, WrongResult

# Largest error allowed, relative to the largest value, by what a peer computes in; one rounding to the dtype of the
# result comes on top. Twice the worst measured: 9.1e-7 (diffusers' DPM-Solver++) and 1.2e-2 (diffusers' DDIM).
TOLERANCE = {torch.float32: 1.8e-6, torch.bfloat16: 2.4e-2}
DEVIATIONS = 5.0  # of a moment from that of N(0, 1): by chance once in a million


def check(work: Work, job: Job) -> None:
    """Do the work once and compare. Raises WrongResult."""
    work.restore()
    gpus = [torch.cuda.current_device()] if work.device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus), job.within():
        torch.manual_seed(SEED)
        found = job.read(job.call())
        if job.bits is not None:
            _check_bits(found, job.bits())
            return
        torch.manual_seed(SEED)
        z = _hidden_noise(job, found) if job.hides_noise else job.noise and job.noise()
    expected = job.expected(z)
    for name, value in found.items():
        error = _error(value, expected[name])
        allowed = (job.tolerance or TOLERANCE[job.computes]) + torch.finfo(value.dtype).eps / 2
        if not error <= allowed:
            raise WrongResult(f"{name} is off by {error:.2g} of its largest value, {allowed:.2g} is allowed")


def _check_bits(found: Tensors, exact: Tensors) -> None:
    for name, value in found.items():
        differing = int((value.cpu() != exact[name]).sum())
        if differing:
            raise WrongResult(f"{name} differs from the cpu backend's in {differing} of {value.numel()} elements")


def _error(value: Tensor, expected: Tensor) -> float:
    """Return the largest difference over the largest value; 0 for two empty tensors."""
    if value.shape != expected.shape:
        raise WrongResult(f"the result has shape {tuple(value.shape)} instead of {tuple(expected.shape)}")
    if value.numel() == 0:
        return 0.0
    return float((value.double() - expected).abs().max() / expected.abs().max())


def _hidden_noise(job: Job, found: Tensors) -> Tensor:
    """Solve the formula, which is linear in the noise, for it. Raises WrongResult if it is not standard normal."""
    name, value = next(iter(found.items()))
    without, with_ones = (job.expected(torch.full_like(value, number, dtype=torch.float32))[name] for number in (0, 1))
    z = (value.double() - without) / (with_ones - without)
    # Mean, variance and fourth moment in units of their standard errors for n draws.
    moments = {"mean": (z.mean(), 0, 1), "variance": (z.var(), 1, 2), "fourth moment": (z.pow(4).mean(), 3, 96)}
    for moment, (estimate, true, variance) in moments.items():
        deviation = float(estimate - true) / math.sqrt(variance / z.numel())
        if not abs(deviation) <= DEVIATIONS:
            raise WrongResult(f"the {moment} of its noise is off by {deviation:.1f} standard errors")
    return z
