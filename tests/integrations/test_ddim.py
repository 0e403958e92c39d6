"""DDIM's schedulers against diffusers, every state of whole loops, with the noise of one generator."""

from __future__ import annotations

from itertools import cycle, product
from typing import Any

import pytest
import torch
from torch import Tensor

import fastdiff.integrations.diffusers as ours
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
OPTIONS: list[dict[str, Any]] = [
    {},
    {"clip_sample": False},
    {"clip_sample_range": 0.7, "set_alpha_to_one": False},
    {"thresholding": True, "sample_max_value": 2.0, "dynamic_thresholding_ratio": 0.8},
    {"thresholding": True, "sample_max_value": 0.5},
    {"rescale_betas_zero_snr": True},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"steps_offset": 1, "beta_schedule": "scaled_linear"},
]
# eta, whether eps follows the clip, steps, and the row to begin with.
LOOPS = [(0.0, False, 7, 0), (0.5, True, 10, 3), (1.0, False, 21, 0), (0.2, True, 33, 5), (0.0, True, 1, 0)]
# Of float64 states; beside pure noise diffusers' sqrt(1 - abar' - s^2) is the root of what is left of two ones.
EXACT, BESIDE_PURE_NOISE = 1e-11, 1e-7


def configs(kind: str) -> list[dict[str, Any]]:
    return [
        {"prediction_type": kind, "timestep_spacing": spacing, **options}
        for spacing, options in product(SPACINGS, OPTIONS)
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["DDIMScheduler", "DDIMParallelScheduler"])
def test_in_float64(name: str, kind: str) -> None:
    loops = cycle(LOOPS)
    for config in configs(kind):
        mine, theirs = pair(name, **config)
        eta, rederive, steps, first = next(loops)
        options = {"eta": eta, "use_clipped_model_output": rederive, "first": first, "dtype": torch.float64}
        found = error(states(mine, steps, **options), states(with_exact_levels(theirs), steps, **options))
        assert found < (BESIDE_PURE_NOISE if config.get("rescale_betas_zero_snr") else EXACT), (config, options)


@pytest.mark.parametrize("kind", KINDS)
def test_in_float32(kind: str) -> None:
    """But for x0 doubled in each step, where loops make 1e-4 of rounding, on both sides: see float64's for that."""
    counts, etas = cycle([5, 8, 10, 16, 25, 50]), cycle([0.0, 0.3, 0.0, 0.8, 0.6])
    for config in configs(kind):
        if config.get("sample_max_value") == 0.5:
            continue
        mine, theirs = pair("DDIMScheduler", **config)
        steps, eta = next(counts), next(etas)
        assert error(states(mine, steps, eta=eta), states(theirs, steps, eta=eta)) < TOLERANCE, (config, steps, eta)


def test_pure_noise_where_diffusers_float32_has_no_root() -> None:
    """Its own arithmetic in float64 has one: it is rounding that makes 1 - abar' - s^2 negative."""
    mine, theirs = pair("DDIMScheduler", timestep_spacing="trailing", rescale_betas_zero_snr=True)
    assert states(theirs, 33, eta=1.0)[0].isnan().any()
    exact = states(with_exact_levels(theirs), 33, model=_in_float32, eta=1.0, dtype=torch.float64)
    assert error(states(mine, 33, eta=1.0), exact) < TOLERANCE


def _in_float32(x: Tensor, t: Tensor | float) -> Tensor:
    return network(x.float(), t)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_inverse(spacing: str, kind: str) -> None:
    """From clean data on, but for predictions of x0, of which nothing is known there."""
    loops = cycle([(5, 0), (10, 4), (33, 0), (50, 20)])
    for options in [option for option in OPTIONS if "thresholding" not in option]:
        alpha = {"set_alpha_to_one": False} if kind == "sample" else {}
        config = {"prediction_type": kind, "timestep_spacing": spacing, **options, **alpha}
        mine, theirs = pair("DDIMInverseScheduler", **config)
        steps, first = next(loops)
        assert error(states(mine, steps, first=first), states(theirs, steps, first=first)) < TOLERANCE, config
        found = states(mine, steps, dtype=torch.float64)
        assert error(found, states(with_exact_levels(theirs), steps, dtype=torch.float64)) < EXACT, config


def test_inverse_of_what_it_does_not_look_at() -> None:
    """A configuration of DDIM's may have thresholding, which diffusers' inverse leaves out."""
    config = ours.DDIMScheduler(thresholding=True, sample_max_value=1.5).config
    thresholded = ours.DDIMInverseScheduler.from_config(config)
    assert error(states(thresholded, 5), states(ours.DDIMInverseScheduler(), 5)) == 0


def test_inverse_refuses_x0_of_clean_data() -> None:
    """There diffusers divides by 0."""
    mine, theirs = pair("DDIMInverseScheduler", prediction_type="sample")
    assert not states(theirs, 5)[-1].isfinite().all()
    with pytest.raises(InputError, match="set_alpha_to_one=False"):
        states(mine, 5)


