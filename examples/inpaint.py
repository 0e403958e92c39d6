"""The right half of digits drawn anew, and digits from digits: python examples/inpaint.py --out inpaint.png"""

import argparse

import torch

import fastdiff as fd
from fastdiff import pictures


def main(out: str) -> None:
    digits = fd.load("digits")
    shape = (10, *digits.shape)
    data = fd.sample(digits.model, digits.plan("ddim", steps=20), shape, cond={"y": torch.arange(10)}, guidance=2.0)
    known = {"known": data, "mask": (torch.arange(8) < 4).float()}  # the left four columns

    def drawn(plan: fd.Plan, **options: torch.Tensor) -> torch.Tensor:
        return fd.sample(digits.model, plan, shape, seed=1, **options)  # of any class

    lines = {
        "the data": data,
        "what is known": data * known["mask"] - (1 - known["mask"]),
        "DDPM": drawn(digits.plan("ddpm", steps=30), **known),
        "RePaint": drawn(digits.plan("repaint", steps=20, jump_length=5, jump_samples=4), **known),
        "from noised data": drawn(digits.plan("ddpm", steps=30, start=18), x0_init=data),
    }
    pictures.save(torch.cat(list(lines.values())), out, columns=10)
    print(f"wrote {out}, from above: {', '.join(lines)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="inpaint.png", help="PNG to write")
    main(parser.parse_args().out)
