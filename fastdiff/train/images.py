"""Images on disk as a data set: decoded on demand, cut to a centred square, scaled to [-1, 1]."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from fastdiff.errors import InputError
from fastdiff.train.libraries import require
from fastdiff.train.toys import Ints

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")


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


def to_tensor(image: Image.Image, size: int, channels: int) -> Tensor:
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


class Images(Dataset[tuple[Tensor, ...]]):
    """Images decoded on demand; `files[i]` is what to read."""

    def __init__(self, files: Sequence[Path] | _Rows, labels: Ints, size: int, channels: int) -> None:
        self.files, self.labels, self.size, self.channels = files, torch.from_numpy(labels), size, channels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        file = self.files[index]
        name = str(file) if isinstance(file, Path) else f"in row {index}"
        return to_tensor(_read(file, name, self.size), self.size, self.channels), self.labels[index]


class _Rows:
    """The undecoded image column of a `datasets.Dataset`."""

    def __init__(self, rows: Any, column: str) -> None:
        self.rows, self.column = rows, column

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Path | BytesIO:
        image = self.rows[index][self.column] or {"bytes": b"", "path": None}
        return Path(image["path"]) if image["bytes"] is None else BytesIO(image["bytes"])


def folder(root: Path, held_out: bool, size: int, channels: int) -> tuple[Images, tuple[str, ...], int]:
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
    files = [root / name for name, _ in chosen]
    readable = _readable(files, size, root)
    if not readable:
        raise InputError(f"{root} holds no readable image, all {len(chosen)} tried are damaged: put image files there")
    labels = np.array([chosen[i][1] for i in readable], np.int64)
    images = Images([files[i] for i in readable], labels, size, channels)
    return images, tuple(sorted(groups)) if labelled else (), len(chosen) - len(readable)


def _readable(files: Sequence[Path] | _Rows, size: int, root: Path) -> list[int]:
    """Decode every file once and return the positions of those that can be."""
    readable = []
    for i in tqdm(range(len(files)), desc=f"checking {root}", unit=" images", disable=None):
        with suppress(InputError):
            _read(files[i], str(i), size)
            readable.append(i)
    return readable


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


def hugging_face(root: Path, held_out: bool, size: int, channels: int) -> tuple[Images, tuple[str, ...], int]:
    datasets = require("datasets", "datasets")
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
    readable = _readable(_Rows(undecoded, image), size, root)
    if not readable:
        raise InputError(f"{root} holds no readable image, all {len(rows)} tried are damaged: save others")
    images = _Rows(undecoded.select(readable), image)
    return Images(images, np.array(labels, np.int64)[readable], size, channels), classes, len(rows) - len(readable)
