"""DDPM's schedulers against diffusers, every state of whole loops, with the noise of one generator."""

from __future__ import annotations

from itertools import cycle, product
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdiff.errors import InputError
from tests.integrations.loops import (
    SHAPE,
    TOLERANCE,
    draw_alike,
    drawn,
    error,
    network,
    normals,
    pair,
    states,
    with_exact_levels,
)

KINDS = ["epsilon", "sample", "v_prediction"]
SPACINGS = ["leading", "trailing", "linspace"]
VARIANCES = ["fixed_small", "fixed_small_log", "fixed_large", "learned", "learned_range", "another"]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"clip_sample": False},
    {"clip_sample_range": 0.7, "beta_schedule": "sigmoid"},
    {"thresholding": True, "sample_max_value": 2.0, "dynamic_thresholding_ratio": 0.8},
    {"thresholding": True, "sample_max_value": 0.5},
    {"rescale_betas_zero_snr": True},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"steps_offset": 1},
]
CUSTOM = {"timesteps": [999, 400, 87, 50, 1]}
# Of float64 states; measured: 3e-14.
EXACT = 1e-11


def with_variance(x: Tensor, t: Tensor | float) -> Tensor:
    """A network whose second half is in (0, 1), as a variance is."""
    return torch.cat([network(x, t), torch.sigmoid(x - 3)], dim=1)


def model_of(variance: str) -> Any:
    return with_variance if variance.startswith("learned") else network


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["DDPMScheduler", "DDPMParallelScheduler"])
def test_in_float64(name: str, kind: str) -> None:
    """Every variance with every option and spacing, from the first row or a later one."""
    loops, variances = cycle([(7, 0), (10, 3), (1, 0), (33, 0), (20, 11)]), cycle(VARIANCES)
    for options, spacing, _ in product(OPTIONS, SPACINGS, range(2)):
        variance, (steps, first) = next(variances), next(loops)
        config = {"prediction_type": kind, "timestep_spacing": spacing, "variance_type": variance, **options}
        mine, theirs = pair(name, **config)
        which: dict[str, Any] = {"model": model_of(variance), "first": first, "dtype": torch.float64}
        found = error(*(states(with_exact_levels(scheduler), steps, **which) for scheduler in (mine, theirs)))
        assert found < EXACT, (config, steps, first)


@pytest.mark.parametrize("variance", VARIANCES)
def test_in_float32(variance: str) -> None:
    counts = cycle([5, 8, 12, 25, 50])
    for kind, options in product(KINDS, OPTIONS):
        mine, theirs = pair("DDPMScheduler", prediction_type=kind, variance_type=variance, **options)
        steps, model = next(counts), model_of(variance)
        assert error(states(mine, steps, model), states(theirs, steps, model)) < TOLERANCE, (kind, options, steps)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned_range"])
def test_near_clean_data(variance: str) -> None:
    """Where beta is 1e-4, and diffusers rounds it to 3 digits: to the digits that its own tests look at."""
    mine, theirs = pair("DDPMScheduler", variance_type=variance)
    model = model_of(variance)
    assert error(states(mine, 1000, model, first=980), states(theirs, 1000, model, first=980)) < 1e-5


@pytest.mark.parametrize("variance", VARIANCES)
def test_custom_timesteps(variance: str) -> None:
    """Where they end above 0, noise is added to clean data, as much as the variance says there."""
    mine, theirs = pair("DDPMScheduler", variance_type=variance)
    found, expected = (drawn(s, None, timesteps_of=CUSTOM, model=model_of(variance)) for s in (mine, theirs))
    assert draw_alike(found, expected)


def test_logarithm_of_large_variance() -> None:
    """The root that diffusers takes is that of a negative number; what is meant is the variance's."""
    mine, theirs = pair("DDPMScheduler", variance_type="fixed_large_log")
    plain, _ = pair("DDPMScheduler", variance_type="fixed_large")
    assert states(theirs, 5)[0].isnan().any()
    assert error(states(mine, 5), states(plain, 5)) == 0


@pytest.mark.parametrize("variance", ["learned", "learned_range"])
def test_learned_variance_must_come(variance: str) -> None:
    mine, _ = pair("DDPMScheduler", variance_type=variance)
    with pytest.raises(InputError, match="twice the sample's channels"):
        states(mine, 5)


def test_plan_of_learned_variance() -> None:
    """The step takes the variance's logarithm first; a plan would take the network's output for that."""
    mine, _ = pair("DDPMScheduler", variance_type="learned")
    with pytest.raises(InputError, match="square root"):
        mine.plan()


def test_learned_variance_of_zero() -> None:
    """No noise, and nothing that is not finite: neither where it is added nor in the last row."""
    mine, _ = pair("DDPMScheduler", variance_type="learned")
    x = normals(1)
    without = torch.cat([x, torch.zeros_like(x)], dim=1)
    mine.set_timesteps(5)
    for t in mine.timesteps:
        assert torch.equal(mine.step(without, t, x, seed=1).prev_sample, mine.step(without, t, x, seed=2).prev_sample)


