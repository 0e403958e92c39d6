"""Pictures: where each pixel of a sample goes, and that the file is a PNG or is not there."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fastdiff import pictures
from fastdiff.errors import InputError, MissingDependencyError
from fastdiff.score_field import ScoreField


def pixels(image: Image.Image) -> npt.NDArray[np.uint8]:
    return np.asarray(image)


def test_to_uint8_rounds_to_the_nearest_and_clamps() -> None:
    """-1, 0 and 1 are 0, 128 (127.5 rounded to even) and 255; values outside are clamped, not wrapped around."""
    x = torch.tensor([-1.0, 0.0, 1.0, -3.0, 7.0, 1 - 2 / 255, 1 - 2.9 / 255])
    assert pictures.to_uint8(x).tolist() == [0, 128, 255, 0, 255, 254, 254]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_to_uint8_does_not_round_twice(dtype: torch.dtype) -> None:
    """Values stored in low precision become the same bytes as in float32: the arithmetic rounds nothing more."""
    x = torch.linspace(-1, 1, 1001).to(dtype)
    assert torch.equal(pictures.to_uint8(x), pictures.to_uint8(x.float()))


@settings(deadline=None, max_examples=30)
@given(
    number=st.integers(1, 7),
    columns=st.integers(1, 5),
    channels=st.sampled_from([1, 3]),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
)
def test_every_sample_has_its_tile(number: int, columns: int, channels: int, height: int, width: int) -> None:
    """Tiles stand in reading order, enlarged by one whole factor to at least 32 pixels; all else is black."""
    x = torch.rand(number, channels, height, width, generator=torch.Generator().manual_seed(number)) * 2 - 1
    shown = pixels(pictures.grid(x, columns))
    shown = shown.reshape(*shown.shape[:2], channels)
    factor = next(f for f in range(1, 33) if min(height, width) * f >= 32)
    rows = (number + columns - 1) // columns
    gap = shown.shape[0] - rows * height * factor
    assert gap % (rows + 1) == 0, "gaps above, below and between rows are equal"
    gap //= rows + 1
    assert gap >= 1
    assert shown.shape[:2] == (rows * (height * factor + gap) + gap, columns * (width * factor + gap) + gap)
    rest = shown.copy()
    for i in range(number):
        top = gap + i // columns * (height * factor + gap)
        left = gap + i % columns * (width * factor + gap)
        area = (slice(top, top + height * factor), slice(left, left + width * factor))
        bytes_ = np.rint((x[i].numpy().astype(np.float64) + 1) * 127.5)
        expected = np.kron(bytes_.transpose(1, 2, 0), np.ones((factor, factor, 1)))
        # (x + 1) * 127.5 in float32 can fall on the other side of a half than in float64.
        assert np.abs(shown[area] - expected).max() <= 1
        assert (np.abs(shown[area] - expected) > 0).mean() < 0.01
        rest[area] = 0
    assert not rest.any()


def test_grid_of_digits_by_hand() -> None:
    """Three 8x8 images in two columns: enlarged by 4, 2 pixels apart, the fourth place empty."""
    x = torch.stack([torch.full((1, 8, 8), value) for value in (-1.0, 1.0, 0.0)])
    image = pictures.grid(x, 2)
    assert (image.size, image.mode) == ((70, 70), "L")
    shown = pixels(image)
    assert (shown[2:34, 36:68] == 255).all()
    assert (shown[36:68, 2:34] == 128).all()
    assert shown.astype(int).sum() == 32 * 32 * (255 + 128)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_file_is_a_png_of_the_grid(tmp_path: Path, channels: int, mode: str) -> None:
    """Pillow opens it, in grayscale or colour, with the pixels of the grid."""
    x = torch.rand(4, channels, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    pictures.save(x, tmp_path / "new" / "grid.PNG", columns=4)
    with Image.open(tmp_path / "new" / "grid.PNG") as image:
        image.load()
        assert (image.format, image.mode) == ("PNG", mode)
        assert (pixels(image) == pixels(pictures.grid(x, 4))).all()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["grid.PNG"]


def test_points_are_scattered_where_they_are(tmp_path: Path) -> None:
    """Points of two clusters give a PNG with ink in two opposite corners of the plot and none in the other two."""
    cluster = torch.randn(200, 2, generator=torch.Generator().manual_seed(0)) * 0.05
    pictures.save(torch.cat([cluster - 1, cluster + 1]), tmp_path / "points.png", columns=1)
    with Image.open(tmp_path / "points.png") as image:
        assert image.format == "PNG"
        colored = pixels(image.convert("HSV"))[..., 1] > 60  # points have a colour, axes and text have none
    height, width = (side // 2 for side in colored.shape)
    corners = {
        name: int(colored[rows, columns].sum())
        for name, rows, columns in [
            ("upper left", slice(height), slice(width)),
            ("upper right", slice(height), slice(width, None)),
            ("lower left", slice(height, None), slice(width)),
            ("lower right", slice(height, None), slice(width, None)),
        ]
    }
    assert min(corners["upper right"], corners["lower left"]) > 50, corners
    assert corners["upper left"] == corners["lower right"] == 0, corners


@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 2, 8, 8), (4, 1, 8), (2, 3, 1, 8, 8)])
def test_shape_that_is_no_picture_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """Neither images nor points: the error names the shape, and no file appears."""
    with pytest.raises(InputError, match="no picture of shape"):
        pictures.save(torch.zeros(shape), tmp_path / "x.png", columns=2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["x.jpg", "x", "x.png.gz", "png"])
def test_name_that_is_no_png_is_refused(tmp_path: Path, name: str) -> None:
    """The error says which ending is right, and no file appears."""
    with pytest.raises(InputError, match=r"\.png"):
        pictures.save(torch.zeros(1, 1, 8, 8), tmp_path / name, columns=1)
    assert not list(tmp_path.iterdir())


def test_points_without_matplotlib_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the optional library is missing, the error names it and an older picture stays."""
    (tmp_path / "x.png").write_bytes(b"older")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match="pip install matplotlib"):
        pictures.save(torch.zeros(4, 2), tmp_path / "x.png", columns=1)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"older"]


