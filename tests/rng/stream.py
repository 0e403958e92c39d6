"""The generator's 32-bit words on standard output, for statistical testers: `python -m tests.rng.stream [COORDINATE]`.

Philox4x32-10 of 0, 1, 2, ... as a 64-bit number in two words of counter and key (docs/noise.md), the other words 0. By
default they are the quad and the draw, and the words come in the order in which a sample's normals use them; with
another coordinate it is one quad of each draw, sample or seed in turn. Little-endian, some 200 MB/s.
"""

from __future__ import annotations

import argparse
import itertools
import signal
import sys
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from fastdiff.ops.philox import MASK32, philox

# Where the 64-bit number goes among the words of counter and key; the sample has 56 bits, and the stream the rest.
FIRST_WORD = {"element": 0, "draw": 1, "sample": 2, "seed": 4}
BLOCK = 2**14  # quads at once: larger ones leave the cache


def words(coordinate: str = "element") -> Iterator[npt.NDArray[np.uint32]]:
    """Yield the words of BLOCK quads at a time, uint32 [BLOCK, 4]."""
    first = FIRST_WORD[coordinate]
    for block in itertools.count():
        number = torch.arange(block * BLOCK, (block + 1) * BLOCK)
        inputs = torch.zeros(6, BLOCK, dtype=torch.int64)
        inputs[first], inputs[first + 1] = number & MASK32, number >> 32
        c0, c1, c2, c3, k0, k1 = inputs
        yield torch.stack(philox((c0, c1, c2, c3), (k0, k1)), dim=1).numpy().astype("<u4")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the generator's 32-bit words to standard output, without end.")
    parser.add_argument(
        "coordinate", nargs="?", default="element", choices=FIRST_WORD, help="what counts (%(default)s)"
    )
    coordinate = parser.parse_args().coordinate
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # end without a word when the tester has read enough
    torch.set_num_threads(1)
    for block in words(coordinate):
        sys.stdout.buffer.write(block.data)


if __name__ == "__main__":
    main()
