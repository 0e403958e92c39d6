"""The networks of classifiers: logits for images of any size and for points, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastdiff import models
from fastdiff.errors import InputError

IMAGES = {"kind": "unet_classifier", "channels": 1, "width": 8, "blocks": 1, "classes": 3}
POINTS = {"kind": "mlp_classifier", "width": 8, "layers": 2, "classes": 3}
KINDS = pytest.mark.parametrize(("description", "shape"), [(IMAGES, (1, 8, 8)), (POINTS, (2,))], ids=["U-Net", "MLP"])


def network(description: dict[str, Any], seed: int = 0) -> models.Model:
    """A small network whose every parameter was moved, so that nothing is 0 because it started there."""
    model = models.build(description, seed).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def times(batch: int) -> Tensor:
    return torch.linspace(0, 999, batch)


@pytest.mark.parametrize(
    ("description", "shape"),
    [
        (IMAGES, (1, 8, 8)),
        (IMAGES, (1, 7, 5)),  # sides that do not halve
        (IMAGES, (1, 2, 3)),
        ({**IMAGES, "channels": 3, "multipliers": (1, 2, 2), "attention": (False, False, True)}, (3, 6, 4)),
        ({**IMAGES, "multipliers": (1,), "attention": (False,)}, (1, 4, 4)),
        (POINTS, (2,)),
        ({**POINTS, "dimensions": 5, "classes": 7}, (5,)),
    ],
)
def test_a_logit_for_each_class(description: dict[str, Any], shape: tuple[int, ...]) -> None:
    """One sample or many, which do not see each other (to float32 rounding), and time matters."""
    model, x, t = network(description), noise(4, *shape), times(4)
    with torch.no_grad():
        together = model(x, t)
        alone = torch.cat([model(x[i : i + 1], t[i : i + 1]) for i in range(4)])
        later = model(x, t + 100)
    assert together.shape == (4, description["classes"])
    assert torch.allclose(alone, together, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(later, together, rtol=1e-3)


@KINDS
def test_an_untrained_network_says_the_same_of_every_sample(
    description: dict[str, Any], shape: tuple[int, ...]
) -> None:
    """The last layer's weight is initialised to 0."""
    logits = models.build(description)(noise(4, *shape), times(4))
    assert torch.equal(logits, logits[:1].expand_as(logits))


@KINDS
def test_parameters_depend_on_the_seed_alone(description: dict[str, Any], shape: tuple[int, ...]) -> None:
    """And torch's generator is left where it was."""
    before = torch.get_rng_state()
    first, second, other = (models.build(description, seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@KINDS
def test_gradients_reach_every_parameter_and_the_sample(description: dict[str, Any], shape: tuple[int, ...]) -> None:
    """No part is dead: each gradient is above rounding errors, which are 1e-7 of the largest."""
    model, x = network(description), noise(4, *shape).requires_grad_()
    model(x, times(4)).logsumexp(dim=1).sum().backward()
    sizes = [float(value.grad.abs().max()) for value in (x, *model.parameters()) if value.grad is not None]
    assert len(sizes) == 1 + len(list(model.parameters()))
    assert min(sizes) > 1e-5 * max(sizes)


@KINDS
def test_description_rebuilds_the_network(description: dict[str, Any], shape: tuple[int, ...]) -> None:
    """`describe` gives `build` all it needs, and says that it is no diffusion network."""
    model = models.build(description, seed=5)
    found = models.describe(model)
    assert found["kind"] == description["kind"]
    rebuilt = models.build(found, seed=5)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), rebuilt.parameters(), strict=True))
    models.check_fits(rebuilt, shape, 3)


@KINDS
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"classes": 0}, "at least two classes, got 0"),
        ({"classes": 1}, "at least two classes, got 1"),
        ({"learn_variance": True}, "no variance to learn"),
    ],
)
def test_what_makes_no_classifier_is_refused(
    description: dict[str, Any], shape: tuple[int, ...], wrong: dict[str, Any], said: str
) -> None:
    """The config is one of diffusion networks, which have more to choose."""
    with pytest.raises(InputError, match=said):
        models.build({**description, **wrong})


@KINDS
def test_wrong_shapes_are_refused(description: dict[str, Any], shape: tuple[int, ...]) -> None:
    """The errors of the diffusion networks."""
    with pytest.raises(InputError, match="x must be"):
        network(description)(noise(2, 9, *shape), times(2))
    with pytest.raises(InputError, match="t must be"):
        network(description)(noise(2, *shape), times(3))
