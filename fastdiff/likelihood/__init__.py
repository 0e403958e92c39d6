"""Likelihood: the variational bound of ancestral sampling, and the density of the probability-flow ODE."""

from fastdiff.likelihood.bound import Bound, Estimate, bound, estimate
from fastdiff.likelihood.ode import log_likelihood
from fastdiff.likelihood.terms import Terms, prior

__all__ = ["Bound", "Estimate", "Terms", "bound", "estimate", "log_likelihood", "prior"]
