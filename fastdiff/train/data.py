"""Training data by a one-string name: bundled digits, 2-D toys, a folder of images, a Hugging Face data set on disk.

Images are float32 in [-1, 1], channels first; `to_uint8` is the way back. Nothing here touches the network.
"""

from __future__ import annotations

import hashlib
import importlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset
from tqdm import tqdm

from fastdiff.errors import InputError, MissingDependencyError, lookup

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")


@dataclass(frozen=True)
class Data:
    """One split of a data set.

    `dataset[i]` is `(x, label)`: `x` float32 of `shape`, which is `(C, H, W)` with values in [-1, 1] for images and
    `(2,)` for points; `label` an int64 scalar below `len(classes)`, or always 0 where `classes` is empty, as it is for
    unlabelled data. `skipped` counts the files of this split that were left out because they could not be read.
    """

    name: str
    dataset: Dataset[tuple[Tensor, ...]]
    shape: tuple[int, ...]
    classes: tuple[str, ...]
    skipped: int = 0

    def __len__(self) -> int:
        return len(cast(Sized, self.dataset))


def load(spec: str, *, split: str = "train", size: int | None = None, channels: int | None = None) -> Data:
    """Return one split ("train" or "held-out") of the data that `spec` names.

    | spec | shape | what it is | held-out split |
    |---|---|---|---|
    | `digits` | (1, 8, 8) | scikit-learn's 1,797 handwritten digits (UCI test set), 10 classes | 360, stratified |
    | `swiss_roll`, `checkerboard` | (2,) | 20,000 points, unlabelled | 5,000 more points |
    | `moons`, `gaussian_mixture` | (2,) | 20,000 points, 2 and 8 classes | 5,000 more points |
    | `folder:PATH` | (channels, size, size) | every image under PATH; a first-level subfolder is a class | 1 in 10 |
    | `hf:PATH` | (channels, size, size) | a Hugging Face data set saved at PATH | its "test" or "validation" |

    Points have zero mean and a variance near 1 on each axis. `size` (default 32) and `channels` (3, the default, or
    1) are for images on disk: the centred square is resized to `size`, and transparent parts are laid on white.

    `folder:` reads png, jpg, jpeg, webp, bmp and gif files and passes over names that begin with a dot. One image
    directly in PATH makes all of it unlabelled. Of each class a tenth, rounded down, is held out: the files with the
    lowest SHA-256 of their path below PATH. So classes and splits depend on names alone. Every file of the split is
    decoded once to find the unreadable ones, which `skipped` counts; after that files are decoded on demand.

    `hf:` reads what `save_to_disk` wrote, and takes the first `datasets.Image` and the first `datasets.ClassLabel`
    column. A plain `Dataset` is a train split with nothing held out.

    Raises `InputError` for an unknown name or split, a bad size, or a path without usable images, and
    `MissingDependencyError` where the data needs a library that is not installed.
    """
    held_out = lookup("split", split, {"train": False, "held-out": True})
    kind, colon, path = spec.partition(":")
    key = f"{kind}:PATH" if colon else kind
    lookup("data", key, {**_BUILT_IN, **_ON_DISK})
    if key in _BUILT_IN:
        if size is not None or channels is not None:
            raise InputError(f"{key} comes in one shape only: leave size and channels out")
        return _BUILT_IN[key](held_out)
    size = 32 if size is None else size
    channels = 3 if channels is None else channels
    if size < 1:
        raise InputError(f"size {size} is too small: give the side of the images in pixels, 1 or more")
    if channels not in (1, 3):
        raise InputError(f"channels {channels} is not possible: give 1 (grayscale) or 3 (RGB)")
    if not path:
        raise InputError(f"{spec!r} has no path: write {key}")
    root = Path(path).expanduser()
    if not root.is_dir():
        problem = "is not a folder" if root.exists() else "does not exist"
        raise InputError(f"{root} {problem}: give the path of the folder that holds the data")
    dataset, classes, skipped = _ON_DISK[key](root, held_out, size, channels)
    return Data(spec, dataset, (channels, size, size), classes, skipped)


