"""Likelihood: the variational bound of ancestral sampling, and the exact density of the probability-flow ODE."""

from fastdiff.likelihood.bound import Bound, Estimate, bound, estimate
from fastdiff.likelihood.terms import Terms, prior

__all__ = ["Bound", "Estimate", "Terms", "bound", "estimate", "prior"]
