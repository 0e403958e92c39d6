"""Pipelines give the same images with our schedulers, and with their whole loop run in one go."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

import fastdiff as fd
import fastdiff.integrations.diffusers as ours
from tests.integrations import pipelines

# Float32 on both sides: images in 0..1 after some ten steps of a network whose slopes are near 1.
TOLERANCE = 2e-5
IMAGE = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(5))
MASK = (torch.arange(16) < 7).float().expand(1, 1, 16, 16)
PROMPT = {"prompt": ["a b", "c"], "negative_prompt": ["d", "e f"], "num_inference_steps": 6}


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(11)


def images(pipe: Any, *args: Any, **kwargs: Any) -> np.ndarray[Any, Any]:
    found: np.ndarray[Any, Any] = pipe(*args, **kwargs, output_type="np").images
    return found


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def ddpm(**config: Any) -> Any:
    channels = {"out_channels": 6} if config.get("variance_type") in ("learned", "learned_range") else {}
    return quiet(diffusers.DDPMPipeline(pipelines.unet(**channels), diffusers.DDPMScheduler(**config)))


def ddim() -> Any:
    return quiet(diffusers.DDIMPipeline(pipelines.unet(), diffusers.DDIMScheduler()))


# Each pipeline, and calls of it.
UNCONDITIONAL: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "ddpm": (ddpm, {"num_inference_steps": 12}),
    "ddpm learned": (lambda: ddpm(variance_type="learned_range"), {"num_inference_steps": 12}),
    "ddim": (ddim, {"num_inference_steps": 7}),
    "ddim eta": (ddim, {"num_inference_steps": 7, "eta": 0.7, "use_clipped_model_output": True}),
}


@pytest.mark.parametrize("loop", [False, True], ids=["scheduler", "loop"])
@pytest.mark.parametrize("name", UNCONDITIONAL)
def test_unconditional(name: str, loop: bool) -> None:
    make, call = UNCONDITIONAL[name]
    expected = images(make(), batch_size=2, generator=generator(), **call)
    pipe = make()
    assert fd.accelerate(pipe, loop=loop) is pipe
    np.testing.assert_allclose(images(pipe, batch_size=2, generator=generator(), **call), expected, atol=TOLERANCE)


@pytest.mark.parametrize("loop", [False, True], ids=["scheduler", "loop"])
@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "DDPMScheduler", "DPMSolverMultistepScheduler"])
def test_dit(scheduler: str, guidance: float, loop: bool) -> None:
    """It passes no generator to the steps: their noise is torch's own."""

    def make() -> Any:
        pipe = pipelines.dit()
        pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config)
        return pipe

    call = {"class_labels": [1, 7], "guidance_scale": guidance, "num_inference_steps": 6}
    torch.manual_seed(2)
    expected = images(make(), generator=generator(), **call)
    torch.manual_seed(2)
    found = images(fd.accelerate(make(), loop=loop), generator=generator(), **call)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


# Each scheduler of Stable Diffusion, and what its step is given.
SCHEDULERS = {
    "DDIMScheduler": {"eta": 0.5},
    "PNDMScheduler": {},
    "EulerDiscreteScheduler": {},
    "EulerAncestralDiscreteScheduler": {},
    "LMSDiscreteScheduler": {},
    "HeunDiscreteScheduler": {},
    "DPMSolverMultistepScheduler": {},
    "UniPCMultistepScheduler": {},
    "LCMScheduler": {},
}
KINDS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "text": ("StableDiffusionPipeline", 4, {"guidance_rescale": 0.6, "num_images_per_prompt": 2}),
    "no guidance": ("StableDiffusionPipeline", 4, {"guidance_scale": 1.0}),
    "image": ("StableDiffusionImg2ImgPipeline", 4, {"image": IMAGE.expand(2, -1, -1, -1), "strength": 0.7}),
    "inpaint": ("StableDiffusionInpaintPipeline", 4, {"strength": 0.7}),
    "inpaint all": ("StableDiffusionInpaintPipeline", 4, {"strength": 1.0}),
    "inpaint 9 channels": ("StableDiffusionInpaintPipeline", 9, {"strength": 1.0}),
}


