"""Autoencoders: shapes, latents and their noise, scaling, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

import fastdiff as fd
from fastdiff import checkpoint as checkpoints
from fastdiff.errors import CheckpointError, InputError
from fastdiff.latents import Autoencoder, Posterior, kl_to_standard_normal
from fastdiff.models import MLP, ConvAutoencoder, ConvAutoencoderConfig, MLPConfig, build, describe

SIZES = {"channels": 1, "width": 8, "blocks": 1, "latent_channels": 3}


def network(seed: int = 0, **changes: object) -> ConvAutoencoder:
    return ConvAutoencoder(ConvAutoencoderConfig(**{**SIZES, **changes}), seed).eval()  # type: ignore[arg-type]


def autoencoder(shape: tuple[int, ...] = (1, 8, 8), **changes: object) -> Autoencoder:
    return Autoencoder(network(**changes), shape, "digits")


def images(batch: int, *shape: int) -> Tensor:
    return fd.noise.normal((batch, *shape), seed=7)


# --- the network


@pytest.mark.parametrize("variational", [True, False])
@pytest.mark.parametrize(
    ("multipliers", "shape", "latent"),
    [
        ((1,), (1, 5, 4), (3, 5, 4)),  # one level: no downsampling
        ((1, 2), (1, 8, 8), (3, 4, 4)),
        ((1, 2), (1, 7, 9), (3, 4, 5)),  # odd sides: up in the encoder, cut in the decoder
        ((1, 2, 2), (1, 9, 6), (3, 3, 2)),
        ((1, 1, 2), (1, 1, 1), (3, 1, 1)),  # nothing left to halve
    ],
)
def test_latent_and_decoded_shapes(
    multipliers: tuple[int, ...], shape: tuple[int, ...], latent: tuple[int, ...], variational: bool
) -> None:
    """Each level but the first halves the sides, rounding up, and what is decoded has the shape that was encoded."""
    attention = (False,) * len(multipliers)
    one = autoencoder(shape, multipliers=multipliers, attention=attention, variational=variational)
    x = images(2, *shape)
    assert one.latent_shape == latent
    assert one.encode(x).shape == (2, *latent)
    assert one.decode(one.encode(x)).shape == x.shape
    decoded, posterior = one.model(x)
    assert decoded.shape == x.shape
    assert posterior.mean.shape == (2, *latent)
    assert (posterior.log_variance is None) is not variational


def test_parameters_follow_the_seed_and_the_description() -> None:
    """One seed gives one network, another seed another; `build` makes it again from what `describe` says."""
    x = images(2, 1, 8, 8)
    first = network(seed=1)(x)[0]
    assert torch.equal(build(describe(network()), seed=1)(x)[0], first)  # type: ignore[arg-type]
    assert not torch.equal(network(seed=2)(x)[0], first)


def test_every_parameter_gets_a_gradient() -> None:
    """Nothing in the network is cut off from the loss."""
    model = network(attention=(True, True))
    decoded, posterior = model(images(2, 1, 8, 8), lambda shape: torch.ones(shape))
    (decoded.square().sum() + kl_to_standard_normal(*posterior).sum()).backward()
    # Attention and the second convolutions of blocks start at zero: behind them gradients start at zero too.
    assert all(parameter.grad is not None for parameter in model.parameters())


# --- posterior and KL

NUMBERS = st.floats(-3, 3, width=32)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=6))
def test_kl_is_that_of_torch(values: list[tuple[float, float]]) -> None:
    """The closed form is torch.distributions' KL of independent Gaussians, in float64 to its rounding."""
    mean, log_variance = torch.tensor(values, dtype=torch.float64).T[:, None]
    ours = kl_to_standard_normal(mean, log_variance)
    posterior = Independent(Normal(mean, (log_variance / 2).exp()), 1)
    prior = Independent(Normal(torch.zeros_like(mean), torch.ones_like(mean)), 1)
    torch.testing.assert_close(ours, kl_divergence(posterior, prior), rtol=1e-12, atol=1e-12)