def to_uint8(x: Tensor) -> Tensor:
    """Turn floats in [-1, 1], of any shape, into uint8 in 0..255: rounded to nearest, and clamped.

    NaN is unspecified. The inverse of the scaling that `load` applies. Raises `InputError` if `x` does not hold floats.
    """
    if not x.is_floating_point():
        raise InputError(f"to_uint8 takes floats in [-1, 1], not {x.dtype}: scale the images first")
    return ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def batches(dataset_length: int, batch_size: int, seed: int, start: int = 0) -> Iterator[Ints]:
    """Return the endless stream of training batches from step `start` on: int64 arrays of `batch_size` indices.

    Epoch `e` is the permutation drawn by `numpy.random.default_rng([seed, e])`. Epochs follow each other without a
    gap, so no batch is short and one may span several: position `i` of step `s` is item `p % n` of epoch `p // n`,
    where `p = s * batch_size + i` and `n = dataset_length`. Starting late replays nothing and gives what came there
    the first time.

    Raises `InputError` if a length is below 1, or the seed or the start below 0.
    """
    for name, value, least in (
        ("dataset_length", dataset_length, 1),
        ("batch_size", batch_size, 1),
        ("seed", seed, 0),
        ("start", start, 0),
    ):
        if value < least:
            raise InputError(f"{name} {value} is too small: give {least} or more")

    def permutation(epoch: int) -> Ints:
        return np.random.default_rng([seed, epoch]).permutation(dataset_length)

    def stream() -> Iterator[Ints]:
        epoch, offset = divmod(start * batch_size, dataset_length)
        pending = permutation(epoch)[offset:]
        while True:
            while len(pending) < batch_size:
                epoch += 1
                pending = np.concatenate([pending, permutation(epoch)])
            yield pending[:batch_size]
            pending = pending[batch_size:]

    return stream()