@pytest.mark.parametrize("config", [{}, OPTIONS[2], OPTIONS[3], {"steps_offset": 1, "clip_sample": False}])
def test_batch_of_timesteps(config: dict[str, Any]) -> None:
    """Each sample from a timestep of its own; diffusers ends in clean data there, whatever the configuration."""
    timesteps, x = torch.tensor([981, 3, 500, 0, 21]), normals(1, (5, *SHAPE[1:]))
    for kind, rederive in product(KINDS, [False, True]):
        mine, theirs = pair("DDIMParallelScheduler", prediction_type=kind, **config)
        for scheduler in (mine, theirs):
            scheduler.set_timesteps(10)
        given = network(x, 300), timesteps, x
        found = mine.batch_step_no_noise(*given, use_clipped_model_output=rederive)
        assert error([found], [theirs.batch_step_no_noise(*given, use_clipped_model_output=rederive)]) < TOLERANCE
        half = mine.batch_step_no_noise(given[0].half(), timesteps, x.half())
        assert half.dtype == theirs.batch_step_no_noise(given[0].half(), timesteps, x.half()).dtype
        alone = mine.step(given[0][2:3], 500, x[2:3], 0.0, rederive).prev_sample
        assert torch.equal(found[2:3], alone) or config.get("thresholding")
    with pytest.raises(InputError, match="eta"):
        mine.batch_step_no_noise(*given, eta=0.5)


def test_outputs() -> None:
    for kind, name in product(KINDS, ["DDIMScheduler", "DDIMParallelScheduler", "DDIMInverseScheduler"]):
        mine, theirs = pair(name, prediction_type=kind, set_alpha_to_one=False)
        for scheduler in (mine, theirs):
            scheduler.set_timesteps(10)
        given = normals(1), theirs.timesteps[4], normals(2)
        found, expected = mine.step(*given), theirs.step(*given)
        assert type(found).__name__ == type(expected).__name__
        assert error([found.pred_original_sample], [expected.pred_original_sample]) < TOLERANCE
        assert error(list(mine.step(*given, return_dict=False)), list(found.to_tuple())) == 0


@pytest.mark.parametrize("dtypes", [("bfloat16", "bfloat16"), ("float16", "float32"), ("float32", "bfloat16")])
def test_dtypes(dtypes: tuple[str, str]) -> None:
    """The state's and x0's; bf16 keeps 8 bits, of which diffusers rounds some more than once."""
    mine, theirs = pair("DDIMScheduler", clip_sample=False)
    out, x = (normals(k).to(getattr(torch, dtype)) for k, dtype in enumerate(dtypes))
    for scheduler in (mine, theirs):
        scheduler.set_timesteps(10)
    for a, b in zip(*(s.step(out, 500, x, return_dict=False) for s in (mine, theirs)), strict=True):
        assert a.dtype == b.dtype
        assert error([a], [b]) < 2**-6


@pytest.mark.parametrize("eta", [0.0, 0.7])
@pytest.mark.parametrize("generators", [1, 2])
def test_generators_end_alike(generators: int, eta: float) -> None:
    """With eta the last step, which adds no noise, draws some too."""
    mine, theirs = pair("DDIMScheduler")
    for steps in (1, 6):
        assert draw_alike(*(drawn(scheduler, steps, generators, eta=eta) for scheduler in (mine, theirs)))


def test_noise_that_is_given() -> None:
    mine, theirs = pair("DDIMScheduler")
    given = {"eta": 0.9, "generator": None, "variance_noise": normals(3)}
    assert error(states(mine, 6, **given), states(theirs, 6, **given)) < TOLERANCE
    with pytest.raises(ValueError, match="variance_noise"):
        states(mine, 6, eta=0.9, variance_noise=normals(3))


def test_the_projects_own_noise() -> None:
    """With a seed no generator moves, and a sample's noise does not depend on the batch."""
    mine, _ = pair("DDIMScheduler")
    before = torch.get_rng_state()
    options: dict[str, Any] = {"eta": 1.0, "generator": None}
    found = states(mine, 6, seed=3, **options)
    assert torch.equal(torch.get_rng_state(), before)
    assert error(states(mine, 6, seed=4, **options), found) > 0.1
    mine.seed = 3
    assert error(states(mine, 6, **options), found) == 0


def test_any_timestep_in_any_order() -> None:
    """Also those that were not set, and however the number comes; what was asked before leaves nothing behind."""
    mine, theirs = pair("DDIMScheduler")
    for scheduler in (mine, theirs):
        scheduler.set_timesteps(10)
    x = normals(1)
    for time in (500, 17, 0, 900, torch.tensor(17), torch.tensor([600]), torch.tensor(3, dtype=torch.int32), 999):
        out = network(x, time)
        assert error([mine.step(out, time, x).prev_sample], [theirs.step(out, int(time), x).prev_sample]) < TOLERANCE
    assert not mine._runs.shown[0].states


@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler", "LCMScheduler", "PNDMScheduler", "TCDScheduler"])
def test_levels_are_known_where_diffusers_has_moved_them(name: str) -> None:
    """`add_noise` puts them on the samples' device, here one that nothing can be read from."""
    mine, _ = pair(name)
    expected = states(mine, 5)
    nowhere = normals(0).to("meta")
    mine.add_noise(nowhere, nowhere, torch.tensor([10, 20]))
    assert mine.alphas_cumprod.is_meta
    assert error(states(mine, 5), expected) == 0


def test_needs_set_timesteps() -> None:
    for name in ("DDIMScheduler", "DDIMInverseScheduler"):
        mine, _ = pair(name)
        with pytest.raises(ValueError, match="call set_timesteps"):
            mine.step(normals(0), 5, normals(1))
