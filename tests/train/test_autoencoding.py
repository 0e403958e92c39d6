"""Training of autoencoders, and of diffusion on their latents."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image
from torch import Tensor

import fastdiff as fd
from fastdiff.errors import CheckpointError, InputError
from fastdiff.latents import Posterior
from fastdiff.train import TrainConfig
from fastdiff.train import data as datasets
from fastdiff.train.batch import Batch
from fastdiff.train.objectives import autoencoder, denoising_autoencoder, vae
from fastdiff.train.tasks import make
from fastdiff.train.trainer import Trainer, train

VAE = TrainConfig(
    objective="vae",
    latent_channels=2,
    width=4,
    attention=(False, False),
    steps=4,
    batch=8,
    warmup=1,
    save_every=2,
    sample_every=100,
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of an untrained-as-can-be VAE of digits."""
    out = tmp_path_factory.mktemp("vae")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        patch.setattr(Trainer, "_draw_samples", lambda self: None)
        train(dataclasses.replace(VAE, steps=2), out)
    return out


def of_latents(trained: Path | str, **changes: Any) -> TrainConfig:
    return dataclasses.replace(VAE, objective="l_simple", latents=str(trained), T=10, **changes)


def digests(folder: Path) -> dict[str, str]:
    """Digests of all tensors of a checkpoint."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.glob("*.safetensors")}


# --- objectives


def batch_of(x0: Tensor, **changes: Any) -> Batch:
    index = torch.arange(len(x0))
    made = Batch(x0=x0, t=index, weight=torch.ones(len(x0)), label=index, cond={}, index=index, seed=3, step=5)
    return dataclasses.replace(made, **changes)


def test_autoencoder_is_the_mean_squared_error() -> None:
    """`mean (D(E(x)) - x)^2` over the values of each sample, for a network that halves what it is given."""
    x = fd.noise.normal((4, 1, 3, 5))
    loss = autoencoder()(lambda given: (given / 2, Posterior(given)), batch_of(x))
    torch.testing.assert_close(loss, (x**2).mean(dim=(1, 2, 3)) / 4)


def test_denoising_autoencoder_is_given_noise_and_asked_for_data() -> None:
    """`mean (D(E(x + s eps)) - x)^2`: for D(E(x)) = x it is s^2 mean eps^2, with the eps of the batch's own noise."""
    x = fd.noise.normal((4, 1, 3, 5))
    eps = fd.noise.normal((4, 1, 3, 5), seed=3, step=5, stream="train")
    loss = denoising_autoencoder(0.5)(lambda given: (given, Posterior(given)), batch_of(x))
    torch.testing.assert_close(loss, 0.25 * (eps**2).mean(dim=(1, 2, 3)), rtol=1e-5, atol=1e-6)  # x + s eps - x


def test_vae_is_reconstruction_and_kl() -> None:
    """`(|x - z|^2 / 2 + w KL) / dims` for a network whose latent is the image, its mean x / 2 and its log-variance -1.

    z is drawn with the noise of (seed, index, step) in a stream of its own.
    """
    x = fd.noise.normal((4, 1, 3, 5))

    def network(given: Tensor, noise: Callable[[torch.Size], Tensor]) -> tuple[Tensor, Posterior]:
        posterior = Posterior(given / 2, torch.full_like(given, -1.0))
        return posterior.draw(noise), posterior

    loss = vae(0.3)(network, batch_of(x))
    z = x / 2 + torch.tensor(-0.5).exp() * fd.noise.normal(x.shape, seed=3, step=5, stream="latent")
    kl = ((x / 2) ** 2 + torch.tensor(-1.0).exp() - 1 + 1).sum(dim=(1, 2, 3)) / 2
    torch.testing.assert_close(loss, (((x - z) ** 2).sum(dim=(1, 2, 3)) / 2 + 0.3 * kl) / 15)


