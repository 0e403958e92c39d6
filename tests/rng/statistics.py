"""Statistics of numbers that should be independent N(0, 1), gathered block by block."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from scipy import special, stats
from torch import Tensor

from tests.rng import nulls
from tests.rng.nulls import Array, PValues

ORDERS = 8
MOMENTS = np.array([stats.norm.moment(k) for k in range(2 * ORDERS + 1)])  # the error of order k needs order 2k

# A fine bin holds the 2^14 floats that share their sign, exponent and first 9 bits of mantissa: wide enough not to
# resolve the generator's own grid, with edges that are exact.
SHIFT = 14
FINITE = 0x7F800000 >> SHIFT  # fine bins of one sign, up to infinity
SIGN = 1 << (31 - SHIFT)
COARSE = 4096

TAILS = (3.0, 4.0, 5.0, 6.0)  # edges of fine bins
FRAME = 64
LAGS = [2**k for k in range(6, 21)]
CLASSES = 16  # of each of four normals, equally probable
POLAR = 64  # classes of angle, and of radius
CHUNK = 2**16  # small enough for a core's own cache


class Statistics:
    """All that is gathered of a sequence in one pass; `add` it block by block, then ask for p-values by name."""

    def __init__(self) -> None:
        self.n = 0
        self.powers = torch.zeros(ORDERS, dtype=torch.float64)
        self.histogram = torch.zeros(2 * SIGN, dtype=torch.int64)
        self.quad_counts = torch.zeros(CLASSES**4, dtype=torch.int64)
        self.gram = torch.zeros(2 * FRAME, 2 * FRAME, dtype=torch.float64)
        self.products = torch.zeros(2, len(LAGS), dtype=torch.float64)
        self.pairs = torch.zeros(len(LAGS), dtype=torch.float64)

    def add(self, z: Tensor) -> None:
        """Count in the next part of the sequence, float32 [n], n a multiple of FRAME and longer than the last lag."""
        self.n += len(z)
        for chunk in z.split(CHUNK):
            self.powers += power_sums(chunk)
            self.gram += gram(chunk.view(-1, FRAME).T)
        self.histogram += torch.bincount((z.view(torch.int32) >> SHIFT) & (2 * SIGN - 1), minlength=2 * SIGN)
        self.quad_counts += torch.bincount(quad_cells(z), minlength=CLASSES**4)
        for i, values in enumerate((z, hermite2(z))):
            self.products[i] += torch.stack([torch.dot(values[lag:], values[:-lag]) for lag in LAGS])
        self.pairs += torch.tensor([len(z) - lag for lag in LAGS])

    def moments(self) -> PValues:
        """Moments 1 to 8 about zero; order k has variance (mu_2k - mu_k^2) / n."""
        orders = np.arange(1, ORDERS + 1)
        errors = np.sqrt((MOMENTS[2 * orders] - MOMENTS[orders] ** 2) / self.n)
        scores = (self.powers.numpy() / self.n - MOMENTS[orders]) / errors
        return {f"moment {k}": nulls.of_score(score) for k, score in zip(orders, scores, strict=True)}

    def distribution(self) -> PValues:
        """Chi-square over 3,652 bins of about equal probability, and Kolmogorov-Smirnov at the edges of all fine bins.

        The distance within a bin is not seen, so Kolmogorov's p-value is an upper bound.
        """
        counts, cdf = self._fine_bins()
        below = np.cumsum(counts)
        last = np.unique(np.searchsorted(cdf, np.arange(1, COARSE + 1) / COARSE))
        distance = np.abs(below / self.n - cdf).max()
        return {
            "chi-square": nulls.of_cells(np.diff(below[last], prepend=0), np.diff(cdf[last], prepend=0)),
            "Kolmogorov-Smirnov": float(special.kolmogorov(distance * np.sqrt(self.n))),
        }

    def tails(self) -> PValues:
        """How many |z| reach 3, 4, 5 and 6."""
        magnitudes = (self.histogram[:SIGN] + self.histogram[SIGN:]).numpy()
        p_values = {}
        for edge in TAILS:
            count = int(magnitudes[int(np.float32(edge).view(np.uint32)) >> SHIFT :].sum())
            p_values[f"beyond {edge:g}"] = nulls.of_count(count, self.n, special.erfc(edge / np.sqrt(2)))
        return p_values

    def quads(self) -> PValues:
        """The joint distribution of each four in turn over 16^4 cells, of their signs, and of two and three of them."""
        table = self.quad_counts.numpy().reshape(4 * [CLASSES])
        p_values = {"signs": nulls.of_cells(table.reshape(4 * [2, CLASSES // 2]).sum(axis=(1, 3, 5, 7)))}
        for summed in [(), *((i,) for i in range(4)), *((i, j) for i in range(4) for j in range(i))]:
            kept = "".join(str(i) for i in range(4) if i not in summed)
            p_values[f"places {kept}"] = nulls.of_cells(table.sum(axis=summed))
        return p_values

    def correlations(self) -> PValues:
        """z and (z^2 - 1) / sqrt 2 at any two places of a frame, one by one and summed over places of equal lag."""
        frames = self.n // FRAME
        blocks = self.gram.numpy().reshape(2, FRAME, 2, FRAME)
        by_lag = [
            np.trace(blocks[i, :, j], offset=lag) / np.sqrt(frames * (FRAME - lag))
            for i in range(2)
            for j in range(2)
            for lag in range(1, FRAME)
        ]
        return {**uncorrelated(self.gram, frames), **nulls.of_scores("lags 1 to 63", np.array(by_lag))}

    def long_lags(self) -> PValues:
        """Serial correlation of z and of (z^2 - 1) / sqrt 2 at lags 64, 128, ... 2^20."""
        return nulls.of_scores("lags 64 to 2^20", (self.products / self.pairs.sqrt()).numpy().ravel())

    def _fine_bins(self) -> tuple[npt.NDArray[np.int64], Array]:
        """Return the counts of the fine bins in order of value, and N(0, 1)'s cdf at the upper edge of each."""
        edges = (np.arange(FINITE + 1, dtype=np.uint32) << SHIFT).view(np.float32).astype(np.float64)
        positive, negative = (half[:FINITE].numpy() for half in (self.histogram[:SIGN], self.histogram[SIGN:]))
        counts = np.concatenate([negative[::-1], positive])
        assert counts.sum() == self.n, "a number is not finite"
        return counts, special.ndtr(np.concatenate([-edges[FINITE - 1 :: -1], edges[1:]]))


