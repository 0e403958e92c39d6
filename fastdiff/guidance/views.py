"""Views of an image, and a model that agrees with itself on all of them (Geng et al. 2024, visual anagrams).

Every view is orthogonal: it moves and negates elements, so that noise stays noise and its inverse undoes it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdiff.errors import InputError, whole
from fastdiff.guidance.branches import Model
from fastdiff.guidance.networks import Wrapper


class View(NamedTuple):
    """A way to look at images [B, C, ...], and the way back."""

    see: Callable[[Tensor], Tensor]
    back: Callable[[Tensor], Tensor]


identity = View(lambda x: x, lambda x: x)
negation = View(torch.neg, torch.neg)


def flip(axis: int) -> View:
    """Mirror along an axis of the image: -1 swaps left and right, -2 top and bottom. InputError if it is >= 0."""
    if axis >= 0:
        raise InputError(f"axes of an image count from its end, -1 is the last: got axis {axis}")
    return View(lambda x: x.flip(axis), lambda x: x.flip(axis))


def rotation(quarters: int) -> View:
    """Turn square images [B, C, H, H] by quarters of a circle, against the clock; others raise InputError."""

    def turn(x: Tensor, times: int) -> Tensor:
        if x.shape[-2] != x.shape[-1]:
            raise InputError(f"a rotation needs square images, got {tuple(x.shape)}")
        return x.rot90(times, (-2, -1))

    return View(lambda x: turn(x, quarters), lambda x: turn(x, -quarters))


def permutation(order: Sequence[int] | Tensor, axes: int = 2) -> View:
    """Move the positions of an image: position k shows what is at `order[k]`.

    Args:
        order: a permutation of 0..n-1, where n is the product of the last `axes` sizes, which count in C order.
        axes: how many axes at the end are positions: 2 for pixels, 1 for columns of pixels or coordinates of points.

    Raises:
        InputError: order is no permutation, or of another number of positions than an image has behind its batch.
    """
    there, axes = _checked(order), whole("axes", axes, 1)
    on = functools.cache(lambda device: (there.to(device), there.argsort().to(device)))

    def move(x: Tensor, way: int) -> Tensor:
        positions = math.prod(x.shape[1:][-axes:])
        if x.ndim <= axes or positions != len(there):
            raise InputError(f"this view permutes {len(there)} positions on {axes} axes, got images {tuple(x.shape)}")
        return x.flatten(-axes).index_select(-1, on(x.device)[way]).view(x.shape)

    return View(lambda x: move(x, 0), lambda x: move(x, 1))


def rows(order: Sequence[int] | Tensor, width: int) -> View:
    """Move the rows of images [B, C, len(order), width]. Raises InputError if order is no permutation."""
    return permutation(_checked(order)[:, None] * width + torch.arange(width))


def columns(order: Sequence[int] | Tensor) -> View:
    """Move the columns of images [B, C, H, len(order)]. Raises InputError if order is no permutation."""
    return permutation(order, axes=1)


def patches(order: Sequence[int] | Tensor, side: int, width: int) -> View:
    """Move square patches of images of `width` pixels, a jigsaw.

    Args:
        order: a permutation of the patches, which count in C order.
        side: of a patch in pixels; it divides width.
        width: of the image in pixels.

    Raises:
        InputError: order is no permutation, or the patches do not fill an image.
    """
    patch = _checked(order)
    across = width // whole("side", side, 1)
    if across * side != width or len(patch) % across:
        raise InputError(f"{len(patch)} patches of side {side} do not fill an image of width {width}")
    pixels = torch.arange(len(patch) * side * side).view(-1, side, across, side)
    moved = pixels.transpose(1, 2).flatten(0, 1)[patch].view(-1, across, side, side)
    return permutation(moved.transpose(1, 2))


def _checked(order: Sequence[int] | Tensor) -> Tensor:
    indices = torch.as_tensor(order).flatten().cpu()
    if len(indices) == 0 or not torch.equal(indices.sort().values, torch.arange(len(indices))):
        raise InputError("order must hold each of 0..n-1 once")
    return indices.long()


class Views(Wrapper):
    """A model whose noise is the mean over views, `mean_v v^-1(model(v(x)))` (Geng et al. 2024, eq. 4).

    What it draws looks right in every view. It evaluates all views as one batch; a learned variance is left out.

    Args:
        model: the network, of any prediction.
        views: what to look at, at least one; their conditions are the second axis of tensors in cond, [B, views, ...].

    Raises:
        InputError: there is no view, or the model is an Autoguidance.
    """

    def __init__(self, model: Model, views: Sequence[View]) -> None:
        super().__init__(model)
        if not views:
            raise InputError("give at least one view")
        self.views = tuple(views)

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """Return the mean, of the shape of x. Raises InputError where a condition lacks the axis of views."""
        seen = torch.cat([view.see(x) for view in self.views])
        each = {name: self._one_behind_the_other(name, value) for name, value in cond.items()}
        outs = self.model(seen, t.repeat(len(self.views)), **each)[:, : x.shape[1]].chunk(len(self.views))
        return torch.stack([view.back(out) for view, out in zip(self.views, outs, strict=True)]).mean(0)

    def _one_behind_the_other(self, name: str, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if value.ndim < 2 or value.shape[1] != len(self.views):
            raise InputError(
                f"condition {name!r} must have shape [B, {len(self.views)}, ...], one for each view, "
                f"got {tuple(value.shape)}"
            )
        return value.transpose(0, 1).flatten(0, 1)