@pytest.mark.parametrize("objective", ["autoencoder", "denoising_autoencoder", "vae"])
def test_noise_does_not_depend_on_the_share_of_a_process(objective: str) -> None:
    """Two halves of a batch, each with its own indices, have the losses of the whole."""
    task = make(dataclasses.replace(VAE, objective=objective), datasets.load("digits"))
    model = fd.models.build(task.description)
    x = fd.noise.normal((4, 1, 8, 8))
    with torch.no_grad():
        whole = task.loss(model, batch_of(x))
        halves = [task.loss(model, batch_of(x[part], index=torch.arange(4)[part])) for part in (slice(2), slice(2, 4))]
    torch.testing.assert_close(torch.cat(halves), whole, rtol=1e-5, atol=1e-6)  # other batches round otherwise


# --- runs


@pytest.mark.parametrize("objective", ["autoencoder", "denoising_autoencoder", "vae", "latents"])
def test_resumed_run_ends_in_the_same_bits(objective: str, trained: Path, tmp_path: Path) -> None:
    """Stopped after its first checkpoint: all tensors of the last one are equal, the autoencoder's too."""
    config = of_latents(trained) if objective == "latents" else dataclasses.replace(VAE, objective=objective)
    whole = train(config, tmp_path / "whole")
    advance = Trainer._advance

    def advance_or_stop(self: Trainer, batch: Batch) -> Tensor:
        if self.step == 3:
            raise KeyboardInterrupt
        return advance(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_advance", advance_or_stop)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "stopped")
    resumed = train(config, tmp_path / "stopped", resume=True)
    assert digests(resumed) == digests(whole)
    assert len(digests(whole)) == (3 if objective == "latents" else 2)


def test_vae_learns_digits(tmp_path: Path) -> None:
    """150 steps: what it reconstructs of held-out digits is nearer than their mean, and its latents are standard.

    The variance of the pixels is 0.296; this seed measured an error of 0.064.
    """
    train(dataclasses.replace(VAE, steps=150, save_every=150, width=8, lr=5e-3, ema=0.9, batch=32), tmp_path)
    one = fd.latents.load(tmp_path)
    held_out = datasets.load("digits", split="held-out").dataset
    x = torch.stack([held_out[i][0] for i in range(360)])
    z = one.encode(x)
    error = float((one.decode(z) - x).square().mean())
    assert error < 0.5 * float((x - x.mean(dim=0)).square().mean())
    # Scale and shift are those of the training data; other digits are like them to a few percent.
    assert abs(float(z.mean())) < 0.1
    assert abs(float(z.var()) - 1) < 0.2


def test_latent_diffusion_is_given_latents_of_the_batch(trained: Path) -> None:
    """Its loss is that of l_simple, on what the frozen autoencoder makes of the data with the batch's own noise."""
    config, data = of_latents(trained), datasets.load("digits")
    task, one = make(config, data), fd.latents.load(trained)
    assert task.description["channels"] == 2
    model = fd.models.build(task.description)
    x = torch.stack([data.dataset[i][0] for i in range(4)])
    cond = {"y": torch.tensor([0, 1, 2, 10])}
    batch = batch_of(x, cond=cond)
    plain = make(dataclasses.replace(config, latents=None), dataclasses.replace(data, shape=(2, 4, 4)))
    z = one.encode(x, seed=3, index=batch.index, step=5)
    loss = task.loss(model, batch)
    assert torch.equal(loss, plain.loss(model, batch_of(z, cond=cond)))
    loss.sum().backward()
    assert all(parameter.grad is None for parameter in task.saved(model).latents.model.parameters())
    assert task.data.levels is None  # latents are continuous, whatever the data are: L_0 is a density


def test_latent_checkpoint_needs_no_other_folder(trained: Path, tmp_path: Path) -> None:
    """The run's checkpoint samples decoded digits, with guidance, after the autoencoder's run is gone."""
    shutil.copytree(trained, tmp_path / "vae")
    train(of_latents(tmp_path / "vae", steps=2), tmp_path / "run")
    shutil.rmtree(tmp_path / "vae")
    loaded = fd.load(tmp_path / "run")
    assert (loaded.shape, loaded.clip, len(loaded.classes)) == ((2, 4, 4), None, 10)
    assert loaded.latents is not None
    assert loaded.latents.digest == fd.latents.load(trained).digest
    cond = {"y": torch.arange(3)}
    plan = loaded.plan("ddim", steps=2)
    x = fd.sample(loaded.model, plan, (3, *loaded.shape), cond=cond, guidance=2.0, decode=loaded.decode)
    assert x.shape == (3, 1, 8, 8)


def test_resume_needs_the_same_autoencoder(trained: Path, tmp_path: Path) -> None:
    """A moved one will do; another one, or none, is refused before anything is trained."""
    config = of_latents(trained, steps=2)
    train(config, tmp_path / "run")
    shutil.copytree(trained, tmp_path / "moved")
    train(dataclasses.replace(config, latents=str(tmp_path / "moved")), tmp_path / "run", resume=True)
    train(dataclasses.replace(VAE, steps=2, seed=1), tmp_path / "other")
    with pytest.raises(InputError, match="cannot resume: the run began with another autoencoder, or with none"):
        train(dataclasses.replace(config, latents=str(tmp_path / "other")), tmp_path / "run", resume=True)
    train(dataclasses.replace(config, latents=None), tmp_path / "pixels")
    with pytest.raises(InputError, match="cannot resume: the run began with another autoencoder, or with none"):
        train(config, tmp_path / "pixels", resume=True)
    with pytest.raises(InputError, match="cannot resume: the run began with another autoencoder, or with none"):
        train(dataclasses.replace(config, latents=None), tmp_path / "run", resume=True)
    # The run itself holds its autoencoder, should the folder be gone.
    train(dataclasses.replace(config, latents=str(tmp_path / "run")), tmp_path / "run", resume=True)


@pytest.mark.parametrize("kind", ["vae", "latents"])
def test_pictures(kind: str, trained: Path, tmp_path: Path, pictures: None) -> None:
    """Sixteen originals above their reconstructions; eight decoded samples for each of ten classes."""
    config = dataclasses.replace(VAE, steps=1) if kind == "vae" else of_latents(trained, steps=1)
    train(config, tmp_path)
    with Image.open(tmp_path / "samples" / "step-00000001.png") as image:
        # Digits are enlarged to 32, with gaps of 2.
        columns, rows = (16, 2) if kind == "vae" else (8, 10)
        assert image.size == (columns * 34 + 2, rows * 34 + 2)


def test_autoencoder_of_diffusers(tmp_path: Path) -> None:
    """`--latents diffusers:FOLDER` diffuses the latents of an AutoencoderKL, whatever image size it names."""
    diffusers.AutoencoderKL(
        in_channels=1,
        out_channels=1,
        block_out_channels=(4, 4),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=2,
        latent_channels=3,
        sample_size=512,
    ).save_pretrained(tmp_path / "vae")
    train(of_latents(f"diffusers:{tmp_path / 'vae'}", steps=1), tmp_path / "run")
    loaded = fd.load(tmp_path / "run")
    assert loaded.shape == (3, 4, 4)
    assert loaded.latents is not None
    assert loaded.latents.decode(torch.zeros(2, 3, 4, 4)).shape == (2, 1, 8, 8)


# --- errors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "vae"}, "vae works on the data themselves: leave --latents out"),
        ({"size": 16}, r"is for samples of shape \(1, 8, 8\), and digits has \(1, 16, 16\)"),
        ({"data": "moons"}, r"is for samples of shape \(1, 8, 8\), and moons has \(2,\)"),
        ({"latents": "digits"}, "holds a network for diffusion: one for autoencoder is needed"),
        ({"latents": "nowhere"}, "no checkpoint 'nowhere'"),
        ({"latents": "diffusers:nowhere"}, "config.json cannot be read"),
        ({"latent_channels": 0}, "latent_channels must be a whole number, at least 1"),
        ({"kl_weight": -1.0}, "kl_weight must be >= 0"),
        ({"corruption": float("nan")}, "corruption must be >= 0"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(
    trained: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    """One line, and no folder."""
    with pytest.raises((InputError, CheckpointError), match=message) as raised:
        train(dataclasses.replace(of_latents(trained), **changes), tmp_path / "run")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_points_have_no_autoencoder(tmp_path: Path) -> None:
    """The network is for images."""
    with pytest.raises(InputError, match="moons has no images: an autoencoder needs data that have"):
        train(dataclasses.replace(VAE, data="moons"), tmp_path / "run")
