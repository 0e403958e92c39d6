"""A diffusers pipeline before and after: python examples/pipeline.py --out pipeline.png"""

import argparse

import diffusers
import torch

import fastdiff as fd
from fastdiff import pictures


def tiny_pipeline() -> diffusers.DDIMPipeline:
    """Return a pipeline whose network has random weights, for want of a download."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=16,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
    )
    pipe = diffusers.DDIMPipeline(unet, diffusers.DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: diffusers.DDIMPipeline) -> torch.Tensor:
    """Return eight images in 0..1, from the same generator each time."""
    generator = torch.Generator().manual_seed(5)
    return pipe(batch_size=8, generator=generator, num_inference_steps=20, eta=0.5, output_type="pt").images


def main(out: str) -> None:
    pipes = [tiny_pipeline(), fd.accelerate(tiny_pipeline()), fd.accelerate(tiny_pipeline(), loop=True)]
    lines = [draw(pipe) for pipe in pipes]
    images = torch.cat(lines) - lines[0].min()
    pictures.save(images / images.max() * 2 - 1, out, columns=8)  # from black to white
    difference = max(float((line - lines[0]).abs().max()) for line in lines)
    print(f"wrote {out}: diffusers, our scheduler, our loop; they differ by {difference:.0e} at most")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="pipeline.png", help="PNG to write")
    main(parser.parse_args().out)
