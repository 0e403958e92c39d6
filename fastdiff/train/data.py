"""Training data by a one-string name: bundled digits, 2-D toys, a folder of images, a Hugging Face data set on disk.

Images are float32 in [-1, 1], channels first. Nothing here touches the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from fastdiff.errors import InputError, lookup
from fastdiff.train import toys
from fastdiff.train.images import Images, folder, hugging_face, to_tensor
from fastdiff.train.libraries import require
from fastdiff.train.toys import Floats, Ints


@dataclass(frozen=True)
class Data:
    """One split of a data set.

    `dataset[i]` is `(x, label)`: `x` float32 of `shape`, which is `(C, H, W)` with values in [-1, 1] for images and
    `(2,)` for points; `label` an int64 scalar below `len(classes)`, or always 0 where `classes` is empty, as it is for
    unlabelled data. `skipped` counts the files of this split that were left out because they could not be read.
    `levels` is how many values, evenly from -1 to 1, a pixel can have; None for points, which are continuous.
    """

    name: str
    dataset: Dataset[tuple[Tensor, ...]]
    shape: tuple[int, ...]
    classes: tuple[str, ...]
    skipped: int = 0
    levels: int | None = None

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
    Digits take a `size` too, and are then resized in the same way, to 256 levels.

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
    if size is not None and size < 1:
        raise InputError(f"size {size} is too small: give the side of the images in pixels, 1 or more")
    if key in _BUILT_IN:
        if channels is not None:
            raise InputError(f"{key} comes with one number of channels only: leave channels out")
        return _BUILT_IN[key](held_out, size)
    size = 32 if size is None else size
    channels = 3 if channels is None else channels
    if channels not in (1, 3):
        raise InputError(f"channels {channels} is not possible: give 1 (grayscale) or 3 (RGB)")
    if not path:
        raise InputError(f"{spec!r} has no path: write {key}")
    root = Path(path).expanduser()
    if not root.is_dir():
        problem = "is not a folder" if root.exists() else "does not exist"
        raise InputError(f"{root} {problem}: give the path of the folder that holds the data")
    dataset, classes, skipped = _ON_DISK[key](root, held_out, size, channels)
    return Data(spec, dataset, (channels, size, size), classes, skipped, levels=256)


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


def spread(length: int, count: int) -> list[int]:
    """Return up to `count` of the indices below `length` at even distances: folders come sorted by class."""
    chosen: list[int] = np.linspace(0, length - 1, min(count, length)).astype(int).tolist()
    return chosen


def _digits(held_out: bool, size: int | None) -> Data:
    bundled = require("sklearn.datasets", "train").load_digits()
    train_test_split = require("sklearn.model_selection", "train").train_test_split
    parts = train_test_split(np.arange(len(bundled.target)), test_size=360, stratify=bundled.target, random_state=0)
    chosen = parts[int(held_out)]
    labels = torch.from_numpy(bundled.target[chosen]).long()
    if size is None:
        x, levels = torch.from_numpy(bundled.images[chosen] / 8 - 1).float().unsqueeze(1), 17
    else:
        pixels = (bundled.images[chosen] * (255 / 16)).round().astype(np.uint8)
        x, levels = torch.stack([to_tensor(Image.fromarray(image), size, channels=1) for image in pixels]), 256
    return Data("digits", TensorDataset(x, labels), tuple(x.shape[1:]), tuple("0123456789"), levels=levels)


def _points(
    name: str, draw: Callable[[np.random.Generator, int], tuple[Floats, Ints]], classes: tuple[str, ...]
) -> Callable[[bool, int | None], Data]:
    def build(held_out: bool, size: int | None) -> Data:
        if size is not None:
            raise InputError(f"{name} comes in one shape only: leave size out")
        x, labels = draw(np.random.default_rng(int(held_out)), 5_000 if held_out else 20_000)
        return Data(name, TensorDataset(torch.from_numpy(x).float(), torch.from_numpy(labels)), (2,), classes)

    return build


_BUILT_IN: Mapping[str, Callable[[bool, int | None], Data]] = {
    "digits": _digits,
    "swiss_roll": _points("swiss_roll", toys.swiss_roll, ()),
    "moons": _points("moons", toys.moons, ("upper", "lower")),
    "gaussian_mixture": _points("gaussian_mixture", toys.gaussian_mixture, tuple("01234567")),
    "checkerboard": _points("checkerboard", toys.checkerboard, ()),
}
_ON_DISK: Mapping[str, Callable[[Path, bool, int, int], tuple[Images, tuple[str, ...], int]]] = {
    "folder:PATH": folder,
    "hf:PATH": hugging_face,
}
