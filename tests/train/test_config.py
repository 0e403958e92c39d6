"""Settings of a training run: what is allowed, and what may change when a run is resumed."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdiff import prediction, schedules
from fastdiff.errors import InputError
from fastdiff.train import TrainConfig

# Another valid value for every setting.
OTHER: dict[str, Any] = {
    "data": "moons",
    "size": 16,
    "channels": 3,
    "objective": "l_gamma",
    "weighting": "min_snr",
    "variance": "large",
    "vlb_weight": 0.01,
    "latents": "runs/vae",
    "latent_channels": 8,
    "kl_weight": 0.1,
    "corruption": 0.1,
    "probes": "gaussian",
    "times": "importance",
    "schedule": "linear",
    "T": 500,
    "sigma_min": 0.1,
    "sigma_max": 20.0,
    "prediction": "eps",
    "width": 32,
    "multipliers": (1, 2, 2),
    "blocks": 2,
    "attention": (True, True),
    "dropout": 0.2,
    "condition_dropout": 0.2,
    "steps": 7000,
    "batch": 48,
    "lr": 2e-3,
    "warmup": 100,
    "weight_decay": 0.1,
    "clip_norm": 2.0,
    "ema": 0.99,
    "precision": "bf16",
    "seed": 1,
    "save_every": 500,
    "sample_every": 500,
    "workers": 2,
    "tracker": "tensorboard",
}
# What else a setting needs to be allowed.
NEEDS: dict[str, dict[str, Any]] = {
    "objective": {"weighting": "snr"},
    "weighting": {"objective": "l_gamma"},
    "variance": {"objective": "l_vlb"},
    "vlb_weight": {"objective": "l_hybrid"},
}
FREE = {"latents", "save_every", "sample_every", "workers", "tracker"}


def test_every_setting_is_tried_here() -> None:
    """A new setting must be added to this file, with a value other than its default."""
    assert OTHER.keys() == {field.name for field in fields(TrainConfig)}
    assert all(getattr(TrainConfig(), name) != value for name, value in OTHER.items())


@pytest.mark.parametrize("name", OTHER)
def test_resuming_with_another_setting_is_refused_by_name(name: str) -> None:
    """What decides where a run goes must be the same; the error names it, what it was and what it is."""
    changed = TrainConfig(**{**NEEDS.get(name, {}), name: OTHER[name]})
    earlier = json.loads(json.dumps({**changed.to_dict(), name: TrainConfig().to_dict()[name]}))
    TrainConfig().check_same_run(json.loads(json.dumps(TrainConfig().to_dict())))
    if name in FREE:
        changed.check_same_run(earlier)
        return
    with pytest.raises(InputError, match=f"cannot resume: {name} was ") as raised:
        changed.check_same_run(earlier)
    assert repr(earlier[name]) in str(raised.value)
    assert repr(changed.to_dict()[name]) in str(raised.value)


def test_setting_that_an_earlier_version_did_not_have_was_its_default() -> None:
    """A run begun before there was `times` drew them uniformly: it goes on so, and not otherwise."""
    earlier = TrainConfig().to_dict()
    del earlier["times"]
    TrainConfig().check_same_run(earlier)
    with pytest.raises(InputError, match="cannot resume: times was 'uniform', now 'importance'"):
        TrainConfig(times="importance").check_same_run(earlier)


@settings(deadline=None, max_examples=50)
@given(lr=st.floats(1e-300, 1e300), ema=st.floats(0, 1, exclude_max=True), seed=st.integers(0, 2**64 - 1))
def test_settings_survive_json(lr: float, ema: float, seed: int) -> None:
    """Through config.json and back they are the same run, to the last bit of every number."""
    config = TrainConfig(lr=lr, ema=ema, seed=seed, multipliers=(1, 3), attention=(True, False))
    stored = json.loads(json.dumps(config.to_dict()))
    assert TrainConfig(**stored) == config
    config.check_same_run(stored)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in ("T", "steps", "batch", "save_every", "sample_every") for value in (0, -1)),
        *((name, value) for name in ("lr", "clip_norm") for value in (0.0, -1.0, float("nan"), float("inf"))),
        *((name, value) for name in ("dropout", "condition_dropout", "ema") for value in (-0.1, 1.0, float("nan"))),
        *((name, -1) for name in ("warmup", "weight_decay", "seed", "workers")),
        ("weight_decay", float("nan")),
        ("weight_decay", float("inf")),
    ],
)
def test_number_out_of_range_is_refused_by_name(name: str, value: float) -> None:
    """Each number has its range; NaN is in none."""
    with pytest.raises(InputError, match=f"{name} must be .*, got {value}"):
        TrainConfig(**{name: value})


@pytest.mark.parametrize(
    ("name", "value", "nearest"),
    [
        ("schedule", "cosin", "cosine"),
        ("probes", "gausian", "gaussian"),
        ("prediction", "esp", "eps"),
        ("precision", "fp16", "bf16"),
        ("tracker", "tensorbord", "tensorboard"),
    ],
)
def test_unknown_name_is_refused_with_the_nearest(name: str, value: str, nearest: str) -> None:
    """The error suggests the name that was meant."""
    with pytest.raises(InputError, match=f"{name} '{value}': did you mean '{nearest}'"):
        TrainConfig(**{name: value})


def test_every_schedule_and_prediction_is_allowed() -> None:
    """The names are those of the library, whatever is added to it."""
    for name in schedules.names():
        TrainConfig(schedule=name)
    for name in prediction.names():
        TrainConfig(prediction=name)
