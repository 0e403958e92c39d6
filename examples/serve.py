"""A batch that refills itself while requests come in: python examples/serve.py --out serve.png"""

import argparse
from collections.abc import Iterator

import torch

import fastdiff as fd
from fastdiff import pictures


def requests() -> Iterator[fd.Request | None]:
    """One digit after another, each a few rows of the batch after the one before and with a guidance of its own."""
    for number in range(12):
        yield fd.Request(seed=number, cond={"y": torch.tensor(number % 10)}, guidance=1.0 + number / 6)
        yield from [None] * (number % 4)


def main(out: str) -> None:
    digits = fd.load("digits")
    plan = digits.plan("ddim", steps=10)
    images = []
    for request, image in fd.serve(digits.model, plan, digits.shape, requests(), slots=4, guidance=2.0):
        if isinstance(image, fd.FastdiffError):  # of this request alone: the others go on
            raise image
        images.append(image)
        alone = fd.sample(
            *(digits.model, plan, (1, *digits.shape)),
            seed=request.seed,
            cond={"y": request.cond["y"][None]},
            guidance=request.guidance,
        )
        # The network rounds in another order for another batch; the steps do not.
        assert (image - alone[0]).abs().max() < 1e-3
    pictures.save(torch.stack(images), out, columns=6)
    print(f"wrote {out}: {len(images)} samples, each the one that is drawn alone")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="serve.png", help="PNG to write")
    main(parser.parse_args().out)
