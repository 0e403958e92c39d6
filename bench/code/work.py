"""What a kernel has to do per element by docs/step.md and docs/noise.md."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from fastdiff.bench.code.instructions import VECTOR
from fastdiff.bench.code.path import Tally
from fastdiff.plan import HISTORY_SLOTS

# The terms of the sums of a step: what the first letter of their columns stands for.
_SUMS = {"p": "xo", "e": "xo0", "c": ("x", "y", "0", "e", *(f"h{k}" for k in range(HISTORY_SLOTS)), "z")}


DIVISION = 5  # fused multiply-adds of a correctly rounded one


@dataclass(frozen=True)
class Work:
    """What is done per element.

    Attributes:
        loaded, stored: bytes of image tensors.
        fma: fused multiply-adds that the documents name, those of the square root included.
        special: square roots, logarithms, sines and cosines.
        wide_products: the products of Philox that no two quads share.
        divisions: of numbers of the sample, how many a thread.
        reduces: whether threads bring together what they have. They may use shared memory, and as the order of a sum is
            not laid down, neither are its fused multiply-adds.
    """

    loaded: float
    stored: float
    fma: float = 0.0
    special: float = 0.0
    wide_products: float = 0.0
    divisions: int = 0
    reduces: bool = False

    def beside(self, loaded: float, stored: float, fma: float = 0.0, divisions: int = 0, reduces: bool = False) -> Work:
        """Return this work of normals and what is done with them."""
        return Work(loaded, stored, self.fma + fma, self.special, self.wide_products, divisions, reduces)

    def tally(self, elements: int) -> Tally:
        """Return what the main path of a thread does that has so many elements."""
        vectors = VECTOR // 8
        return Tally(
            loads=round(self.loaded * elements / vectors),
            stores=round(self.stored * elements / vectors),
            fma=round(self.fma * elements) + DIVISION * self.divisions,
        )


# Of a pair: the polynomials of the logarithm (8), the sine and the cosine (3 each), the sum under the root (1) and the
# root itself (2: it is one step of Newton's method from the approximate reciprocal root). Of a quad: 20 products of
# 32 x 32 bits, of which the first of the first two rounds depend on the sample alone.
EXACT_NORMALS = Work(0, 0, fma=(8 + 3 + 3 + 1 + 2) / 2, special=1 / 2, wide_products=18 / 4)
# Of a pair: u; logarithm, root, sine and cosine.
FAST_NORMALS = Work(0, 0, fma=1 / 2, special=4 / 2, wide_products=18 / 4)
NORMALS = {"none": Work(0, 0), "exact": EXACT_NORMALS, "fast": FAST_NORMALS}


def step(columns: Collection[str], guided: bool, network: int, normals: str) -> Work:
    """Return the work of a step whose network tensors have `network` bytes an element; it writes the next model input.

    A plan with an anchor state or a learned variance is not covered.
    """
    branches = 1 + guided
    terms = {sum_: [term for term in _SUMS[sum_] if sum_ + str(term) in columns] for sum_ in _SUMS}
    reads_x = any("x" in used for used in terms.values())
    slots_read = sum(term.startswith("h") for term in terms["c"])
    chained = sum(max(len(used) - 1, 0) for used in terms.values())
    state = 4 * (reads_x + slots_read)
    written = 4 * (1 + ("slot" in columns))
    return NORMALS[normals].beside(state + network * branches, written + network * branches, fma=guided + chained)


def normal(size: int) -> Work:
    """Return the work of normals in a tensor of so many bytes an element."""
    return EXACT_NORMALS.beside(0, size)


def q_sample(size: int) -> Work:
    """Return the work of noised data of so many bytes an element: fma(sigma, eps, alpha x0)."""
    return EXACT_NORMALS.beside(size, size, fma=1)


def noise_loss(size: int, target: bool = False) -> Work:
    """Return the work of the sums of squares; with x0 read for the target, fma(te, eps, t0 x0), where it is not eps."""
    return EXACT_NORMALS.beside(size * (1 + target), 0, fma=target, reduces=True)


def noise_loss_backward(size: int, target: bool = False) -> Work:
    """Return the work of the gradient, in the dtype of the prediction; its factor is divided by the elements."""
    return EXACT_NORMALS.beside(size * (1 + target), size, fma=target, divisions=1)


def guidance_rescale(size: int) -> Work:
    """Return the work of the moments of two outputs of so many bytes an element."""
    return Work(2 * size, 0, fma=1, reduces=True)


def inner_products(size: int) -> Work:
    """Return the work of the products of two outputs of so many bytes an element."""
    return Work(2 * size, 0, reduces=True)


def threshold(size: int) -> Work:
    """Return the work of a count over |x0|, of guided outputs of so many bytes an element."""
    return Work(4 + 2 * size, 0, fma=2, reduces=True)