@pytest.mark.parametrize("loop", [False, True], ids=["scheduler", "loop"])
@pytest.mark.parametrize(
    ("kind", "scheduler"),
    [
        *((kind, "DDIMScheduler") for kind in KINDS),
        *(("text", name) for name in SCHEDULERS if name != "DDIMScheduler"),
        *(("image", name) for name in ("DPMSolverMultistepScheduler", "EulerAncestralDiscreteScheduler")),
        *(("inpaint", name) for name in ("EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "PNDMScheduler")),
    ],
)
def test_stable_diffusion(kind: str, scheduler: str, loop: bool, tmp_path: Path) -> None:
    name, channels, call = KINDS[kind]
    if name == "StableDiffusionInpaintPipeline":
        call = {**call, "image": IMAGE, "mask_image": MASK, "height": 16, "width": 16}

    def make() -> Any:
        pipe = pipelines.stable_diffusion(tmp_path, name, channels)
        pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config)
        return pipe

    call = {**PROMPT, **SCHEDULERS[scheduler], **call}
    expected = images(make(), generator=generator(), **call)
    found = images(fd.accelerate(make(), loop=loop), generator=generator(), **call)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


def test_a_guidance_embedding(tmp_path: Path) -> None:
    """Networks that are told the guidance, as LCM's are, are asked for one branch alone."""

    def make() -> Any:
        return pipelines.stable_diffusion(tmp_path, time_cond_proj_dim=8)

    expected = images(make(), generator=generator(), **PROMPT)
    found = images(fd.accelerate(make(), loop=True), generator=generator(), **PROMPT)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


def test_the_seed_is_the_projects_own_noise(tmp_path: Path) -> None:
    """Without a generator the steps' noise is that of the seed, whatever torch's generator is at; both ways to run."""
    found = []
    for loop, torch_seed in ((False, 1), (False, 2), (True, 3)):
        pipe = fd.accelerate(ddpm(), loop=loop, seed=9)
        torch.manual_seed(torch_seed)
        start = fd.noise.normal((2, 3, 8, 8), seed=4)
        pipe.scheduler.set_timesteps(6)
        if loop:
            x = fd.sample(
                lambda x, t, pipe=pipe: pipe.unet(x, t).sample, pipe.scheduler.plan(), start.shape, x_init=start, seed=9
            )
        else:
            x = start
            with torch.no_grad():
                for t in pipe.scheduler.timesteps:
                    x = pipe.scheduler.step(pipe.unet(x, t).sample, t, x).prev_sample
        found.append(x)
    assert torch.equal(found[0], found[1])
    # The loop scales its input and asks for all times as floats, so the network may round otherwise.
    torch.testing.assert_close(found[2], found[0], rtol=1e-5, atol=1e-5)


def test_the_same_network_is_asked_as_often(tmp_path: Path) -> None:
    """A loop asks once a step, of both branches at once."""
    pipe = fd.accelerate(pipelines.stable_diffusion(tmp_path), loop=True)
    batches: list[int] = []
    pipe.unet.register_forward_pre_hook(lambda module, args: batches.append(len(args[0])))
    images(pipe, generator=generator(), **PROMPT)
    assert batches == [4] * 6


def test_a_saved_pipeline_is_diffusers_own(tmp_path: Path) -> None:
    """What is saved names diffusers' classes, and diffusers loads it without this package."""
    fd.accelerate(ddim(), loop=True).save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "DDIMPipeline" and index["scheduler"] == ["diffusers", "DDIMScheduler"]
    load = "import diffusers, sys; diffusers.DDIMPipeline.from_pretrained(sys.argv[1])"
    script = f"{load}; assert 'fastdiff' not in sys.modules"
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, capture_output=True)


