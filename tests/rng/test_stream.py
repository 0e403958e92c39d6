"""What external testers read: the words from which the normals are made, in their order."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

import fastdiff as fd
from fastdiff.ops.philox import normal_pair
from tests.rng.stream import FIRST_WORD, words

N = 32


@pytest.mark.parametrize("coordinate", FIRST_WORD)
def test_words_of_the_normals(coordinate):
    """Box-Muller of the words gives the noise at the same seeds, samples, draws and elements, bit by bit."""
    o0, o1, o2, o3 = torch.from_numpy(next(words(coordinate))[:N].astype(np.int64)).T
    z = torch.stack([*normal_pair(o0, o1), *normal_pair(o2, o3)], dim=1)
    counted = {"element": {}, "draw": {"step": range(N)}, "sample": {"index": range(N)}, "seed": {"seed": range(N)}}
    shape = (1, 4 * N) if coordinate == "element" else (N, 4)
    expected = fd.noise.normal(shape, **{"index": [0] * len(range(shape[0])), **counted[coordinate]})
    assert torch.equal(z, expected.view(N, 4))


def test_ends_with_its_reader():
    """A tester that has read enough ends the stream without a message; the first words are Philox's known answer."""
    command = [sys.executable, "-m", "tests.rng.stream"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as stream:
        assert stream.stdout.read(16) == np.array([0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8], "<u4").tobytes()
        stream.stdout.close()
        assert stream.stderr.read() == b""
