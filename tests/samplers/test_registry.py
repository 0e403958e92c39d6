"""What holds for every sampler in the registry; `claims.py` says what each one claims beyond that."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastdiff as fd
from fastdiff.errors import InputError
from fastdiff.models import GaussianMixture
from fastdiff.plan import Plan
from fastdiff.samplers import SAMPLERS, sigmas, spacing
from tests.samplers.claims import claim, convergent
from tests.samplers.propagate import marginals

VP = fd.schedules.scaled_linear(1000)
# Schedule, prediction and spacing: every kind of coordinates, and two that begin in pure noise.
SYSTEMS = {
    "vp": (VP, "eps", "trailing"),
    "cosine": (fd.schedules.cosine(1000), "v", "trailing"),  # almost pure noise: sigma / alpha is 20,000
    "zero-snr": (VP.zero_terminal_snr(), "v", "trailing"),
    "ve": (fd.schedules.karras(1000, 0.02, 50.0).with_unit_input(), "x0", "karras"),
    "flow": (fd.schedules.flow(100, shift=3.0), "flow", "trailing"),
}
EVERY_SAMPLER = pytest.mark.parametrize("name", SAMPLERS)


def build(name: str, system: str, steps: int, **options: Any) -> Plan:
    """Build a plan of so many steps. A sampler that refuses to begin where alpha is 0 begins one level later."""
    schedule, prediction, levels = SYSTEMS[system]
    options = {"prediction": prediction, "spacing": levels, "clip": None, **claim(name).options(steps), **options}
    try:
        return fd.samplers.make(name, schedule, steps=steps, **options)
    except InputError as error:
        if schedule.alpha[-1] > 0 or "alpha is 0" not in str(error):
            raise
        return fd.samplers.make(name, schedule, steps=steps + 1, start=1, **options)


# --- the table


@EVERY_SAMPLER
@pytest.mark.parametrize("system", SYSTEMS)
def test_plan(name: str, system: str, tmp_path: Path) -> None:
    """A plan knows its levels, draws noise only if it claims to, prints, and survives a file."""
    plan = build(name, system, 20)
    assert len(plan.alpha) == len(plan.sigma) == plan.nfe + 1
    assert plan.draws_noise == claim(name).noise
    assert str(plan).startswith(plan.name) and len(str(plan).splitlines()) > 10
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan


@EVERY_SAMPLER
@pytest.mark.parametrize("system", ["zero-snr", "flow"])
def test_default_spacing_in_pure_noise(name: str, system: str) -> None:
    """Where a schedule begins in pure noise no spacing need be given, and none of its levels is left out."""
    plan = build(name, system, 2, spacing=None)
    assert len(plan) >= 2
    assert plan.t[0] >= 0.4 * SYSTEMS[system][0].time[-1]


def test_names() -> None:
    """A plan is named after its sampler and the sampler's own options, but those that have their default."""
    made = {
        "ddim": fd.samplers.ddim(VP, 3, np.float64(0), spacing="trailing"),
        "ddim(eta=0.5)": fd.samplers.ddim(VP, 3, np.float64(0.5)),
        "restart(intervals=((0.1, 0.4, 2, 3)))": fd.samplers.restart(VP, intervals=[(np.float64(0.1), 0.4, 2, 3)]),
        "dpmpp_2m": fd.samplers.dpmpp_2m(VP, 3),
    }
    assert {name: plan.name for name, plan in made.items()} == {name: name for name in made}
    assert list(SAMPLERS) == sorted(SAMPLERS)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fd.samplers.ddim(VP, foo=1), "unknown option of ddim 'foo': did you mean"),
        (lambda: fd.samplers.ddim(VP, 3, steps=3), "ddim: multiple values for argument 'steps'"),
        (lambda: fd.samplers.make("ddim", VP, schedule=VP), "ddim: multiple values for argument 'schedule'"),
        (lambda: fd.samplers.make(None, VP), "sampler must be a name, got None"),
    ],
)
def test_bad_calls(call: Callable[[], Plan], message: str) -> None:
    """What a sampler does not take is one line."""
    with pytest.raises(InputError, match=message):
        call()