# --- score fields


def field(score: torch.Tensor) -> ScoreField:
    """Arrows on a lattice over the square [-1, 1]^2, with no data but its corners."""
    line = torch.linspace(-1, 1, 9)
    corners = torch.tensor([[-1.0, -1.0], [1.0, 1.0]])
    return ScoreField(0.3, corners, torch.cartesian_prod(line, line), score)


def test_score_fields_stand_between_data_and_samples(tmp_path: Path) -> None:
    """Five squares side by side; points are coloured in the first and last, arrows black on grey in between."""
    cluster = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    fields = [field(torch.ones(81, 2)) for _ in range(3)]
    pictures.save_score_fields(fields, cluster, cluster + 1, tmp_path / "field.png")
    with Image.open(tmp_path / "field.png") as image:
        assert (image.format, image.size) == ("PNG", (5 * 480, 480))
        colored = pixels(image.convert("HSV"))[..., 1] > 60
    ink = [int(part.sum()) for part in np.array_split(colored, 5, axis=1)]
    assert min(ink[0], ink[4]) > 500
    assert ink[1] == ink[2] == ink[3] == 0


def test_arrows_are_as_long_as_the_score(tmp_path: Path) -> None:
    """Of a score that is small but in the lower left, the ink is there: arrows, and elsewhere dots."""
    points = field(torch.zeros(81, 2)).points
    score = torch.where((points < -0.2).all(dim=1, keepdim=True), 1.0, 1e-6).expand(81, 2)
    pictures.save_score_fields([field(score)], points, points, tmp_path / "field.png")
    with Image.open(tmp_path / "field.png") as image:
        dark = pixels(image.convert("L"))[50:420, 540:910] < 100  # within the middle plot's frame
    upper, lower = (np.array_split(half, 2, axis=1) for half in np.array_split(dark, 2))
    assert lower[0].sum() > 1.5 * max(part.sum() for part in (*upper, lower[1]))


def test_score_field_is_no_png_or_nothing(tmp_path: Path) -> None:
    """As other pictures."""
    with pytest.raises(InputError, match=r"\.png"):
        pictures.save_score_fields([], torch.zeros(4, 2), torch.zeros(4, 2), tmp_path / "field.jpg")
    assert not list(tmp_path.iterdir())
