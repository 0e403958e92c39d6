"""The kernels inside other people's libraries. Each module needs the library that it is named after."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from fastdiff.integrations.diffusers.adapter import Seed

Pipeline = TypeVar("Pipeline")


def accelerate(pipe: Pipeline, *, loop: bool = False, graph: bool = False, seed: Seed | None = None) -> Pipeline:
    """Replace the scheduler of a pipeline of diffusers by ours of the same name and configuration; return the pipeline.

    All else of the pipeline stays, and from the same generators come the same images, to float32 rounding.

    Args:
        pipe: the pipeline, which is changed in place.
        loop: also run its whole loop with `fastdiff.sample`: guidance in the step, and no wait for the device between
            steps. For the pipelines DDPM, DDIM, DiT, and Stable Diffusion from text, from images and inpainting.
        graph: capture the loop as a CUDA graph; see `fastdiff.sample`. Noise is then the project's own: pass `seed`.
        seed: of the project's own noise, where the pipeline is given no generator: one for the batch, or one for each
            sample. None is torch's own generator.

    Raises:
        InputError: the scheduler, or with `loop` the pipeline or what it is asked for, is none that is known here.
        MissingDependencyError: diffusers is not installed.
    """
    from fastdiff.integrations.diffusers import pipelines

    return pipelines.accelerate(pipe, loop=loop, graph=graph, seed=seed)
