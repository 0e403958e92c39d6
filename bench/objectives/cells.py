"""What each table measures: a run, and how it is sampled or judged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastdiff.bench.objectives.runs import SEEDS

# The fixed samplers of the tables; trailing spacing begins at the last level, which flow needs.
DDIM = {"sampler": "ddim", "steps": 25, "spacing": "trailing"}
DDPM = {"sampler": "ddpm", "steps": 50, "spacing": "trailing"}
DDPM_100 = {"sampler": "ddpm", "steps": 100, "spacing": "trailing"}
LANGEVIN = {"sampler": "annealed_langevin", "steps": 32, "per_level": 3, "step_size": 0.3}
SOLVER = {"sampler": "dpmpp_2m", "steps": 50, "spacing": "trailing"}
SOLVER_OF_SIGMAS = {**SOLVER, "spacing": "exponential"}

# The variance of the steps down that the bound is of.
VARIANCES = {"simple": "small", "hybrid": "learned_range", "vlb": "learned_range", "min-snr": "small", "flow": "small"}
REPEATED = ("simple", "hybrid", "min-snr", "flow")  # with another seed
SAMPLERS_OF_SCORES = {"ncsn": (LANGEVIN, SOLVER_OF_SIGMAS), "simple": (DDPM_100, SOLVER)}
GUIDED = "min-snr"
STRENGTHS = {"cfg": (0.5, 0.75, 1, 1.5, 2, 3, 5), "classifier": (0, 1, 2, 3, 5, 10), "both": (0.5, 1, 2)}


@dataclass(frozen=True)
class Cell:
    """One measurement.

    Attributes:
        table: the table that it is for.
        run, seed: whose network; see `runs`.
        measure: what is done, a name of `measure.MEASURES`; options: its arguments.
        needs: runs beside its own.
    """

    table: str
    run: str
    seed: int
    measure: str
    options: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()


def objectives() -> list[Cell]:
    """Return the cells of objectives against each other; the bound is dear, and of the first seed alone."""
    bounds = [Cell("objectives", run, SEEDS[0], "variational", {"variance": of}) for run, of in VARIANCES.items()]
    trained = [(run, SEEDS[0]) for run in VARIANCES] + [(run, SEEDS[1]) for run in REPEATED]
    drawn = [Cell("objectives", *run, "samples", sampler) for run in trained for sampler in (DDIM, DDPM)]
    return [*drawn, *bounds]


def scores() -> list[Cell]:
    """Return the cells of NCSN against DDPM."""
    return [
        Cell("scores", run, SEEDS[0], "samples", sampler)
        for run, samplers in SAMPLERS_OF_SCORES.items()
        for sampler in samplers
    ]


def latents() -> list[Cell]:
    """Return the cells of latent against pixel diffusion, and of what the autoencoder alone loses."""
    return [
        Cell("latents", "vae", SEEDS[0], "reconstructions"),
        Cell("latents", "latent", SEEDS[0], "samples", DDIM, ("vae",)),
        Cell("latents", "pixel", SEEDS[0], "samples", DDIM),
        *(Cell("latents", run, SEEDS[0], "seconds") for run in ("vae", "latent", "pixel")),
    ]


def guidance() -> list[Cell]:
    """Return the cells of classifier guidance against CFG, on one network."""
    return [
        Cell("guidance", GUIDED, SEEDS[0], "guided", {**DDIM, "by": by, "strength": strength}, ("classifier",))
        for by, strengths in STRENGTHS.items()
        for strength in strengths
    ]


TABLES = {"objectives": objectives, "scores": scores, "latents": latents, "guidance": guidance}