def test_what_stays() -> None:
    """All but the scheduler is the pipeline's own, and a second call changes nothing."""
    pipe = ddim()
    before = pipe.components
    fd.accelerate(fd.accelerate(pipe, loop=True), loop=True)
    assert pipe.components["unet"] is before["unet"] and isinstance(pipe, diffusers.DDIMPipeline)
    assert type(pipe.scheduler) is ours.DDIMScheduler and pipe.scheduler.config == before["scheduler"].config
    assert type(pipe).__name__ == "DDIMPipeline"


def test_two_pipelines_share_a_scheduler(tmp_path: Path) -> None:
    """One calls the other from its callback, in the midst of its loop."""
    alone = pipelines.stable_diffusion(tmp_path)
    alone.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(alone.scheduler.config)
    expected = images(alone, generator=generator(), **PROMPT)
    pipe = pipelines.stable_diffusion(tmp_path)
    pipe.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    fd.accelerate(pipe)
    other = diffusers.StableDiffusionPipeline(**pipe.components, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    inner = []

    def call(pipe: Any, step: int, t: Any, tensors: Any) -> Any:
        if step == 3:
            inner.append(images(other, generator=generator(), **PROMPT))
        return tensors

    found = images(pipe, generator=generator(), callback_on_step_end=call, **PROMPT)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)
    np.testing.assert_allclose(inner[0], expected, atol=TOLERANCE)


class TestRefused:
    def test_an_unknown_scheduler(self) -> None:
        pipe = diffusers.DDPMPipeline(pipelines.unet(), diffusers.UnCLIPScheduler())
        with pytest.raises(fd.InputError, match="UnCLIPScheduler is no scheduler that is known here"):
            fd.accelerate(pipe)

    def test_a_subclass_of_a_scheduler(self) -> None:
        class Mine(diffusers.DDIMScheduler):
            pass

        with pytest.raises(fd.InputError, match="Mine is no scheduler"):
            fd.accelerate(diffusers.DDPMPipeline(pipelines.unet(), Mine()))

    def test_an_unknown_loop(self) -> None:
        class Mine(diffusers.DDIMPipeline):
            pass

        pipe = Mine(pipelines.unet(), diffusers.DDIMScheduler())
        with pytest.raises(fd.InputError, match="the loop of Mine is not known here"):
            fd.accelerate(pipe, loop=True)
        assert type(pipe.scheduler) is diffusers.DDIMScheduler  # nothing was changed

    def test_a_callback(self, tmp_path: Path) -> None:
        pipe = fd.accelerate(pipelines.stable_diffusion(tmp_path), loop=True)
        with pytest.raises(fd.InputError, match="callback_on_step_end cannot be called within a whole loop"):
            pipe(**PROMPT, callback_on_step_end=lambda *_: {})

    def test_a_graph_without_a_loop(self) -> None:
        with pytest.raises(fd.InputError, match="pass loop=True too"):
            fd.accelerate(ddim(), graph=True)

    def test_a_graph_without_cuda(self) -> None:
        with pytest.raises(fd.BackendError, match="graph=True needs a CUDA device"):
            fd.accelerate(ddim(), loop=True, graph=True)(num_inference_steps=2)

    def test_scaled_states(self) -> None:
        pipe = pipelines.dit()
        pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
        with pytest.raises(fd.InputError, match="DiT pipeline steps from EulerDiscreteScheduler's scaled state"):
            fd.accelerate(pipe, loop=True)([1], num_inference_steps=2)

    def test_a_bound_of_thresholding(self) -> None:
        config = {"thresholding": True, "sample_max_value": 2.0}
        with pytest.raises(fd.InputError, match="no largest bound of dynamic thresholding"):
            fd.accelerate(ddpm(**config), loop=True)(num_inference_steps=2)
