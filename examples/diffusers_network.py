"""A network of diffusers under samplers of fastdiff, one a line: python examples/diffusers_network.py --out net.png"""

import argparse
import tempfile

import diffusers
import torch

import fastdiff as fd
from fastdiff import pictures


def save_tiny_dit(folder: str) -> None:
    """Save a diffusion transformer with random weights, for want of a download."""
    torch.manual_seed(0)
    network = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=1,
        out_channels=2,  # the second is a variance, which only DDPM uses
        num_layers=2,
        sample_size=16,
        patch_size=2,
        num_embeds_ada_norm=10,
    )
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    network.save_pretrained(folder)


def main(out: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        save_tiny_dit(folder)
        model = fd.models.from_diffusers(folder)
    schedule = fd.schedules.linear(1000)
    plans = [
        fd.samplers.ddim(schedule, steps=20),
        fd.samplers.dpmpp_2m(schedule, steps=10, spacing="trailing"),
        fd.samplers.ddpm(schedule, steps=20, variance="learned_range"),
    ]
    cond = {"class_labels": torch.arange(8)}  # the class for guidance is the network's own
    lines = [fd.sample(model, plan, (8, 1, 16, 16), seed=3, cond=cond, guidance=2.0) for plan in plans]
    pictures.save(torch.cat(lines).clamp(-1, 1), out, columns=8)
    print(f"wrote {out}, from above: {', '.join(plan.name for plan in plans)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="diffusers_network.png", help="PNG to write")
    main(parser.parse_args().out)
