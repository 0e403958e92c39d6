"""Digits under several rules of guidance, one a line: python examples/guidance.py --out guidance.png"""

import argparse

import torch

import fastdiff as fd
from fastdiff import pictures

RULES = {
    "none": 1.0,
    "w = 4": fd.guidance.scale(omega=3.0),  # by its name in Ho & Salimans 2022: w = 1 + omega
    "interval": fd.guidance.CFG(4.0, interval=(0.3, 3.0)),  # of sigma / alpha
    "of the level": lambda level: 1.0 + 3.0 * min(level, 1.0),
    "APG": fd.guidance.APG(4.0, norm=4.0, momentum=-0.5),  # on what the network predicts, here v
    "CFG-Zero*": fd.guidance.CFGZero(4.0, zero_rows=0),  # made for flows; here the scale of u alone
}


def main(out: str) -> None:
    digits = fd.load("digits")
    plan = digits.plan("ddim", steps=10)
    cond = {"y": torch.arange(10)}
    lines = [fd.sample(digits.model, plan, (10, *digits.shape), cond=cond, guidance=rule) for rule in RULES.values()]
    pictures.save(torch.cat(lines), out, columns=10)
    print(f"wrote {out}, from above: {', '.join(RULES)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="guidance.png", help="PNG to write")
    main(parser.parse_args().out)