def test_every_timestep_without_set_timesteps() -> None:
    """By number, from the last to 0; and in no order, each to the one below it."""
    mine, theirs = pair("DDPMScheduler", num_train_timesteps=60)
    found = {}
    for scheduler in (mine, theirs):
        x, generator, found[scheduler] = normals(0), torch.Generator().manual_seed(3), []
        for t in reversed(range(60)):
            x = scheduler.step(network(x, t), t, x, generator=generator).prev_sample
            found[scheduler].append(x)
    assert error(found[mine], found[theirs]) < TOLERANCE
    for t in (0, 59, 7, 7, 30):
        given = network(normals(1), t), t, normals(1)
        one, other = (s.step(*given, generator=torch.Generator().manual_seed(4)) for s in (mine, theirs))
        assert error([one.prev_sample], [other.prev_sample]) < TOLERANCE
    assert not mine._runs.shown[0].states


def test_levels_beyond_the_last_of_float32() -> None:
    """Where betas are so large that abar ends in zeros, the steps between those are NaN in diffusers, and none here."""
    mine, theirs = pair("DDPMScheduler", beta_start=0.1, beta_end=2.0)
    assert states(theirs, 50)[0].isnan().any()
    assert all(state.isfinite().all() for state in states(mine, 50))
    for t in (0, 20, 100):
        given = normals(0), t, normals(1)
        one, other = (s.step(*given, generator=torch.Generator().manual_seed(4)) for s in (mine, theirs))
        assert error([one.prev_sample], [other.prev_sample]) < TOLERANCE


def test_timestep_that_leads_nowhere() -> None:
    mine, _ = pair("DDPMScheduler")
    mine.set_timesteps(10)
    with pytest.raises(InputError, match="none of scheduler.timesteps"):
        mine.step(normals(0), 5, normals(1))


@pytest.mark.parametrize("steps", [None, 10])
@pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[1], OPTIONS[3], OPTIONS[6], {"variance_type": "learned"}])
def test_batch_of_timesteps(options: dict[str, Any], steps: int | None) -> None:
    """Each sample from a timestep of its own, to the mean; the variance, learned or not, is left out."""
    timesteps, x = torch.tensor([981, 3, 500, 0, 21]), normals(1, (5, *SHAPE[1:]))
    for kind in KINDS:
        mine, theirs = pair("DDPMParallelScheduler", prediction_type=kind, **options)
        for scheduler in (mine, theirs):
            if steps:
                scheduler.set_timesteps(steps)
        given = model_of(options.get("variance_type", ""))(x, 300), timesteps, x
        assert error([mine.batch_step_no_noise(*given)], [theirs.batch_step_no_noise(*given)]) < TOLERANCE


def test_outputs() -> None:
    for kind, name in product(KINDS, ["DDPMScheduler", "DDPMParallelScheduler"]):
        mine, theirs = pair(name, prediction_type=kind)
        given = normals(1), 0, normals(2)
        found, expected = mine.step(*given), theirs.step(*given)
        assert type(found).__name__ == type(expected).__name__
        assert error([found.pred_original_sample], [expected.pred_original_sample]) < TOLERANCE
        assert error(list(mine.step(*given, return_dict=False)), list(found.to_tuple())) == 0


@pytest.mark.parametrize("variance", ["fixed_small", "learned", "learned_range"])
@pytest.mark.parametrize("dtypes", [("bfloat16", "bfloat16"), ("float16", "float32"), ("float32", "bfloat16")])
def test_dtypes(dtypes: tuple[str, str], variance: str) -> None:
    """The state's, x0's and the noise's; bf16 keeps 8 bits, of which diffusers rounds some more than once."""
    mine, theirs = pair("DDPMScheduler", clip_sample=False, variance_type=variance)
    x = normals(1).to(getattr(torch, dtypes[1]))
    out = model_of(variance)(x, 500).to(getattr(torch, dtypes[0]))
    found = [s.step(out, 500, x, torch.Generator().manual_seed(1), return_dict=False) for s in (mine, theirs)]
    for a, b in zip(*found, strict=True):
        assert a.dtype == b.dtype
        assert error([a], [b]) < 2**-6


@pytest.mark.parametrize("generators", [1, 2])
def test_generators_end_alike(generators: int) -> None:
    mine, theirs = pair("DDPMScheduler")
    assert draw_alike(*(drawn(scheduler, 6, generators) for scheduler in (mine, theirs)))


def test_torchs_own_generator() -> None:
    found = []
    for scheduler in pair("DDPMScheduler"):
        torch.manual_seed(11)
        found.append((states(scheduler, 6, generator=None), [torch.get_rng_state()]))
    assert draw_alike(*found)


def test_the_projects_own_noise() -> None:
    mine, _ = pair("DDPMScheduler")
    before = torch.get_rng_state()
    found = states(mine, 6, generator=None, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert error(states(mine, 6, generator=None, seed=[3, 3]), found) == 0
    assert error(states(mine, 6, generator=None, seed=4), found) > 0.1
