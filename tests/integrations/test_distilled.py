"""Schedulers of distilled models against diffusers, every state of whole loops, with the noise of one generator."""

from __future__ import annotations

from itertools import cycle, product
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from fastdiff.errors import InputError
from tests.integrations.loops import (
    TOLERANCE,
    draw_alike,
    drawn,
    error,
    in_float64,
    normals,
    pair,
    states,
    with_exact_levels,
)

LCM, TCD, CM = "LCMScheduler", "TCDScheduler", "CMStochasticIterativeScheduler"
KINDS = ["epsilon", "sample", "v_prediction"]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"clip_sample": True, "clip_sample_range": 0.7, "set_alpha_to_one": False},
    {"thresholding": True, "sample_max_value": 2.0, "dynamic_thresholding_ratio": 0.8},
    {"thresholding": True, "sample_max_value": 0.5},
    {"rescale_betas_zero_snr": True, "clip_sample": True},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"timestep_scaling": 1.0},
    {"original_inference_steps": 100},
]
TIMES: list[dict[str, Any]] = [
    {"timesteps": [999, 500, 100, 0]},
    {"timesteps": [999, 500, 100, 19], "strength": 0.6},  # whose last row adds noise, as the last timestep is left out
    {"num_inference_steps": 4, "strength": 0.6},
    {"num_inference_steps": 4, "original_inference_steps": 20},
    {"num_inference_steps": 1},
]
CONSISTENCY: list[dict[str, Any]] = [
    {},
    {"clip_denoised": False},
    {"s_noise": 1.01, "sigma_data": 0.7},
    {"sigma_min": 0.01, "sigma_max": 20.0, "rho": 3.0},
    {"num_train_timesteps": 201},
]
# Of float64 states; LCM's boundary condition is found from timesteps in float32 there.
EXACT = {TCD: 1e-12, CM: 1e-12, LCM: 1e-5}


def etas_of(name: str) -> list[dict[str, Any]]:
    """Options of the step, in turn."""
    return [{"eta": eta} for eta in (0.3, 0.0, 1.0, 0.75)] if name == TCD else [{}]


def pure_noise(name: str, config: dict[str, Any]) -> bool:
    """Return whether diffusers divides by 0, and does not clip what comes of it."""
    return name == TCD and "rescale_betas_zero_snr" in config and config["prediction_type"] == "epsilon"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [LCM, TCD])
def test_loops(name: str, kind: str) -> None:
    counts, etas = cycle([(1, 0), (4, 0), (9, 2), (30, 0), (50, 13)]), cycle(etas_of(name))
    for options, _ in product(OPTIONS, range(4)):
        config, (steps, first), eta = {"prediction_type": kind, **options}, next(counts), next(etas)
        if pure_noise(name, config):
            continue
        mine, theirs = pair(name, **config)
        found = error(states(mine, steps, first=first, **eta), states(theirs, steps, first=first, **eta))
        assert found < TOLERANCE, (config, steps, eta)
        double: dict[str, Any] = {"first": first, "dtype": torch.float64, **eta}
        exact = states(with_exact_levels(theirs), steps, **double)
        assert error(states(mine, steps, **double), exact) < EXACT[name], (config, steps, eta)


@pytest.mark.parametrize("which", TIMES)
@pytest.mark.parametrize("name", [LCM, TCD])
def test_timesteps(name: str, which: dict[str, Any]) -> None:
    """Noise is drawn in every row but the last of those that were asked for, also where none is added."""
    for eta in etas_of(name):
        mine, theirs = pair(name)
        steps = which.get("num_inference_steps")
        others = {key: value for key, value in which.items() if key != "num_inference_steps"}
        assert draw_alike(*(drawn(s, steps, timesteps_of=others, **eta) for s in (mine, theirs)))


@pytest.mark.parametrize("config", CONSISTENCY)
def test_consistency(config: dict[str, Any]) -> None:
    """One step, where no noise is drawn, to as many as there are levels, the last of which draws and adds none."""
    mine, theirs = pair(CM, **config)
    for steps, first in ((1, 0), (2, 0), (5, 1), (12, 0), (40, 17)):
        assert draw_alike(*(drawn(scheduler, steps, first=first) for scheduler in (mine, theirs)))
    custom: dict[str, Any] = {"timesteps_of": {"timesteps": [39, 20, 0]}}
    assert draw_alike(*(drawn(scheduler, None, **custom) for scheduler in (mine, theirs)))
    found = states(mine, 12, dtype=torch.float64)
    assert error(found, states(in_float64(theirs), 12, dtype=torch.float64)) < EXACT[CM]


