"""Digits that are others seen in another way (Geng et al. 2024): python examples/illusions.py --out illusions.png"""

import argparse

import torch

import fastdiff as fd
from fastdiff import pictures
from fastdiff.guidance import views

# What each view should show: a digit as it is, and the same picture seen through the other view.
ILLUSIONS = {
    "6 turns into 9": (views.rotation(2), 6, 9),
    "2 mirrors 5": (views.flip(-2), 2, 5),
    "3 mirrors 3": (views.flip(-2), 3, 3),
}
SAMPLES = 8


def main(out: str) -> None:
    digits = fd.load("digits")
    plan = digits.plan("ddim", steps=30, eta=1.0)
    lines = []
    for view, plain, seen in ILLUSIONS.values():
        model = fd.guidance.Views(digits.model, [views.identity, view])
        labels = torch.tensor([plain, seen]).expand(SAMPLES, 2)
        x = fd.sample(model, plan, (SAMPLES, *digits.shape), cond={"y": labels}, guidance=3.0)
        lines += [x, view.see(x)]
    pictures.save(torch.cat(lines), out, columns=SAMPLES)
    print(f"wrote {out}, two lines each, as drawn and as seen: {', '.join(ILLUSIONS)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="illusions.png", help="PNG to write")
    main(parser.parse_args().out)
