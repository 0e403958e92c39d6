"""AutoencoderKL of diffusers, from a local folder: the same numbers as its own encode and decode."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

import fastdiff as fd
from fastdiff import checkpoint as checkpoints
from fastdiff.errors import CheckpointError, InputError, MissingDependencyError

TINY: dict[str, Any] = {
    "in_channels": 1,
    "out_channels": 1,
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (8, 8),
    "norm_num_groups": 4,
    "latent_channels": 3,
    "sample_size": 8,
    "scaling_factor": 0.5,
    "shift_factor": 0.25,
}


def save(folder: Path, **changes: Any) -> diffusers.AutoencoderKL:
    """Save a random one, with other arguments."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)  # a network that is only built, and not read, has the weights of seed 0
        network = diffusers.AutoencoderKL(**{**TINY, **changes}).eval()
    network.save_pretrained(folder)
    return network


@torch.no_grad()
def test_latents_and_images_are_those_of_diffusers(tmp_path: Path) -> None:
    """`(z - shift_factor) scaling_factor` of its posterior's mean, and its decoder of that undone; no torchvision."""
    theirs = save(tmp_path / "vae")
    ours = fd.latents.from_diffusers(tmp_path / "vae")
    assert (ours.shape, ours.latent_shape) == ((1, 8, 8), (3, 4, 4))
    x = fd.noise.normal((2, 1, 8, 8))
    posterior = theirs.encode(x).latent_dist
    assert torch.equal(ours.encode(x, sample=False), (posterior.mean - 0.25) * 0.5)
    noise = fd.noise.normal((2, 3, 4, 4), seed=4, index=[7, 8], stream="latent")
    drawn = (posterior.mean + posterior.std * noise - 0.25) * 0.5
    torch.testing.assert_close(ours.encode(x, seed=4, index=[7, 8]), drawn, rtol=1e-6, atol=1e-6)  # a few roundings
    z = fd.noise.normal((2, 3, 4, 4), seed=1)
    assert torch.equal(ours.decode(z), theirs.decode(z / 0.5 + 0.25).sample)
    assert "torchvision" not in sys.modules


def test_sample_size_may_be_a_pair(tmp_path: Path) -> None:
    """Height and width."""
    save(tmp_path, sample_size=[8, 6])
    assert fd.latents.from_diffusers(tmp_path).shape == (1, 8, 6)
    save(tmp_path, sample_size=[8])
    assert fd.latents.from_diffusers(tmp_path, shape=(1, 4, 4)).shape == (1, 4, 4)
    with pytest.raises(InputError, match="does not say the size of images"):
        fd.latents.from_diffusers(tmp_path)


@pytest.mark.parametrize("factor", [None, 0.0])
def test_no_shift(tmp_path: Path, factor: float | None) -> None:
    """Older autoencoders, such as that of Stable Diffusion 1, have none."""
    save(tmp_path, shift_factor=factor)
    assert fd.latents.from_diffusers(tmp_path).shift == 0


def test_half_precision_is_read_as_float32(tmp_path: Path) -> None:
    """Whatever the weights are stored in."""
    theirs = save(tmp_path).half()
    theirs.save_pretrained(tmp_path)
    ours = fd.latents.from_diffusers(tmp_path)
    assert all(torch.equal(ours.model.network.state_dict()[name], v.float()) for name, v in theirs.state_dict().items())
    assert {value.dtype for value in ours.model.state_dict().values()} == {torch.float32}


def test_diffusion_checkpoint_holds_it(tmp_path: Path) -> None:
    """The folder of the latent diffusion model is enough, bit for bit, when that of the autoencoder is gone."""
    save(tmp_path / "vae")
    ours = fd.latents.from_diffusers(tmp_path / "vae", shape=(1, 6, 4))
    assert ours.latent_shape == (3, 3, 2)
    model = fd.models.build({"kind": "unet", "channels": 3, "width": 8})
    saved = fd.Checkpoint(model.eval(), fd.schedules.cosine(10), "v", (3, 3, 2), (), None, "faces", ours)
    checkpoints.save(tmp_path / "saved", saved)
    loaded = fd.load(tmp_path / "saved").latents
    assert loaded is not None
    assert loaded.digest == ours.digest
    z = fd.noise.normal((2, 3, 3, 2))
    assert torch.equal(loaded.decode(z), ours.decode(z))


def test_what_is_not_one_is_refused(tmp_path: Path) -> None:
    """No folder, another class, damaged or pickled weights, and images that do not fit: one line each."""

    def refused(message: str, error: type[Exception] = CheckpointError, **options: Any) -> None:
        with pytest.raises(error, match=message) as raised:
            fd.latents.from_diffusers(tmp_path / "vae", **options)
        assert "\n" not in str(raised.value)

    refused("config.json cannot be read")
    network = save(tmp_path / "vae")
    refused(r"samples of shape \(3, 8, 8\) do not fit", InputError, shape=(3, 8, 8))
    refused(r"samples of shape \(1, 7, 8\) do not fit", InputError, shape=(1, 7, 8))
    weights = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1])
    refused("does not hold the weights that its config.json describes")
    weights.unlink()
    torch.save(network.state_dict(), weights.with_suffix(".bin"))
    refused("holds no safetensors file")
    network.save_pretrained(tmp_path / "vae")
    save_file({name: value for name, value in load_file(weights).items() if "decoder.conv_in" not in name}, weights)
    refused("does not hold the weights .*: no decoder.conv_in")
    save(tmp_path / "vae", latents_mean=(0.0, 1.0, 2.0), latents_std=(1.0, 1.0, 1.0))
    refused("scales each channel of its latents by itself")
    config = tmp_path / "vae" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "_class_name": "UNet2DModel"}))
    refused("does not describe an AutoencoderKL")
    config.write_text("[]")
    refused("does not describe an AutoencoderKL")


def test_without_diffusers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says how to get it."""
    save(tmp_path)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(MissingDependencyError, match=r"needs diffusers .*pip install 'fastdiff-sampler\[diffusers\]'"):
        fd.latents.from_diffusers(tmp_path)