def power_sums(z: Tensor) -> Tensor:
    """Return the sums of z^1 to z^8, float64."""
    base = z.double()
    power = torch.ones_like(base)
    return torch.stack([power.mul_(base).sum() for _ in range(ORDERS)])


def hermite2(z: Tensor) -> Tensor:
    """Return (z^2 - 1) / sqrt 2, which has mean 0 and variance 1 and is uncorrelated with z."""
    return (z * z - 1) * 0.5**0.5


def gram(z: Tensor) -> Tensor:
    """Return the sums of products, float64 [2k, 2k], of k variables z [k, n] and of their hermite2."""
    features = torch.cat([z, hermite2(z)])
    return (features @ features.T).double()


def uncorrelated(products: Tensor, n: int) -> PValues:
    """Test that k variables are uncorrelated, by their `gram`: a sum of n products has mean 0 and variance n.

    Sums that share a variable depend on each other a little: the variance of the sum of squares is larger than is
    assumed by 16 k / n, here at most 3 %.
    """
    k = len(products) // 2
    first, second = np.triu_indices(2 * k, 1)
    different = first % k != second % k
    return nulls.of_scores("correlations", products.numpy()[first, second][different] / np.sqrt(n))


def quad_cells(z: Tensor) -> Tensor:
    """Return the cell, int32 [n / 4], of each four normals in turn; the CLASSES^4 cells are equally probable."""
    # float32 moves an edge by 1e-7 of probability, and so a count of 2^27 draws by 1/200 of its standard deviation.
    classes = (torch.erf(z * 0.5**0.5) * (CLASSES / 2) + CLASSES / 2).int().clamp_(max=CLASSES - 1)
    first, second, third, fourth = (classes[i::4] for i in range(4))
    return ((first * CLASSES + second) * CLASSES + third) * CLASSES + fourth


def polar_cells(x: Tensor, y: Tensor) -> Tensor:
    """Return the cell, int32 [n], of two normals by angle and radius; the POLAR^2 cells are equally probable."""
    angle = torch.atan2(y, x) * (0.5 / math.pi) + 0.5
    radius = torch.exp(-0.5 * (x * x + y * y))
    first, second = ((u * POLAR).int().clamp_(max=POLAR - 1) for u in (angle, radius))
    return first * POLAR + second
