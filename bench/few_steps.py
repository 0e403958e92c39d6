"""How few network evaluations each sampler needs: the digits and a mixture of Gaussians, NFE 5 to 50.

    python -m fastdiff.bench.few_steps                  # every sampler, into bench/results/
    python -m fastdiff.bench.few_steps --resume         # go on where a run was interrupted
    python -m fastdiff.bench.few_steps --render-only    # table and figure from the numbers that are there

Every cell starts from the same noise and takes at most the given number of evaluations. On the digits a distance is to
the held-out split, and beside it stands the agreement of a classifier with the label asked for; on the mixture it is
the sliced Wasserstein distance to exact samples. Deterministic samplers are also compared with the exact solution of
the equation that they solve, from the same noise: the root mean square difference of an element.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Protocol

import torch
import typer
from torch import Tensor
from tqdm import tqdm

import fastdiff as fd
from fastdiff.bench import few_steps_report, quality, wasserstein
from fastdiff.bench import machine as machines
from fastdiff.errors import FastdiffError, InputError, NonFiniteError
from fastdiff.files import write_text
from fastdiff.plan import Plan

EVALUATIONS = (5, 8, 10, 15, 20, 50)
SAMPLES = {"mixture": 50_000, "digits": 300}
# By sigma / alpha the cosine schedule of the digits goes up to 2e4, where there is nothing to see.
SPACINGS: dict[str, dict[str, dict[str, Any]]] = {
    "mixture": {"trailing": {}, "karras": {}, "exponential": {}},
    "digits": {"trailing": {}, "exponential": {"sigma_max": 80.0}},
}
SEED = 0
BATCH = 500
EXACT_STEPS = 150

Options = Mapping[str, Any]
Scores = dict[str, float]


class Problem(Protocol):
    """Something to sample."""

    def plan(self, sampler: str, **options: Any) -> Plan:
        """Build a plan for it."""

    def draw(self, plan: Plan) -> Tensor:
        """Draw its samples, [N, ...], always from the same noise."""

    def score(self, x: Tensor) -> Scores:
        """Measure samples [N, ...]."""

    def floor(self) -> Scores:
        """Return the scores of as many real samples."""


class Digits:
    """The shipped network, without guidance."""

    def __init__(self, samples: int) -> None:
        self.checkpoint = fd.load("digits")
        self.train, held_out = quality.split("train"), quality.split("held-out")
        self.labels = self.train.labels[quality.asked(len(self.train.x), samples, SEED)]
        self.judge = quality.Judge(self.train, held_out, epochs=40, seed=SEED)

    def plan(self, sampler: str, **options: Any) -> Plan:
        return self.checkpoint.plan(sampler, **options)

    def draw(self, plan: Plan) -> Tensor:
        parts = torch.split(torch.arange(len(self.labels)), BATCH)
        return torch.cat([self._batch(plan, index) for index in parts])

    def score(self, x: Tensor) -> Scores:
        agreement = self.judge.agreement(x, self.labels)["network"]
        return {"agreement": agreement, **{f"frechet, {name}": d for name, d in self.judge.distances(x).items()}}

    def floor(self) -> Scores:
        copier = self.judge.copier(self.train, len(self.labels), SEED)
        return {f"frechet, {name}": distance for name, distance in copier.items()}

    def _batch(self, plan: Plan, index: Tensor) -> Tensor:
        shape, cond = (len(index), *self.checkpoint.shape), {"y": self.labels[index]}
        return fd.sample(self.checkpoint.model, plan, shape, seed=SEED, index=index, cond=cond)


class Mixture:
    """Nine Gaussians in the plane, narrow and wide, heavy and light, with the exact network."""

    def __init__(self, samples: int) -> None:
        angle = torch.arange(8) * math.tau / 8
        ring = torch.stack([angle.cos(), angle.sin()], dim=1)
        means = torch.cat([ring, torch.zeros(1, 2)])
        self.samples, self.schedule = samples, fd.schedules.linear(1000)
        self.mixture = fd.models.GaussianMixture(
            means.tolist(), [0.05, 0.1, 0.15, 0.2] * 2 + [0.1], [1.0, 2.0, 3.0, 4.0] * 2 + [4.0]
        )
        self.network = self.mixture.network(self.schedule)
        self.exact = wasserstein.quantiles(self.mixture.sample(samples, seed=SEED + 1))

    def plan(self, sampler: str, **options: Any) -> Plan:
        return fd.samplers.make(sampler, self.schedule, **{"clip": None, **options})

    def draw(self, plan: Plan) -> Tensor:
        return fd.sample(self.network, plan, (self.samples, 2), seed=SEED)

    def score(self, x: Tensor) -> Scores:
        return {"sliced Wasserstein": wasserstein.between(wasserstein.quantiles(x), self.exact)}

    def floor(self) -> Scores:
        return self.score(self.mixture.sample(self.samples, seed=SEED + 2))


PROBLEMS: dict[str, Callable[[int], Problem]] = {"mixture": Mixture, "digits": Digits}
# Not samplers of an ordinary network from noise to data, or for one level only.
LEFT_OUT = {
    "annealed_langevin": "several evaluations a level",
    "consistency": "for distilled networks",
    "ddim_inversion": "from data to noise",
    "epsilon_decoder": "is ddpm for another kind of network",
    "euler": "without churn it is ddim",
    "euler_ancestral": "is ddpm here",
    "langevin": "stays at one level",
    "lcm": "for distilled networks",
    "repaint": "resamples",
    "sigma_space": "is ddpm here",
    "tcd": "for distilled networks",
}


def compared() -> list[str]:
    """Return the samplers to compare: all that are registered but for those in LEFT_OUT."""
    return [name for name in fd.samplers.SAMPLERS if name not in LEFT_OUT]


def largest(problem: Problem, sampler: str, evaluations: int, **options: Any) -> Plan | None:
    """Return the plan of the most steps that takes at most so many evaluations, or None if one step takes more."""
    steps = evaluations
    while steps:
        plan = problem.plan(sampler, steps=steps, **options)
        if plan.nfe <= evaluations:
            return plan
        steps = min(steps - 1, steps * evaluations // plan.nfe + 1)
    return None


def run(out: Path, samples: Mapping[str, int], *, resume: bool = False) -> few_steps_report.Results:
    """Measure every sampler and return the results; each finished cell is written to `out` at once.

    Raises:
        InputError: resuming would mix two runs.
    """
    path = out / few_steps_report.JSON
    measured = {"samples": dict(samples), "seed": SEED, "exact steps": EXACT_STEPS, "spacings": SPACINGS}
    setup = {**measured, "machine": machines.describe(), "torch": torch.__version__}
    results: few_steps_report.Results = {"setup": setup, "started": machines.now(), "floor": {}, "cells": []}
    if resume and path.exists():
        results = few_steps_report.read(path)
        if results["setup"] != setup:
            raise InputError(f"cannot resume {path}: it was measured otherwise; give another --out")
    for name, make in PROBLEMS.items():
        problem = make(samples[name])
        results["floor"][name] = problem.floor()
        _measure(name, problem, results, path)
    return results


def _measure(name: str, problem: Problem, results: few_steps_report.Results, path: Path) -> None:
    spacings = SPACINGS[name]
    exact = problem.draw(problem.plan("heun", steps=EXACT_STEPS, spacing="exponential", **spacings["exponential"]))
    done = {tuple(cell[key] for key in few_steps_report.KEYS) for cell in results["cells"]}
    todo = [(sampler, spacing, nfe) for spacing in spacings for sampler in compared() for nfe in EVALUATIONS]
    for sampler, spacing, nfe in tqdm(todo, desc=name, unit="cell", disable=None):
        if (name, sampler, spacing, nfe) in done:
            continue
        plan = largest(problem, sampler, nfe, spacing=spacing, **spacings[spacing])
        if plan is None:
            continue
        started = time.perf_counter()
        cell = {"problem": name, "sampler": sampler, "spacing": spacing, "nfe": nfe, "evaluations": plan.nfe}
        scores = _scores(problem, plan, exact)
        results["cells"].append({**cell, **scores, "seconds": round(time.perf_counter() - started, 2)})
        write_text(path, json.dumps(results, indent=1) + "\n")


def _scores(problem: Problem, plan: Plan, exact: Tensor) -> Mapping[str, float | str]:
    try:
        x = problem.draw(plan)
    except NonFiniteError as error:
        return {"failed": str(error)}
    distance = {} if plan.draws_noise else {"distance": float((x - exact).square().mean().sqrt())}
    return {**problem.score(x), **distance}


def main(
    out: Annotated[Path, typer.Option(help="folder of the results")] = Path("bench/results"),
    digits: Annotated[int, typer.Option(min=2, help="samples of the digits")] = SAMPLES["digits"],
    mixture: Annotated[int, typer.Option(min=2, help="samples of the mixture")] = SAMPLES["mixture"],
    resume: Annotated[bool, typer.Option("--resume", help="keep the cells that are finished")] = False,
    render_only: Annotated[bool, typer.Option("--render-only", help="measure nothing")] = False,
) -> None:
    """Measure how few network evaluations each sampler needs."""
    saved = out / few_steps_report.JSON
    samples = {"digits": digits, "mixture": mixture}
    try:
        results = few_steps_report.read(saved) if render_only else run(out, samples, resume=resume)
    except (FastdiffError, OSError) as error:
        sys.exit(f"error: {error}")
    for path in few_steps_report.render(results, out):
        print(path)


if __name__ == "__main__":
    typer.run(main)