def test_kl_keeps_its_digits_near_the_prior() -> None:
    """For a log-variance d, KL is d^2 / 4 + O(d^3): float32 still has it where `exp(d) - 1 - d` would have none."""
    d = torch.full((1, 1), 1e-3)
    ours = kl_to_standard_normal(torch.zeros(1, 1), d)
    exact = kl_to_standard_normal(torch.zeros(1, 1).double(), d.double())
    # expm1(d) - d cancels 11 of 24 bits: 2^-24 * 1e3 relative.
    torch.testing.assert_close(ours.double(), exact, rtol=2e-4, atol=0)


def test_draws_have_the_posteriors_moments() -> None:
    """Mean and standard deviation of 100,000 draws are those that the posterior says, to five standard errors."""
    posterior = Posterior(torch.full((1, 100_000), 1.5), torch.full((1, 100_000), -1.0))
    z = posterior.draw(lambda shape: fd.noise.normal(shape, seed=3)).double()
    deviation = 0.6065306597126334  # exp(-1 / 2)
    assert abs(float(z.mean()) - 1.5) < 5 * deviation / 100_000**0.5
    assert abs(float(z.std()) - deviation) < 5 * deviation / 200_000**0.5
    assert float(posterior.variance[0, 0]) == pytest.approx(deviation**2, rel=1e-6)


def test_elbo_in_closed_form_is_its_monte_carlo() -> None:
    """For a linear decoder the whole bound has a closed form, which the mean over drawn latents agrees with.

    E |x - W z - b|^2 = |x - W mean - b|^2 + tr(W diag(v) W^T), and the Monte-Carlo KL is E log q(z) - log p(z).
    """
    generator = torch.Generator().manual_seed(0)
    x, b = (torch.randn(5, dtype=torch.float64, generator=generator) for _ in range(2))
    W = torch.randn(5, 3, dtype=torch.float64, generator=generator)
    mean, log_variance = torch.randn(2, 1, 3, dtype=torch.float64, generator=generator)
    spread = (log_variance / 2).exp()
    closed = (((x - b - mean @ W.T) ** 2).sum() + (W**2 * spread**2).sum()) / 2 + kl_to_standard_normal(
        mean, log_variance
    )[0]

    count = 200_000
    z = Posterior(mean, log_variance).draw(lambda _: torch.randn(count, 3, dtype=torch.float64, generator=generator))
    of_draw = ((x - b - z @ W.T) ** 2).sum(dim=1) / 2
    of_draw += (Normal(mean, spread).log_prob(z) - Normal(0.0, 1.0).log_prob(z)).sum(dim=1)
    assert abs(float(of_draw.mean() - closed)) < 5 * float(of_draw.std()) / count**0.5  # five standard errors


# --- latents


def test_latents_are_functions_of_seed_and_index() -> None:
    """A sample's latent does not depend on its batch, and differs with seed, index and step; its mean with none."""
    one, x = autoencoder(), images(4, 1, 8, 8)
    z = one.encode(x, seed=5)
    part = one.encode(x[2:], seed=5, index=[2, 3])
    torch.testing.assert_close(z[2:], part, rtol=1e-5, atol=1e-5)  # convolutions of another batch round otherwise
    same = x[:1].expand(2, -1, -1, -1)
    for other in (
        one.encode(same, seed=[1, 2], index=[0, 0]),
        one.encode(same),
        one.encode(same, index=[0, 0], step=[0, 1]),
    ):
        assert (other[0] - other[1]).abs().max() > 0.1
    assert torch.equal(one.encode(x, seed=1, sample=False), one.encode(x, seed=2, sample=False))
    point = autoencoder(variational=False)
    assert torch.equal(point.encode(x, seed=1), point.encode(x, seed=2, sample=False))