def _require(module: str, extra: str) -> Any:
    """Import an optional library, or say how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        message = f"this data needs {module} ({error}): pip install 'fastdiff-sampler[{extra}]'"
        raise MissingDependencyError(message) from error


def _digits(held_out: bool) -> Data:
    bundled = _require("sklearn.datasets", "train").load_digits()
    train_test_split = _require("sklearn.model_selection", "train").train_test_split
    parts = train_test_split(np.arange(len(bundled.target)), test_size=360, stratify=bundled.target, random_state=0)
    chosen = parts[int(held_out)]
    x = torch.from_numpy(bundled.images[chosen] / 8 - 1).float().unsqueeze(1)
    labels = torch.from_numpy(bundled.target[chosen]).long()
    return Data("digits", TensorDataset(x, labels), (1, 8, 8), tuple("0123456789"))


# The scales of the points are fixed numbers, never measured, so that both splits share them.


def _swiss_roll(rng: np.random.Generator, count: int) -> tuple[Floats, Ints]:
    """A spiral of one and a half turns: t in [1.5 pi, 4.5 pi] is angle and radius, noise 0.3; centred, over 7."""
    t = rng.uniform(1.5 * np.pi, 4.5 * np.pi, count)
    spiral = np.stack([t * np.cos(t), t * np.sin(t)], axis=1) + 0.3 * rng.standard_normal((count, 2))
    return (spiral - [2.0, 0.2]) / 7, np.zeros(count, np.int64)


def _moons(rng: np.random.Generator, count: int) -> tuple[Floats, Ints]:
    """Two interleaved half circles of radius 1, noise 0.05; centred, over (0.87, 0.5)."""
    label = rng.integers(2, size=count)
    t = rng.uniform(0, np.pi, count)
    upper = np.stack([np.cos(t), np.sin(t)], axis=1)
    moon = np.where(label[:, None] == 0, upper, [1.0, 0.5] - upper) + 0.05 * rng.standard_normal((count, 2))
    return (moon - [0.5, 0.25]) / [0.87, 0.5], label


def _gaussian_mixture(rng: np.random.Generator, count: int) -> tuple[Floats, Ints]:
    """Eight Gaussians of standard deviation 0.1 on a ring of radius sqrt(2), where each axis has variance 1.01."""
    label = rng.integers(8, size=count)
    angle = label * np.pi / 4
    centre = np.sqrt(2) * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return centre + 0.1 * rng.standard_normal((count, 2)), label


def _checkerboard(rng: np.random.Generator, count: int) -> tuple[Floats, Ints]:
    """The black squares of a 4 x 4 board of side 2 sqrt(3), where each axis has variance 1."""
    column = rng.integers(4, size=count)
    row = 2 * rng.integers(2, size=count) + column % 2
    board = np.stack([column, row], axis=1) + rng.uniform(size=(count, 2))
    return (board - 2) * (np.sqrt(3) / 2), np.zeros(count, np.int64)


def _points(
    name: str, draw: Callable[[np.random.Generator, int], tuple[Floats, Ints]], classes: tuple[str, ...]
) -> Callable[[bool], Data]:
    def build(held_out: bool) -> Data:
        x, labels = draw(np.random.default_rng(int(held_out)), 5_000 if held_out else 20_000)
        return Data(name, TensorDataset(torch.from_numpy(x).float(), torch.from_numpy(labels)), (2,), classes)

    return build


def _read(file: Path | BytesIO, name: str, size: int) -> Image.Image:
    """Decode an image, upright; a large JPEG may come smaller than it is, but not below twice `size`.

    Raises `InputError` that names the image, whatever is wrong with the file.
    """
    try:
        with Image.open(file) as image:
            # JPEG decodes at 1/2, 1/4 or 1/8 for a fraction of the time; twice the size leaves the resize its pixels.
            image.draft(None, (2 * size, 2 * size))
            image.load()
            return ImageOps.exif_transpose(image)
    # On damaged files Pillow raises nearly any type; its guard against decompression bombs has one of its own.
    except Exception as error:
        raise InputError(f"cannot read the image {name} ({error}): replace or remove it") from error


def _to_tensor(image: Image.Image, size: int, channels: int) -> Tensor:
    """Return the centred square of an image, resized, as float32 (channels, size, size) in [-1, 1]."""
    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip to 8 instead of scaling
        image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    side = min(image.size)
    # Whole pixels: an image that has the size already is cut and not blurred.
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = (left, top, left + side, top + side)
    image = image.convert("L" if channels == 1 else "RGB").resize((size, size), Image.Resampling.LANCZOS, square)
    pixels = torch.from_numpy(np.array(image)).view(size, size, channels)
    return pixels.permute(2, 0, 1).contiguous().float() / 127.5 - 1


class _Images(Dataset[tuple[Tensor, ...]]):
    """Images decoded on demand; `files[i]` is what to read."""

    def __init__(self, files: Sequence[Path] | _Rows, labels: Ints, size: int, channels: int) -> None:
        self.files, self.labels, self.size, self.channels = files, torch.from_numpy(labels), size, channels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        file = self.files[index]
        name = str(file) if isinstance(file, Path) else f"in row {index}"
        return _to_tensor(_read(file, name, self.size), self.size, self.channels), self.labels[index]


class _Rows:
    """The undecoded image column of a `datasets.Dataset`."""

    def __init__(self, rows: Any, column: str) -> None:
        self.rows, self.column = rows, column

    def __getitem__(self, index: int) -> Path | BytesIO:
        image = self.rows[index][self.column] or {"bytes": b"", "path": None}
        return Path(image["path"]) if image["bytes"] is None else BytesIO(image["bytes"])


def _folder(root: Path, held_out: bool, size: int, channels: int) -> tuple[_Images, tuple[str, ...], int]:
    names = _image_names(root)
    if not names:
        raise InputError(f"{root} holds no image: put {', '.join(SUFFIXES)} files there")
    labelled = all("/" in name for name in names)
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.partition("/")[0] if labelled else "", []).append(name)

    chosen = [(name, label) for label, key in enumerate(sorted(groups)) for name in _share(groups[key], held_out)]
    if not chosen:
        raise InputError(f"{root} has nothing to hold out, as each class has fewer than 10 images: add some to it")
    files, labels = [], []
    for name, label in tqdm(chosen, desc=f"checking {root}", unit=" images", disable=None):
        try:
            _read(root / name, name, size)
        except InputError:
            continue
        files.append(root / name)
        labels.append(label)
    if not files:
        raise InputError(f"{root} holds no readable image, all {len(chosen)} tried are damaged: put image files there")
    images = _Images(files, np.array(labels, np.int64), size, channels)
    return images, tuple(sorted(groups)) if labelled else (), len(chosen) - len(files)


def _image_names(root: Path) -> list[str]:
    """The sorted paths below `root`, with forward slashes, of what is named like an image."""
    # rglob does not follow links to folders, yet a class folder is often one: so it starts inside each of them.
    found = (file for top in root.iterdir() for file in (top.rglob("*") if top.is_dir() else [top]))
    names = (file.relative_to(root) for file in found if file.suffix.lower() in SUFFIXES and file.is_file())
    return sorted(name.as_posix() for name in names if not any(part.startswith(".") for part in name.parts))


def _share(names: list[str], held_out: bool) -> list[str]:
    """The files of one class that belong to the split, as documented in `load`."""
    ranked = sorted(names, key=lambda name: hashlib.sha256(os.fsencode(name)).digest())
    border = len(names) // 10
    return sorted(ranked[:border] if held_out else ranked[border:])


def _hugging_face(root: Path, held_out: bool, size: int, channels: int) -> tuple[_Images, tuple[str, ...], int]:
    datasets = _require("datasets", "datasets")
    try:
        stored = datasets.load_from_disk(str(root))
    except (OSError, ValueError, LookupError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{root} is not a saved data set ({reason}): write one with save_to_disk") from error
    splits = stored if isinstance(stored, datasets.DatasetDict) else {"train": stored}
    wanted = ("test", "validation") if held_out else ("train",)
    split = next((name for name in wanted if name in splits), None)
    if split is None:
        raise InputError(f"{root} has only {', '.join(splits)} to offer: save it with a split {' or '.join(wanted)}")
    rows = splits[split].with_format(None)

    def column(feature: Any) -> str | None:
        return next((name for name, kind in rows.features.items() if isinstance(kind, feature)), None)

    image, label = column(datasets.Image), column(datasets.ClassLabel)
    if image is None:
        have = ", ".join(rows.column_names)
        raise InputError(f"{root} has no image column, only {have}: cast the right one to datasets.Image()")
    if len(rows) == 0:
        raise InputError(f"the {split} split of {root} is empty: save it with at least one row")
    labels, classes = [0] * len(rows), ()
    if label is not None:
        labels, classes = rows[label][:], tuple(rows.features[label].names)
        bad = next((row for row, value in enumerate(labels) if value is None or value < 0), None)
        if bad is not None:
            raise InputError(f"row {bad} of {root} has no {label}: drop such rows, or the whole column")
    undecoded = rows.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    return _Images(_Rows(undecoded, image), np.array(labels, np.int64), size, channels), classes, 0


_BUILT_IN: Mapping[str, Callable[[bool], Data]] = {
    "digits": _digits,
    "swiss_roll": _points("swiss_roll", _swiss_roll, ()),
    "moons": _points("moons", _moons, ("upper", "lower")),
    "gaussian_mixture": _points("gaussian_mixture", _gaussian_mixture, tuple("01234567")),
    "checkerboard": _points("checkerboard", _checkerboard, ()),
}
_ON_DISK: Mapping[str, Callable[[Path, bool, int, int], tuple[_Images, tuple[str, ...], int]]] = {
    "folder:PATH": _folder,
    "hf:PATH": _hugging_face,
}
