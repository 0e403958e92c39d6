"""Samples as a PNG: a grid of images, or a scatter plot of points; score fields."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from fastdiff.errors import InputError, MissingDependencyError
from fastdiff.files import check_folder, replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from fastdiff.score_field import ScoreField

SMALLEST_TILE = 32  # pixels: smaller images are enlarged to at least this


def save(x: Tensor, path: str | Path, columns: int) -> None:
    """Write samples as a PNG, whole or not at all.

    Args:
        x: images [B, 1 or 3, H, W] in [-1, 1], `columns` in a row; or points [B, 2].
        path: the file.

    Raises:
        InputError: x is neither; or the path is no PNG.
        MissingDependencyError: points need matplotlib.
    """
    with replacing(checked(path)) as temporary:
        if x.ndim == 4 and x.shape[1] in (1, 3):
            grid(x, columns).save(temporary, format="PNG")
        elif x.ndim == 2 and x.shape[1] == 2:
            _scatter(x, temporary)
        else:
            raise InputError(f"no picture of shape {tuple(x.shape)}: give images [B, 1 or 3, H, W] or points [B, 2]")


def checked(path: str | Path) -> Path:
    """Return a path that a picture can have. Raises InputError if it is no .png or its folder cannot be made."""
    file = Path(path)
    if file.suffix.lower() != ".png":
        raise InputError(f"pictures are written as PNG: {file} should end in .png")
    if file.is_dir():
        raise InputError(f"{file} is a folder: choose another name")
    check_folder(file.parent)
    return file


def to_uint8(x: Tensor) -> Tensor:
    """Return floats in [-1, 1], of any shape, as uint8 in 0..255, rounded to nearest and clamped.

    Raises:
        InputError: x does not hold floats.
    """
    if not x.is_floating_point():
        raise InputError(f"to_uint8 takes floats in [-1, 1], not {x.dtype}: scale the images first")
    return ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def grid(x: Tensor, columns: int) -> Image.Image:
    """Return images [B, 1 or 3, H, W] in [-1, 1] side by side, enlarged by a whole factor if small."""
    height, width = x.shape[2:]
    factor = max(1, -(-SMALLEST_TILE // min(height, width)))
    gap = max(1, height * factor // 16)
    rows = -(-len(x) // columns)
    tiles = to_uint8(x).repeat_interleave(factor, 2).repeat_interleave(factor, 3).cpu()
    tall, wide = height * factor + gap, width * factor + gap
    canvas = torch.zeros(x.shape[1], rows * tall + gap, columns * wide + gap, dtype=torch.uint8)
    for number, tile in enumerate(tiles):
        top, left = number // columns * tall + gap, number % columns * wide + gap
        canvas[:, top : top + height * factor, left : left + width * factor] = tile
    pixels = canvas.permute(1, 2, 0).squeeze(2).numpy()
    return Image.fromarray(pixels)


def save_score_fields(fields: Sequence[ScoreField], data: Tensor, samples: Tensor, path: str | Path) -> None:
    """Write data, score fields and samples side by side as a PNG, whole or not at all.

    Args:
        fields: the score at some levels, drawn as arrows over the data noised to them; lengths are to one scale within
            a level.
        data, samples: points [N, 2].
        path: the file.

    Raises:
        InputError: the path is no PNG.
        MissingDependencyError: matplotlib is missing.
    """
    with replacing(checked(path)) as temporary:
        figure = _figure(len(fields) + 2)
        first, *middle, last = figure.axes
        _points(first, data, "data")
        _points(last, samples, "samples")
        for axes, field in zip(middle, fields, strict=True):
            _points(axes, field.noised, f"score at sigma = {field.sigma:.3g}", color="lightgray")
            axes.quiver(*field.points.cpu().numpy().T, *field.score.cpu().numpy().T)
        figure.savefig(temporary, dpi=120, format="png")


def _scatter(x: Tensor, file: Path) -> None:
    figure = _figure(1)
    _points(figure.axes[0], x)
    figure.savefig(file, dpi=120, format="png")


def _points(axes: Axes, x: Tensor, title: str = "", color: str | None = None) -> None:
    horizontal, vertical = x.cpu().numpy().T
    axes.scatter(horizontal, vertical, s=2, color=color)
    axes.set_title(title)


def _figure(plots: int) -> Figure:
    """Return a figure of plots side by side, each 4 inches square."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingDependencyError("plots of points need matplotlib: pip install matplotlib") from None
    figure = Figure(figsize=(4 * plots, 4), layout="constrained")
    for place in range(plots):
        figure.add_subplot(1, plots, place + 1, aspect="equal")
    return figure
