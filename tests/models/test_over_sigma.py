"""Score networks over sigma: what is divided by what, and that all else is the network's own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fastdiff import checkpoint, models, schedules
from fastdiff.checkpoint import Checkpoint
from fastdiff.errors import CheckpointError, InputError
from fastdiff.models import MLP, MLPConfig, OverSigma, UNet, UNetConfig
from fastdiff.schedules import Schedule

NCSN = schedules.geometric(232, 0.01, 50.0).with_unit_input()
UNET = UNetConfig(channels=2, width=4, blocks=1, multipliers=(1,), attention=(False,), classes=3)


def perturbed(model: UNet | MLP) -> UNet | MLP:
    """A network whose every parameter, also those that start at 0, is away from it."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "schedule", [NCSN, schedules.cosine(50), schedules.karras(50), schedules.geometric(1 + 1, 0.01, 50.0)]
)
def test_output_is_the_networks_over_sigma_of_the_level(schedule: Schedule) -> None:
    """At every level, to the rounding of float32, sigma's logarithm among it: 6e-8 of up to log 80."""
    network = perturbed(MLP(MLPConfig(width=8)))
    model, count = OverSigma(network, schedule), len(schedule)
    x, t = noise(count, 2), torch.arange(count, dtype=torch.float32)
    with torch.no_grad():
        expected = network(x, t).double() / torch.from_numpy(schedule.sigma.copy())[:, None]
        torch.testing.assert_close(model(x, t).double(), expected, rtol=1e-6, atol=0)


def test_sigma_between_and_beyond_levels() -> None:
    """Geometric between the levels, as where a sampler asks between those of NCSN, and the last ones beyond."""
    model = OverSigma(MLP(MLPConfig(width=8)), NCSN)
    time, _, sigma, _ = NCSN.at_lambda(-np.log([0.011, 0.5, 17.0, 49.9]))
    np.testing.assert_allclose(model.sigma(torch.from_numpy(time)), sigma, rtol=1e-5)  # float32 times up to 231
    np.testing.assert_allclose(model.sigma(torch.tensor([-3.0, 500.0])), [0.01, 50.0], rtol=1e-6)
    alone = OverSigma(MLP(MLPConfig(width=8)), Schedule(np.ones(1), np.full(1, 0.3)))
    np.testing.assert_allclose(alone.sigma(torch.tensor([0.0, 1.0])), 0.3, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_sigma_is_not_rounded_with_the_weights(dtype: torch.dtype) -> None:
    """In bfloat16 its logarithm would be off by 2 %: it stays float32, and the output is of the network's dtype."""
    network = perturbed(MLP(MLPConfig(width=8))).to(dtype)
    model, t = OverSigma(network, NCSN).to(dtype), torch.tensor([0.0, 100.0, 231.0])
    x = noise(3, 2).to(dtype)
    np.testing.assert_allclose(model.sigma(t), NCSN.sigma[[0, 100, 231]], rtol=1e-6)
    with torch.no_grad():
        expected = network(x, t).double() / torch.from_numpy(NCSN.sigma[[0, 100, 231]])[:, None]
        found = model(x, t)
    assert found.dtype == dtype
    # One rounding to bfloat16, of 8 bits; sigma itself is float32.
    torch.testing.assert_close(found.double(), expected, rtol=2**-8 if dtype == torch.bfloat16 else 1e-6, atol=0)


def test_learned_variance_is_not_divided() -> None:
    """The channels behind the score are the v of Nichol & Dhariwal 2021, which knows no sigma."""
    config = UNetConfig(**{**vars(UNET), "learn_variance": True})
    network, x, t = perturbed(UNet(config)), noise(2, 2, 5, 5), torch.tensor([0.0, 231.0])
    with torch.no_grad():
        out, found = network(x, t), OverSigma(network, NCSN)(x, t)
    assert found.shape == (2, 4, 5, 5)
    assert torch.equal(found[:, 2:], out[:, 2:])
    torch.testing.assert_close(found[:, :2] * torch.tensor([0.01, 50.0]).view(2, 1, 1, 1), out[:, :2])


def test_labels_and_sizes_are_the_networks() -> None:
    """Classes, the null token and the samples that fit."""
    network = perturbed(UNet(UNET))
    model, x, t = OverSigma(network, NCSN), noise(2, 2, 5, 5), torch.tensor([0.0, 231.0])
    with torch.no_grad():
        zero, null = (model(x, t, torch.full((2,), label)) for label in (0, 3))
        assert torch.equal(model(x, t), null)
    assert not torch.equal(zero, null)
    assert model.unconditional({"y": torch.tensor([0, 1])})["y"].tolist() == [3, 3]
    models.check_fits(model, (2, 7, 7), 3)
    with pytest.raises(InputError, match="do not fit"):
        models.check_fits(model, (1, 7, 7), 3)


def test_description_rebuilds_the_network() -> None:
    """Through JSON, as a checkpoint keeps it; the weights are those of the network alone."""
    model = OverSigma(UNet(UNET, seed=5), NCSN)
    rebuilt = models.build(json.loads(json.dumps(models.describe(model))), seed=5)
    assert isinstance(rebuilt, OverSigma)
    assert rebuilt.config == model.config
    assert np.array_equal(rebuilt.schedule.sigma, NCSN.sigma)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), rebuilt.parameters(), strict=True))
    assert model.state_dict().keys() == {f"network.{name}" for name in model.network.state_dict()}


@pytest.mark.parametrize("over_sigma", [True, False])
def test_checkpoint_holds_it_and_the_ones_before_it(over_sigma: bool, tmp_path: Path) -> None:
    """A score network over sigma, and one without as earlier versions trained, come back as they were."""
    network = perturbed(MLP(MLPConfig(width=8)))
    model = OverSigma(network, NCSN) if over_sigma else network
    saved = Checkpoint(model, NCSN, prediction="score", shape=(2,), classes=(), clip=None, data="moons")
    checkpoint.save(tmp_path / "saved", saved)
    loaded = checkpoint.load(tmp_path / "saved").model
    assert type(loaded) is type(model)
    x, t = noise(3, 2), torch.tensor([0.0, 100.5, 231.0])
    with torch.no_grad():
        assert torch.equal(loaded(x, t), model(x, t))


def test_what_has_no_score_is_not_divided(tmp_path: Path) -> None:
    """A config that says so of a classifier, or with a schedule that is none, is refused in one line."""
    sizes = {"dimensions": 2, "width": 8, "layers": 1, "classes": 2}
    with pytest.raises(InputError, match="over_sigma is for a network whose output is a score"):
        models.build({"kind": "mlp_classifier", **sizes, "over_sigma": dict(NCSN.config)})
    with pytest.raises(InputError, match="did you mean 'geometric'"):
        models.build({"kind": "mlp", **sizes, "over_sigma": {"name": "geometrik"}})
    hand_made = OverSigma(MLP(MLPConfig(width=8)), Schedule(np.ones(2), np.array([0.1, 0.3])))
    saved = Checkpoint(hand_made, NCSN, prediction="score", shape=(2,), classes=(), clip=None, data="moons")
    checkpoint.save(tmp_path / "saved", saved)
    with pytest.raises(CheckpointError, match="no name"):
        checkpoint.load(tmp_path / "saved")