@EVERY_SAMPLER
@pytest.mark.parametrize("steps", [1, 2, 3, 50])
def test_every_spacing_is_finite(name: str, steps: int) -> None:
    """Few steps and many, over every spacing, with and without a clip, onto clean data and not (`build` checks)."""
    for levels in (*spacing.names(), *sigmas.names()):
        for options in ({}, {"clip": None, "prediction": "x0"}):
            assert len(build(name, "vp", steps, spacing=levels, **options)) >= steps


# --- data of one point


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("final", ["zero", "sigma_min"])
@pytest.mark.parametrize("name", [name for name in SAMPLERS if claim(name).marginals])
def test_one_point(name: str, system: str, final: str) -> None:
    """For data of one point m, where E[x0 | x] is m, each state is N(alpha m, sigma^2) at the level it claims."""
    m = 0.7
    schedule, prediction, _ = SYSTEMS[system]
    model = GaussianMixture([[m]], [0.0]).network(schedule, prediction)
    # One or two steps over the seven decades of `cosine` leave no digits of two stages.
    for steps in (8,) if system == "cosine" else (1, 2, 8):
        plan = build(name, system, steps, final=final)
        mean, deviation = marginals(plan, model, plan.alpha[0] * m, plan.sigma[0])
        # A stage from sigma / alpha = 50 to 0.02 multiplies roundings by 2500, and some steps have two such stages.
        np.testing.assert_allclose(mean, plan.alpha[1:] * m, rtol=0, atol=1e-9)
        np.testing.assert_allclose(deviation, plan.sigma[1:], rtol=0, atol=1e-9)


# --- Gaussian data


@pytest.mark.parametrize("name", convergent())
def test_gaussian_data(name: str) -> None:
    """For data N(m, s^2) the mean and the deviation of the samples converge to the closed form in the claimed order."""
    schedule, prediction = fd.schedules.linear(1000), "v"
    m, s = 0.7, 0.5
    model = GaussianMixture([[m]], [s]).network(schedule, prediction)
    errors = []
    levels = {"sigma_min": 0.05, "sigma_max": 10.0, "spacing": "exponential", "final": "sigma_min"}
    for steps in (60, 120):
        options = {**levels, "prediction": prediction, "clip": None, **claim(name).options(steps)}
        plan = fd.samplers.make(name, schedule, steps=steps, **options)
        start, end = (math.hypot(plan.alpha[i] * s, plan.sigma[i]) for i in (0, -1))
        mean, deviation = marginals(plan, model, plan.alpha[0] * m, start)
        errors.append(abs(mean[-1] - plan.alpha[-1] * m) + abs(deviation[-1] - end))
    # The error's next term is a few steps, of 0.05 to 0.3, times the first; the most, for "dpmpp_3s", is 0.203.
    assert math.log2(errors[0] / errors[1]) > claim(name).order - 0.25


# --- the documents


def test_the_table_in_the_documents() -> None:
    """docs/samplers.md names what is registered, and says of each what it claims, takes and keeps."""
    text = (Path(__file__).parents[2] / "docs" / "samplers.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| `")]
    expected = []
    for name in sorted(SAMPLERS):
        short, plan = (
            fd.samplers.make(name, VP, steps=steps, spacing="trailing", prediction="eps") for steps in (20, 40)
        )
        history = f"{plan.history_slots} {plan.stores}" if plan.history_slots else ""
        expected.append(
            [
                f"`{name}`",
                str(claim(name).order or "-"),
                str((plan.nfe - short.nfe) // 20),
                "yes" if plan.draws_noise else "",
                ", ".join(kept for kept in ("anchor" if plan.has_anchor else "", history) if kept),
            ]
        )
    assert [[sampler, *rest] for sampler, _, *rest in rows] == expected
