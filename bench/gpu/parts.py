"""What is measured on a GPU, in parts; the first ones hold the targets."""

from __future__ import annotations

from typing import Any

import torch

from fastdiff.bench.speed.cases import Shape
from fastdiff.bench.speed.run import Settings

ONE: Shape = (1, 4, 64, 64)
LATENTS = (ONE, (16, 4, 64, 64))
PIXELS: Shape = (64, 3, 256, 256)
STREAM: Shape = (512, 3, 256, 256)  # 400 MB a tensor: several times what any cache holds
KERNELS = ("fastdiff", "triton", "cuda")
GRAPHS = ("graph", "triton-graph", "cuda-graph")
FAST = ("fast", "triton-fast", "cuda-fast")
OTHERS = ("eager", "diffusers")
FLOAT32 = ("float32",)


def parts(device: torch.device, seconds: float) -> list[Settings]:
    """Return what to measure, so that it fits into some `seconds`, of which torch.compile has about a half."""

    def part(
        cases: tuple[str, ...], shapes: tuple[Shape, ...], *peers: str, compiling: float = 0, **options: Any
    ) -> Settings:
        given = {"device": device, "rounds": 21, "seconds": 1.0, "compile_seconds": compiling * seconds, **options}
        return Settings(cases, shapes, peers=peers, **given)

    overhead = ("compile", "compile-overhead")
    steps = ("ddim", "ddpm-cfg", "ddim-cfg", "ddim-eta1")
    return [
        part(("ddim", "ddim-eta1"), (STREAM,), *KERNELS, "sampled", *FAST, "copy"),
        part(
            ("loop",), (ONE,), "fastdiff", "ungraphed", "diffusers", "diffusers-overhead", compiling=0.2, dtypes=FLOAT32
        ),
        part(steps, LATENTS, *KERNELS, "dispatched", "sampled", *GRAPHS, *FAST, *OTHERS, *overhead, compiling=0.15),
        part(steps, (PIXELS,), *KERNELS, *FAST, *OTHERS, "compile", compiling=0.2),
        part(
            ("q_sample", "noise_loss", "train-step", "normal", "dpmpp-2m", "dpmpp-2m-cfg"), (PIXELS,), *KERNELS, *OTHERS
        ),
        part(("call",), (ONE,), *KERNELS, "dispatched", *GRAPHS, *OTHERS, dtypes=FLOAT32),
    ]
