"""The U-Net: any image size, exact starts, seeds, conditions, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastdiff import models, samplers, schedules
from fastdiff.errors import InputError
from fastdiff.models import UNet, UNetConfig
from fastdiff.models.unet import Attention
from fastdiff.sample import sample


def config(**changes: Any) -> UNetConfig:
    """A tiny network of two levels, with attention in the lower one."""
    return UNetConfig(**{"channels": 1, "width": 8, "blocks": 1, **changes})


def network(seed: int = 0, **changes: Any) -> UNet:
    """A tiny network whose every parameter was moved, so that nothing is 0 because it started there."""
    model = UNet(config(**changes), seed).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def times(batch: int) -> Tensor:
    return torch.linspace(0, 999, batch)


# --- shapes


@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("size", [(7, 9), (1, 1), (5, 8), (1, 6), (2, 3)], ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("batch", [1, 2])
def test_output_has_the_shape_of_any_input(levels: int, channels: int, size: tuple[int, int], batch: int) -> None:
    """Odd sides, single pixels and one sample: halving rounds up, and each level comes back to its own size."""
    multipliers, attention = (1, 2, 2)[:levels], (False, True, True)[:levels]
    model = network(channels=channels, multipliers=multipliers, attention=attention)
    x = noise(batch, channels, *size)
    with torch.no_grad():
        out = model(x, times(batch))
    assert out.shape == x.shape
    assert out.dtype == torch.float32
    assert out.isfinite().all()
    assert out.abs().max() > 0


@pytest.mark.parametrize("channels", [1, 3])
def test_memory_layout_of_the_input_does_not_matter(channels: int) -> None:
    """A channels_last or strided input gives the same contiguous NCHW output, and is not changed."""
    model, x = network(channels=channels), noise(2, channels, 6, 5)
    strided = noise(2, channels, 6, 10)[..., ::2].copy_(x)
    with torch.no_grad():
        expected = model(x, times(2))
        for laid_out in (x.to(memory_format=torch.channels_last), strided):
            out = model(laid_out, times(2))
            assert out.is_contiguous()
            assert torch.equal(out, expected)
            assert torch.equal(laid_out, x)


@pytest.mark.parametrize("channels", [1, 3])
def test_learned_variance_doubles_the_channels(channels: int) -> None:
    """The output splits into two halves, each of the shape of x, as `ddpm(variance="learned_range")` reads it."""
    model = network(channels=channels, learn_variance=True)
    with torch.no_grad():
        assert model(noise(2, channels, 5, 4), times(2)).shape == (2, 2 * channels, 5, 4)
    plan = samplers.ddpm(schedules.linear(10), steps=3, variance="learned_range")
    assert sample(model, plan, (2, channels, 5, 4)).shape == (2, channels, 5, 4)


# --- parameters


def test_parameters_depend_on_the_seed_alone() -> None:
    """One seed gives equal parameters whatever torch's generator did before, which itself is left where it was."""
    torch.manual_seed(1)
    first = UNet(config(classes=2), seed=3).state_dict()
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = UNet(config(classes=2), seed=3).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = UNet(config(classes=2), seed=4).state_dict()
    drawn = [name for name, value in first.items() if value.ndim > 1 and value.any()]
    assert len(drawn) > 10
    assert not any(torch.equal(first[name], other[name]) for name in drawn)


@pytest.mark.parametrize("classes", [0, 3])
def test_output_starts_at_exactly_zero(classes: int) -> None:
    """The last convolution is initialised to 0, so an untrained network predicts 0 everywhere."""
    model = UNet(config(classes=classes))
    assert not model(noise(2, 1, 6, 6), times(2), torch.tensor([0, 1]) if classes else None).any()


@pytest.mark.parametrize("width", [8, 32, 64])
def test_gradients_reach_every_parameter(width: int) -> None:
    """Away from the zero-initialised start no parameter is dead: each gets more than rounding errors.

    A gradient that is 0 in exact arithmetic measured up to 1e-7 of the largest one here, live ones 1e-3 and more.
    """
    model = network(width=width, classes=2, multipliers=(1, 2), attention=(True, True))
    out = model(noise(3, 1, 6, 5), times(3), torch.tensor([0, 1, 2]))
    (out * noise(*out.shape, seed=1)).sum().backward()
    size = {name: float(p.grad.abs().max()) for name, p in model.named_parameters() if p.grad is not None}
    assert len(size) == len(list(model.parameters()))
    largest = max(size.values())
    dead = {name: value / largest for name, value in size.items() if not value > 1e-5 * largest}
    assert not dead


