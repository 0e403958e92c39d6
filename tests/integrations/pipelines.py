"""Tiny pipelines of diffusers with random weights, made without a download."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers


def unet(channels: int = 3, **options: Any) -> diffusers.UNet2DModel:
    torch.manual_seed(0)
    blocks = ("DownBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "UpBlock2D")
    return diffusers.UNet2DModel(
        sample_size=8,
        in_channels=channels,
        out_channels=options.pop("out_channels", channels),
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=blocks[0],
        up_block_types=blocks[1],
        norm_num_groups=4,
        attention_head_dim=8,
        **options,
    ).eval()


def autoencoder() -> diffusers.AutoencoderKL:
    torch.manual_seed(1)
    return diffusers.AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=(8, 8),
        norm_num_groups=4,
        sample_size=16,
    ).eval()


def conditional_unet(channels: int = 4, **options: Any) -> diffusers.UNet2DConditionModel:
    torch.manual_seed(2)
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=channels,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=4,
        **options,
    ).eval()


def text_encoder() -> transformers.CLIPTextModel:
    torch.manual_seed(3)
    config = transformers.CLIPTextConfig(
        vocab_size=300,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return transformers.CLIPTextModel(config).eval()


def tokenizer(folder: Path) -> transformers.CLIPTokenizer:
    """A tokenizer that knows single letters alone."""
    letters = [chr(code) for code in range(97, 123)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: k for k, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return transformers.CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16, unk_token="<|endoftext|>"
    )


def stable_diffusion(folder: Path, kind: str = "StableDiffusionPipeline", channels: int = 4, **options: Any) -> Any:
    """A Stable Diffusion pipeline of the class `kind`, its UNet with `channels` inputs."""
    scheduler = diffusers.DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, steps_offset=1
    )
    pipe = getattr(diffusers, kind)(
        vae=autoencoder(),
        text_encoder=text_encoder(),
        tokenizer=tokenizer(folder),
        unet=conditional_unet(channels, **options),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def dit() -> diffusers.DiTPipeline:
    torch.manual_seed(4)
    transformer = diffusers.DiTTransformer2DModel(
        sample_size=8,
        num_layers=1,
        patch_size=4,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        out_channels=8,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_zero",
        norm_elementwise_affine=False,
    ).eval()
    pipe = diffusers.DiTPipeline(transformer=transformer, vae=autoencoder(), scheduler=diffusers.DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe
