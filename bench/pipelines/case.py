"""Stable Diffusion's pipeline around a network that costs nothing: what is left of a step is the scheduler's part."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

import fastdiff as fd

STEPS = 50
GUIDANCE = 7.5
# Each as users meet it: the first is Stable Diffusion's own, the second the usual choice, the others differ in kind.
SCHEDULERS: dict[str, dict[str, Any]] = {
    "DDIMScheduler": {"clip_sample": False},
    "DPMSolverMultistepScheduler": {},
    "EulerDiscreteScheduler": {},
    "EulerAncestralDiscreteScheduler": {},
    "UniPCMultistepScheduler": {},
}
SHAPES = [(1, 4, 64, 64), (4, 4, 64, 64)]
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
# Before and after: diffusers' scheduler, ours in its place, and the whole loop in one go.
WAYS = ("diffusers", "accelerate", "loop")


class Nothing(nn.Module):
    """A network that answers with what it was made with, the same for both branches in whatever order."""

    def __init__(self, out: Tensor) -> None:
        super().__init__()
        self.out = nn.Buffer(out)
        channels, side = out.shape[1], out.shape[2]
        self.config = SimpleNamespace(
            in_channels=channels, out_channels=channels, sample_size=side, time_cond_proj_dim=None
        )

    @property
    def device(self) -> torch.device:
        """Where its answer is."""
        return self.out.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of its answer."""
        return self.out.dtype

    def forward(self, x: Tensor, t: Tensor, return_dict: bool = True, **condition: Any) -> tuple[Tensor]:
        """Return the answer for a batch of x."""
        return (self.out[: len(x)],)


class Case:
    """A scheduler, a shape and a device, run in each of the `WAYS`."""

    def __init__(self, scheduler: str, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(0)
        out = torch.randn(shape, generator=generator).repeat(2, 1, 1, 1).to(device, dtype)
        self.latents = torch.randn(shape, generator=generator).to(device, dtype)
        self.embeddings = torch.zeros((shape[0], 1, 8), device=device, dtype=dtype)
        self.pipes = {way: _pipe(scheduler, way, Nothing(out)) for way in WAYS}

    def run(self, way: str, steps: int = STEPS) -> Tensor:
        """Return the latents that a pipeline makes; with noise, from the same generator each time."""
        pipe = self.pipes[way]
        found: Tensor = pipe(
            prompt_embeds=self.embeddings,
            negative_prompt_embeds=self.embeddings,
            latents=self.latents,
            num_inference_steps=steps,
            guidance_scale=GUIDANCE,
            generator=torch.Generator(self.latents.device).manual_seed(1),
            output_type="latent",
        ).images
        return found


def _pipe(scheduler: str, way: str, network: Nothing) -> Any:
    pipe = diffusers.StableDiffusionPipeline(
        vae=None,
        text_encoder=None,
        tokenizer=None,
        unet=network,
        scheduler=getattr(diffusers, scheduler)(**BETAS, **SCHEDULERS[scheduler]),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe if way == "diffusers" else fd.accelerate(pipe, loop=way == "loop")