# --- conditions


def test_null_token_is_no_label() -> None:
    """y = None, the number `classes`, and `unconditional` are the same; labels differ from it and from each other."""
    model, x = network(classes=2), noise(3, 1, 5, 5)
    with torch.no_grad():
        null = model(x, times(3), torch.full((3,), 2))
        zero, one = (model(x, times(3), torch.full((3,), label)) for label in (0, 1))
        assert torch.equal(model(x, times(3)), null)
        cond = {"y": torch.tensor([0, 1, 2]), "mask": "kept"}
        uncond = model.unconditional(cond)
    assert uncond["y"].tolist() == [2, 2, 2]
    assert uncond["y"].dtype == torch.int64
    assert uncond["mask"] == "kept"
    assert cond["y"].tolist() == [0, 1, 2]
    assert not torch.equal(zero, null)
    assert not torch.equal(zero, one)


def test_time_matters() -> None:
    """Two times give two outputs, and neighbouring times of a schedule are told apart."""
    model, x = network(), noise(1, 1, 5, 5)
    with torch.no_grad():
        outputs = [model(x, torch.tensor([t])) for t in (0.0, 1.0, 999.0)]
    assert not torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


def test_network_without_classes_refuses_guidance() -> None:
    """There is no null token to guide away from: an InputError, not a KeyError from within."""
    with pytest.raises(InputError):
        sample(network(), samplers.ddim(schedules.cosine(4), steps=2), (1, 1, 4, 4), guidance=2.0)
    with pytest.raises(InputError, match="no classes"):
        network()(noise(2, 1, 4, 4), times(2), torch.tensor([0, 0]))


def _relative(out: Tensor, expected: Tensor) -> float:
    return float((out - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(("dtype", "smallest", "bound"), [(torch.float32, 4, 2e-5), (torch.float64, 1, 1e-10)])
@settings(deadline=None, max_examples=10)
@given(data=st.data())
def test_sample_does_not_see_its_batch(data: st.DataObject, dtype: torch.dtype, smallest: int, bound: float) -> None:
    """A sample alone and in a batch agree to rounding, measured at worst 2e-6 (float32) and 2e-13 of the output.

    Below 4x4 a norm over two nearly equal values can magnify rounding a hundredfold: there float64 alone is asked.
    """
    batch = data.draw(st.integers(2, 5))
    height, width = data.draw(st.integers(smallest, 9)), data.draw(st.integers(smallest, 9))
    model, x, t = network(classes=3).to(dtype), noise(batch, 1, height, width).to(dtype), times(batch)
    y = torch.arange(batch) % 4
    with torch.no_grad():
        together = model(x, t, y)
        alone = torch.cat([model(x[i : i + 1], t[i : i + 1], y[i : i + 1]) for i in range(batch)])
    assert _relative(alone, together) < bound


def test_attention_mixes_all_pixels() -> None:
    """With one level and 1x1 kernels nothing else would carry a far pixel's change to the other corner."""
    attention = Attention(8, head_width=8).eval()
    torch.nn.init.eye_(attention.out.weight)
    x = noise(1, 8, 6, 6)
    moved = x.clone()
    moved[0, :, 5, 5] += 1 - 2 * (torch.arange(8) % 2)
    change = attention(moved) - attention(x)
    assert change[0, :, 0, 0].abs().max() > 1e-4


@pytest.mark.parametrize(("channels", "head_width", "heads"), [(8, 64, 1), (64, 64, 1), (128, 64, 2), (16, 4, 4)])
def test_attention_heads(channels: int, head_width: int, heads: int) -> None:
    """Heads have the width asked for; fewer channels than that are a single head."""
    attention = Attention(channels, head_width)
    assert attention.heads == heads
    assert attention(noise(2, channels, 3, 4)).shape == (2, channels, 3, 4)


def test_attention_is_softmax_of_scaled_products() -> None:
    """One head, written out: softmax(q k^T / sqrt(d)) v, to float32 rounding of sums of 8 terms."""
    attention = Attention(8, head_width=64).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
        x = noise(1, 8, 3, 2)
        pixels = attention.norm(x)[0].flatten(1).T
        q, k, v = (pixels @ attention.qkv.weight.T + attention.qkv.bias).split(8, dim=1)
        mixed = torch.softmax(q @ k.T / 8**0.5, dim=1) @ v
        expected = x[0].flatten(1).T + mixed @ attention.out.weight.T + attention.out.bias
        out = attention(x)[0].flatten(1).T
    assert torch.allclose(out, expected, rtol=1e-5, atol=1e-5)


# --- precision and modes


def test_bf16_autocast_stays_near_float32() -> None:
    """Autocast computes in bfloat16 (8 bits, errors near 2^-8 a layer): measured 2 % of the largest output."""
    model, x = network(classes=2), noise(2, 1, 8, 8)
    with torch.no_grad():
        exact = model(x, times(2), torch.tensor([0, 1]))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = model(x, times(2), torch.tensor([0, 1]))
    assert out.dtype == torch.bfloat16
    assert 0 < _relative(out.float(), exact) < 0.05


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_network_runs_in_other_dtypes(dtype: torch.dtype) -> None:
    """Converted as a whole, it takes that dtype and float32 times, and gives that dtype."""
    model, x = network(classes=2), noise(2, 1, 5, 5)
    with torch.no_grad():
        exact = model(x, times(2), torch.tensor([0, 1]))
        out = model.to(dtype)(x.to(dtype), times(2), torch.tensor([0, 1]))
    assert out.dtype == dtype
    # Measured 0.013 (8 bits a number), 0.002 (11 bits) and, float32's own rounding, 5e-7.
    bound = {torch.bfloat16: 0.05, torch.float16: 0.008, torch.float64: 1e-5}[dtype]
    assert _relative(out.to(exact.dtype), exact) < bound


def test_dropout_acts_in_training_alone() -> None:
    """Two evaluations are equal; two training passes are not."""
    model, x = network(dropout=0.5), noise(2, 1, 5, 5)
    with torch.no_grad():
        assert torch.equal(model(x, times(2)), model(x, times(2)))
        model.train()
        with torch.random.fork_rng(devices=[]):
            assert not torch.equal(model(x, times(2)), model(x, times(2)))


# --- refusals


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 1, 8), (1, 8, 8), (2, 1, 8, 8, 8), (2,), (2, 0, 8, 8)])
def test_wrong_shape_of_x_is_refused(shape: tuple[int, ...]) -> None:
    """The error gives the shape that is needed and the one that came."""
    with pytest.raises(InputError, match=r"\[B, 1, H, W\], got") as raised:
        network()(torch.zeros(shape), times(2))
    assert str(tuple(shape)) in str(raised.value)


@pytest.mark.parametrize("shape", [(), (3,), (2, 1)])
def test_wrong_shape_of_t_is_refused(shape: tuple[int, ...]) -> None:
    """One time for each sample, nothing that would broadcast or fail deep inside."""
    with pytest.raises(InputError, match="t must"):
        network()(noise(2, 1, 4, 4), torch.zeros(shape))


@pytest.mark.parametrize(
    "wrong",
    [
        {"multipliers": (1, 2, 3)},
        {"multipliers": (), "attention": ()},
        {"multipliers": (1, 0)},
        {"channels": 0},
        {"width": 0},
        {"width": 7},
        {"blocks": 0},
        {"head_width": 0},
        {"classes": -1},
        {"dropout": -0.1},
        {"dropout": 1.5},
        {"width": 6, "multipliers": (1, 3), "head_width": 4},
    ],
    ids=str,
)
def test_wrong_config_is_refused(wrong: dict[str, Any]) -> None:
    """Sizes that make no network are an InputError before anything is allocated."""
    with pytest.raises(InputError):
        UNet(config(**wrong))


def test_description_rebuilds_the_network() -> None:
    """`describe` is JSON's types and gives `build` all it needs; lists serve for tuples."""
    model = UNet(config(channels=3, classes=4, head_width=4, dropout=0.1, learn_variance=True), seed=5)
    description = models.describe(model)
    assert description["kind"] == "unet"
    rebuilt = models.build({**description, "multipliers": [1, 2], "attention": [False, True]}, seed=5)
    assert isinstance(rebuilt, UNet)
    assert rebuilt.config == model.config
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), rebuilt.parameters(), strict=True))


@pytest.mark.parametrize(
    "description", [{}, {"kind": "unett"}, {"kind": "unet", "depth": 3}, {"kind": ["unet"]}], ids=str
)
def test_unknown_description_is_refused(description: dict[str, Any]) -> None:
    """An unknown network or size is named in the error."""
    with pytest.raises(InputError):
        models.build(description)