def test_consistency_without_set_timesteps() -> None:
    """There is a sigma less then: the last row leads to its own."""
    mine, theirs = pair(CM, num_train_timesteps=12)
    found = {}
    for scheduler in (mine, theirs):
        x, generator, found[scheduler] = normals(0) * 80, torch.Generator().manual_seed(3), []
        for t in scheduler.timesteps:
            scaled = scheduler.scale_model_input(x, t)
            x = scheduler.step(torch.tanh(scaled), t, x, generator).prev_sample
            found[scheduler] += [scaled, x]
    assert error(found[mine], found[theirs]) < TOLERANCE
    assert mine.is_scale_input_called


def test_consistency_by_number() -> None:
    """A timestep may be a number of numpy's, but no index."""
    mine, theirs = pair(CM)
    for scheduler in (mine, theirs):
        scheduler.set_timesteps(4)
    given = normals(1), mine.sigma_to_t(80.0), normals(0)
    assert isinstance(given[1], (float, np.ndarray))
    one, other = (s.step(*given, torch.Generator().manual_seed(1)).prev_sample for s in (mine, theirs))
    assert error([one], [other]) < TOLERANCE
    with pytest.raises(InputError, match="not its index"):
        mine.step(normals(1), 3, normals(0))


@pytest.mark.parametrize("name", [LCM, TCD, CM])
def test_outputs(name: str) -> None:
    """The second of LCM and TCD is where the step jumped to, before noise was added."""
    mine, theirs = pair(name)
    found = []
    for scheduler in (mine, theirs):
        scheduler.set_timesteps(6)
        given = normals(1), scheduler.timesteps[2], normals(2)
        whole = scheduler.step(*given, generator=torch.Generator().manual_seed(2))
        scheduler.set_timesteps(6)
        parts = scheduler.step(*given, generator=torch.Generator().manual_seed(2), return_dict=False)
        assert all(torch.equal(a, b) for a, b in zip(whole.to_tuple(), parts, strict=True))
        found.append(whole)
    assert type(found[0]) is type(found[1])
    assert error(list(found[0].to_tuple()), list(found[1].to_tuple())) < TOLERANCE


@pytest.mark.parametrize("name", [LCM, TCD, CM])
@pytest.mark.parametrize("dtypes", [("bfloat16", "bfloat16"), ("float16", "float32"), ("float32", "bfloat16")])
def test_dtypes(dtypes: tuple[str, str], name: str) -> None:
    """The states' and the noise's; bf16 keeps 8 bits, of which diffusers rounds some more than once."""
    out, x = (normals(k).to(getattr(torch, dtype)) for k, dtype in enumerate(dtypes))
    found = []
    for scheduler in pair(name):
        scheduler.set_timesteps(4)
        generator = torch.Generator().manual_seed(1)
        found.append(scheduler.step(out, scheduler.timesteps[1], x, generator=generator, return_dict=False))
    for a, b in zip(*found, strict=True):
        assert a.dtype == b.dtype
        assert error([a], [b]) < 2**-6


@pytest.mark.parametrize("name", [LCM, TCD, CM])
def test_generators(name: str) -> None:
    """One for each sample, or torch's own."""
    assert draw_alike(*(drawn(scheduler, 4, generators=2) for scheduler in pair(name)))
    found = []
    for scheduler in pair(name):
        torch.manual_seed(11)
        found.append((states(scheduler, 4, generator=None), [torch.get_rng_state()]))
    assert draw_alike(*found)


@pytest.mark.parametrize("name", [LCM, TCD, CM])
def test_the_projects_own_noise(name: str) -> None:
    mine, _ = pair(name)
    before = torch.get_rng_state()
    found = states(mine, 4, generator=None, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert error(states(mine, 4, generator=None, seed=[3, 3]), found) == 0
    assert error(states(mine, 4, generator=None, seed=4)[:2], found[:2]) > 0.1


def test_refusals() -> None:
    mine, _ = pair(TCD)
    with pytest.raises(ValueError, match="call set_timesteps"):
        mine.step(normals(0), 999, normals(1))
    with pytest.raises(InputError, match="eta"):
        states(mine, 4, eta=1.5)


def test_of_diffusers_configurations() -> None:
    """A configuration of Stable Diffusion's DDIM makes LCM's and TCD's, as those of LoRAs do."""
    config = diffusers.DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").config
    for name in (LCM, TCD):
        mine, theirs = (type(scheduler).from_config(config) for scheduler in pair(name))
        assert dict(mine.config) == dict(theirs.config)
        assert error(states(mine, 4), states(theirs, 4)) < TOLERANCE