@pytest.mark.parametrize("variational", [True, False])
def test_standardised_latents_have_mean_0_and_variance_1(variational: bool) -> None:
    """Over the samples that were given; batches of unequal sizes weigh as they should."""
    plain, x = autoencoder(variational=variational), 3 * images(500, 1, 8, 8) + 1
    one = plain.standardised(x.split(192))
    z = one.encode(x).double()
    # 24,000 values, which within a latent are not independent: ten times their standard errors.
    assert abs(float(z.mean())) < 0.06
    assert abs(float(z.var()) - 1) < 0.1
    whole = plain.standardised([x])
    assert (whole.scale, whole.shift) == pytest.approx((one.scale, one.shift), rel=1e-5)
    assert one.scale != 1
    assert one.shift != 0


@settings(deadline=None, max_examples=20)
@given(scale=st.floats(0.01, 100), shift=st.floats(-10, 10))
def test_decoding_undoes_scale_and_shift(scale: float, shift: float) -> None:
    """Whatever they are, what is decoded is the network's own reconstruction."""
    plain, x = autoencoder(), images(2, 1, 8, 8)
    one = Autoencoder(plain.model, plain.shape, plain.data, scale, shift)
    z = one.encode(x, sample=False)
    raw = plain.encode(x, sample=False)
    torch.testing.assert_close(z, (raw - shift) * scale, rtol=1e-5, atol=1e-5 * scale)
    # A shift of 10 costs float32 six bits, which the decoder passes on.
    torch.testing.assert_close(one.decode(z), plain.decode(raw), rtol=1e-3, atol=1e-4)


