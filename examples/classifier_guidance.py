"""Digits of a network that is not told which to draw: python examples/classifier_guidance.py --out guided.png

A classifier of noised digits tells it, the more so from line to line (Dhariwal & Nichol 2021). Without --classifier a
small one is trained first; `fastdiff train --objective classifier --width 32 --steps 2000` makes a better one.
"""

import argparse
import tempfile

import torch

import fastdiff as fd
from fastdiff import pictures
from fastdiff.train import TrainConfig
from fastdiff.train.trainer import train

OMEGAS = (0.0, 1.0, 3.0, 10.0)


def small_classifier() -> fd.guidance.Classifier:
    config = TrainConfig(
        objective="classifier", width=16, attention=(False, False), lr=1e-2, steps=300, warmup=20, ema=0.9
    )
    with tempfile.TemporaryDirectory() as run:
        return fd.guidance.load_classifier(train(config, run))


def main(out: str, run: str | None) -> None:
    classifier = small_classifier() if run is None else fd.guidance.load_classifier(run)
    digits = fd.load("digits")
    plan, labels = digits.plan("ddim", steps=10), torch.arange(10)
    lines = []
    for omega in OMEGAS:
        guided = classifier.guide(digits, omega, unconditional=True)
        lines.append(fd.sample(guided, plan, (10, *digits.shape), cond={"y": labels}))
    pictures.save(torch.cat(lines), out, columns=10)
    right = [classifier.accuracy(line, labels, [0])[0] for line in lines]
    print(f"wrote {out}; a line for each omega, and how many of its digits are the ones asked for:")
    print(", ".join(f"{omega:g}: {share:.0%}" for omega, share in zip(OMEGAS, right, strict=True)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="guided.png", help="PNG to write")
    parser.add_argument("--classifier", help="run of a classifier; a small one is trained if not given")
    arguments = parser.parse_args()
    main(arguments.out, arguments.classifier)
