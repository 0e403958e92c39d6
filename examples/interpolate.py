"""From digit to digit by way of their noise: python examples/interpolate.py --out interpolate.png"""

import argparse

import torch

import fastdiff as fd
from fastdiff import pictures

STEPS = 10


def main(out: str) -> None:
    digits = fd.load("digits")
    there, back = digits.plan("ddim_inversion", steps=40, clip=None), digits.plan("ddim", steps=40, clip=None)
    cond = {"y": torch.tensor([2, 0, 4])}
    data = fd.sample(digits.model, digits.plan("ddim", steps=20), (3, *digits.shape), cond=cond, guidance=2.0)
    codes = fd.sample(digits.model, there, data.shape, x_init=data)  # the noise that DDIM makes them of
    lines = []
    for first, second in zip(codes, codes.roll(-1, 0), strict=True):
        ways = torch.linspace(0, 1, STEPS)
        starts = fd.noise.slerp(first.expand(STEPS, *digits.shape), second.expand(STEPS, *digits.shape), ways)
        lines.append(fd.sample(digits.model, back, starts.shape, x_init=starts))
    pictures.save(torch.cat(lines), out, columns=STEPS)
    ends = torch.stack([line[0] for line in lines])
    print(f"wrote {out}, each line from a digit to the next; a digit comes back to {(ends - data).abs().mean():.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="interpolate.png", help="PNG to write")
    main(parser.parse_args().out)