def test_many_latents_are_decoded_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network never sees more than CHUNK at once, and nothing is lost between the parts."""
    from fastdiff.latents import autoencoder as module

    one, z, seen = autoencoder(), images(7, 3, 4, 4), []
    together = one.decode(z)
    decode = ConvAutoencoder.decode
    monkeypatch.setattr(module, "CHUNK", 3)
    monkeypatch.setattr(ConvAutoencoder, "decode", lambda self, part: (seen.append(len(part)), decode(self, part))[1])
    torch.testing.assert_close(one.decode(z), together, rtol=1e-5, atol=1e-5)  # other batches round otherwise
    assert seen == [3, 3, 1]
    assert one.decode(z[:0]).shape == (0, 1, 8, 8)


# --- on disk and in the sampling call


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    """What is loaded gives the same latents and images bit for bit, and has the same digest."""
    one = Autoencoder(network(), (1, 7, 8), "digits", scale=1.25, shift=-0.5)
    checkpoints.save(tmp_path / "saved", one)
    loaded = fd.latents.load(tmp_path / "saved")
    x = images(2, 1, 7, 8)
    assert torch.equal(loaded.encode(x, seed=1), one.encode(x, seed=1))
    assert torch.equal(loaded.decode(one.encode(x)), one.decode(one.encode(x)))
    assert loaded.config() == one.config()
    assert loaded.digest == one.digest
    assert not loaded.model.training


def test_digest_tells_autoencoders_apart() -> None:
    """It changes with a weight, with the scale and with the shape."""
    one = autoencoder()
    others = [autoencoder(seed=1), Autoencoder(one.model, (1, 8, 8), "digits", scale=2.0), autoencoder((1, 8, 6))]
    assert len({one.digest, *(other.digest for other in others)}) == 4
    assert autoencoder().digest == one.digest


def latent_checkpoint() -> fd.Checkpoint:
    one = Autoencoder(network(), (1, 7, 8), "digits", scale=1.25, shift=-0.5)
    model = fd.models.build({"kind": "unet", "channels": 3, "width": 8, "classes": 2, "blocks": 1})
    return fd.Checkpoint(model.eval(), fd.schedules.cosine(10), "v", (3, 4, 4), ("a", "b"), None, "digits", one)


def test_latent_checkpoint_is_self_contained_and_samples_are_decoded(tmp_path: Path) -> None:
    """One folder holds both networks; `sample(decode=...)` is the decoder after the sampler."""
    before = latent_checkpoint()
    checkpoints.save(tmp_path / "saved", before)
    after = fd.load(tmp_path / "saved")
    assert after.latents is not None
    assert before.latents is not None
    assert after.latents.digest == before.latents.digest
    assert "clip" not in after.plan("ddim", steps=3).columns
    cond = {"y": torch.tensor([0, 1])}

    def samples(checkpoint: fd.Checkpoint, decoded: bool) -> Tensor:
        plan, decode = checkpoint.plan("ddim", steps=3), checkpoint.decode if decoded else None
        return fd.sample(checkpoint.model, plan, (2, *checkpoint.shape), cond=cond, guidance=2.0, decode=decode)

    assert samples(after, True).shape == (2, 1, 7, 8)
    assert torch.equal(samples(after, True), before.latents.decode(samples(before, False)))
    assert fd.load("digits").latents is None
    assert fd.load("digits").decode is None


@pytest.mark.parametrize("file", [checkpoints.WEIGHTS, checkpoints.LATENTS])
@pytest.mark.parametrize("damage", ["missing", "truncated", "foreign"])
def test_damaged_latent_checkpoint_is_refused(tmp_path: Path, file: str, damage: str) -> None:
    """The error names the file that is wrong, in one line."""
    checkpoints.save(tmp_path / "saved", latent_checkpoint())
    broken = tmp_path / "saved" / file
    if damage == "missing":
        broken.unlink()
    elif damage == "truncated":
        broken.write_bytes(broken.read_bytes()[:-1])
    else:
        checkpoints.save_file({"weight": torch.zeros(3)}, broken)
    with pytest.raises(CheckpointError, match=file) as raised:
        fd.load(tmp_path / "saved")
    assert "\n" not in str(raised.value)


# --- errors


def test_what_does_not_fit_is_refused() -> None:
    """Wrong shapes, networks and numbers each get one line that says so."""
    one = autoencoder()
    refusals = [
        (
            lambda: one.encode(images(2, 1, 8, 7)),
            r"x must be floats \[B, 1, 8, 8\] in .*, got torch.float32 \(2, 1, 8, 7\)",
        ),
        (lambda: one.encode(images(2, 1, 8, 8).to(torch.uint8)), r"x must be floats .*, got torch.uint8"),
        (lambda: one.decode(images(2, 4, 4, 4)), r"latents must be \[B, 3, 4, 4\], got \(2, 4, 4, 4\)"),
        (lambda: one.model(images(2, 2, 8, 8)), r"x must be \[B, 1, H, W\]"),
        (lambda: one.model.decode(images(2, 1, 4, 4)), r"latents must be \[B, 3, h, w\]"),
        (lambda: autoencoder((3, 8, 8)), r"samples of shape \(3, 8, 8\) do not fit"),
        (lambda: Autoencoder(MLP(MLPConfig()), (2,), "moons"), "MLP is no autoencoder"),
        (lambda: Autoencoder(one.model, one.shape, "digits", scale=0.0), "scale must be > 0"),
        (lambda: Autoencoder(one.model, one.shape, "digits", shift=float("nan")), "shift must be finite"),
        (lambda: network(latent_channels=0), "latent_channels must be at least 1"),
        (lambda: network(width=0), "must be positive"),
        (
            lambda: fd.Checkpoint(
                fd.load("digits").model, fd.schedules.cosine(9), "v", (1, 8, 8), tuple("0123456789"), None, "", one
            ),
            r"shape \(1, 8, 8\) is not that of the latents, \(3, 4, 4\)",
        ),
    ]
    for call, message in refusals:
        with pytest.raises(InputError, match=message) as raised:
            call()
        assert "\n" not in str(raised.value)


def test_checkpoint_of_another_kind_is_refused(tmp_path: Path) -> None:
    """An autoencoder is not sampled, a diffusion model encodes nothing."""
    checkpoints.save(tmp_path / "saved", autoencoder())
    with pytest.raises(CheckpointError, match="holds a network for autoencoder: one for diffusion is needed"):
        fd.load(tmp_path / "saved")
    with pytest.raises(CheckpointError, match="holds a network for diffusion: one for autoencoder is needed"):
        fd.latents.load("digits")
