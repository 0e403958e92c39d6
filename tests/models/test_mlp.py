"""The network for points."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastdiff import models
from fastdiff.errors import InputError
from fastdiff.models import MLP, MLPConfig


def network(seed: int = 0, **changes: Any) -> MLP:
    """A small network whose every parameter was moved, so that nothing is 0 because it started there."""
    model = MLP(MLPConfig(**{"width": 8, "layers": 2, **changes}), seed).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def times(batch: int) -> Tensor:
    return torch.linspace(0, 999, batch)


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("dimensions", [1, 2, 7])
def test_output_has_the_shape_of_the_input(batch: int, dimensions: int) -> None:
    """Points of any dimension, one or many, and samples do not see each other (to float32 rounding)."""
    model, x, t = network(dimensions=dimensions), noise(batch, dimensions), times(batch)
    with torch.no_grad():
        together = model(x, t)
        alone = torch.cat([model(x[i : i + 1], t[i : i + 1]) for i in range(batch)])
    assert together.shape == x.shape
    assert torch.allclose(alone, together, rtol=1e-5, atol=1e-6)


def test_parameters_depend_on_the_seed_alone() -> None:
    """One seed gives equal parameters, another does not, and torch's generator is left where it was."""
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, second, other = (MLP(MLPConfig(width=8, classes=2), seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)
    drawn = [name for name, value in first.items() if value.ndim > 1 and value.any()]
    assert len(drawn) > 5
    assert not any(torch.equal(first[name], other[name]) for name in drawn)


def test_output_starts_as_a_constant() -> None:
    """The last layer's weight is initialised to 0, so that an untrained network says the same of every point."""
    out = MLP(MLPConfig(width=8))(noise(6, 2), times(6))
    assert torch.equal(out, out[:1].expand(6, 2))


def test_null_token_is_no_label() -> None:
    """y = None, the number `classes`, and `unconditional` are the same; labels differ from it and from each other."""
    model, x = network(classes=2), noise(3, 2)
    with torch.no_grad():
        null, zero, one = (model(x, times(3), torch.full((3,), label)) for label in (2, 0, 1))
        assert torch.equal(model(x, times(3)), null)
    assert model.unconditional({"y": torch.tensor([0, 1, 2])})["y"].tolist() == [2, 2, 2]
    assert not torch.equal(zero, null)
    assert not torch.equal(zero, one)


@pytest.mark.parametrize("classes", [0, 2])
def test_gradients_reach_every_parameter(classes: int) -> None:
    """Away from the start no parameter is dead: each gets more than rounding errors, which are 1e-7 of the largest."""
    model = network(classes=classes)
    model(noise(3, 2), times(3), torch.tensor([0, 1, 2]) if classes else None).square().sum().backward()
    size = {name: float(p.grad.abs().max()) for name, p in model.named_parameters() if p.grad is not None}
    assert len(size) == len(list(model.parameters()))
    assert min(size.values()) > 1e-5 * max(size.values()), size


def test_bf16_autocast_stays_near_float32() -> None:
    """Autocast computes in bfloat16 (8 bits, errors near 2^-8 a layer): within 5 % of the largest output."""
    model, x = network(), noise(4, 2)
    with torch.no_grad():
        exact = model(x, times(4))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = model(x, times(4))
    assert out.dtype == torch.bfloat16
    assert 0 < (out.float() - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize("shape", [(2, 3), (2,), (2, 2, 1), (2, 0)])
def test_wrong_shape_of_x_is_refused(shape: tuple[int, ...]) -> None:
    """The error gives the shape that is needed and the one that came."""
    with pytest.raises(InputError, match=r"\[B, 2\], got") as raised:
        network()(torch.zeros(shape), times(2))
    assert str(shape) in str(raised.value)


@pytest.mark.parametrize("shape", [(), (3,), (2, 1)])
def test_wrong_shape_of_t_is_refused(shape: tuple[int, ...]) -> None:
    """One time for each sample, nothing that would broadcast or fail deep inside."""
    with pytest.raises(InputError, match="t must"):
        network()(noise(2, 2), torch.zeros(shape))


def test_network_without_classes_refuses_labels_and_guidance() -> None:
    """There is no null token: an InputError, not a KeyError from within."""
    with pytest.raises(InputError, match="no classes"):
        network()(noise(2, 2), times(2), torch.tensor([0, 0]))
    with pytest.raises(InputError):
        network().unconditional({})


@pytest.mark.parametrize(
    "wrong", [{"dimensions": 0}, {"width": 0}, {"width": 7}, {"layers": 0}, {"classes": -1}], ids=str
)
def test_wrong_config_is_refused(wrong: dict[str, int]) -> None:
    """Sizes that make no network are an InputError."""
    with pytest.raises(InputError):
        network(**wrong)


def test_description_rebuilds_the_network() -> None:
    """`describe` gives `build` all it needs."""
    model = MLP(MLPConfig(dimensions=3, width=8, layers=1, classes=2), seed=5)
    rebuilt = models.build(models.describe(model), seed=5)
    assert isinstance(rebuilt, MLP)
    assert rebuilt.config == model.config
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), rebuilt.parameters(), strict=True))
