"""Training data by name: ranges, splits, damaged files, and a batch stream that resumes exactly."""

from __future__ import annotations

import pickle
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, TensorDataset

from fastdiff.errors import InputError, MissingDependencyError
from fastdiff.pictures import to_uint8
from fastdiff.train.data import Data, batches, load, spread

TOYS = ("swiss_roll", "moons", "gaussian_mixture", "checkerboard")


def items(data: Data) -> tuple[torch.Tensor, torch.Tensor]:
    """Every x and every label of a split, after checking what all data promises."""
    if isinstance(data.dataset, TensorDataset):
        x, labels = data.dataset.tensors
    else:
        x, labels = map(torch.stack, zip(*(data.dataset[i] for i in range(len(data))), strict=True))
    assert len(x) == len(labels) == len(data)
    assert x.dtype == torch.float32
    assert x.shape[1:] == data.shape
    assert labels.dtype == torch.int64
    assert labels.dim() == 1
    assert labels.min() >= 0
    assert labels.max() < max(1, len(data.classes))
    return x, labels


def paint(file: Path, color: Any = "red", *, mode: str = "RGB", size: tuple[int, int] = (8, 8), **options: Any) -> None:
    """Save an image of one colour."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(file, **options)


# --- built-in data


def test_digits() -> None:
    """Digits are 8x8 in [-1, 1], and the split is stratified, disjoint, complete and the same every time."""
    train, held_out = load("digits"), load("digits", split="held-out")
    assert (train.name, train.shape, train.classes) == ("digits", (1, 8, 8), tuple("0123456789"))
    assert (len(train), len(held_out)) == (1437, 360)
    x, labels = items(train)
    y, held_labels = items(held_out)
    assert x.min() == -1
    assert x.max() == 1
    share = held_labels.bincount() / (labels.bincount() + held_labels.bincount())
    assert (share - 360 / 1797).abs().max() < 0.01
    from sklearn.datasets import load_digits

    everything = torch.from_numpy(load_digits().images / 8 - 1).float().flatten(1)
    assert sorted(torch.cat([x, y]).flatten(1).tolist()) == sorted(everything.tolist())
    assert torch.equal(x, items(load("digits"))[0])


@pytest.mark.parametrize("size", [8, 13, 32])
def test_digits_of_another_size(size: int) -> None:
    """They are resized as images on disk are, to 256 levels in [-1, 1]; splits and labels stay as they are."""
    small, large = load("digits"), load("digits", size=size)
    assert (large.shape, large.levels, large.classes) == ((1, size, size), 256, small.classes)
    (x, labels), (resized, same) = items(small), items(large)
    assert torch.equal(labels, same)
    levels = (resized.double() + 1) * 127.5
    assert torch.allclose(levels, levels.round(), atol=1e-4)  # float32 has 256 levels to 2^-24 * 255
    assert resized.min() == -1
    assert resized.max() == 1
    # Lanczos keeps what a pixel of the small image covers, but for its overshoot, which is cut: 0.25 is 32 levels.
    back = torch.nn.functional.interpolate(resized, size=(8, 8), mode="area")
    assert (back - x).abs().mean() < (0.004 if size == 8 else 0.25)


@pytest.mark.parametrize("name", TOYS)
def test_points_have_one_fixed_scale(name: str) -> None:
    """Both splits of a toy have zero mean, unit variance and bounded range, differ from each other, and repeat."""
    train, held_out = load(name), load(name, split="held-out")
    assert (len(train), len(held_out)) == (20_000, 5_000)
    for data in (train, held_out):
        x, labels = items(data)
        # 5,000 points put four standard errors of a mean at 0.06; the constants are rounded to within 0.05.
        assert x.mean(0).abs().max() < 0.06
        assert (x.std(0) - 1).abs().max() < 0.1
        assert x.abs().max() < 2.5
        assert set(labels.tolist()) == set(range(max(1, len(data.classes))))
    assert not torch.equal(train.dataset[0][0], held_out.dataset[0][0])
    assert torch.equal(items(load(name))[0], items(train)[0])


def test_gaussian_mixture_labels_name_the_component() -> None:
    """A label is the component: points lie within six standard deviations of that corner of the ring."""
    x, labels = items(load("gaussian_mixture"))
    angle = labels * torch.pi / 4
    corner = 2**0.5 * torch.stack([angle.cos(), angle.sin()], dim=1)
    assert (x - corner).norm(dim=1).max() < 0.6


def test_checkerboard_leaves_white_squares_empty() -> None:
    """No point lies on a square whose row and column differ in parity, and all eight others are used."""
    x, _ = items(load("checkerboard"))
    squares = (x.double() / (3**0.5 / 2) + 2).floor().clamp(0, 3).long()
    assert ((squares.sum(1) % 2) == 0).all()
    assert len(set(map(tuple, squares.tolist()))) == 8


def test_moons_labels_are_the_halves() -> None:
    """The upper moon bulges up and the lower one down."""
    x, labels = items(load("moons"))
    assert x[labels == 0, 1].mean() > 0.5
    assert x[labels == 1, 1].mean() < -0.5


# --- a folder of images


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes, `blue` (20 PNG) and `red` (10 JPEG, one nested deeper), each image of one shade."""
    for i in range(20):
        paint(tmp_path / "blue" / f"{i}.png", (0, 0, 100 + i))
    for i in range(10):
        paint(tmp_path / "red" / ("deeper" if i == 3 else "") / f"{i}.JPG", (200, 0, 0), format="JPEG", quality=95)
    return tmp_path


def test_folder_classes_and_split(photos: Path) -> None:
    """Classes are the sorted first-level folders; one file in ten of each is held out and never trained on."""
    train, held_out = load(f"folder:{photos}", size=8), load(f"folder:{photos}", size=8, split="held-out")
    assert train.classes == held_out.classes == ("blue", "red")
    assert train.shape == (3, 8, 8)
    assert train.skipped == 0
    x, labels = items(train)
    y, held_labels = items(held_out)
    assert labels.bincount().tolist() == [18, 9]
    assert held_labels.bincount().tolist() == [2, 1]
    assert (x[labels == 0, 2] > x[labels == 0, 0]).all()
    assert (x[labels == 1, 0] > x[labels == 1, 2]).all()
    shades = torch.cat([x[labels == 0], y[held_labels == 0]])[:, 2, 0, 0]
    assert sorted(to_uint8(shades).tolist()) == list(range(100, 120))


def test_folder_split_depends_on_names_alone(photos: Path) -> None:
    """A damaged file drops out of its split and moves no other file."""
    before = items(load(f"folder:{photos}", split="held-out"))[0]
    trained = load(f"folder:{photos}")
    trained.dataset.files[0].write_text("no image")  # type: ignore[attr-defined]
    after = load(f"folder:{photos}", split="held-out")
    assert torch.equal(items(after)[0], before)
    assert after.skipped == 0
    again = load(f"folder:{photos}")
    assert (len(again), again.skipped) == (len(trained) - 1, 1)


def test_folder_counts_what_it_cannot_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Truncated files, text named as an image, empty files and decompression bombs are skipped and counted."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    for suffix in ("png", "jpg"):
        noise.save(tmp_path / f"good.{suffix}")
        whole = (tmp_path / f"good.{suffix}").read_bytes()
        (tmp_path / f"truncated.{suffix}").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("this is no image")
    (tmp_path / "empty.gif").touch()
    paint(tmp_path / "bomb.png", size=(300, 300))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40_000)  # Pillow raises above twice that
    (tmp_path / "notes.txt").write_text("other files are not even tried")
    data = load(f"folder:{tmp_path}", size=16)
    assert (len(data), data.skipped, data.classes) == (2, 5, ())
    items(data)


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [
        ("RGB", (255, 128, 0), (255, 128, 0)),
        ("L", 100, (100, 100, 100)),
        ("1", 1, (255, 255, 255)),
        ("I;16", 100 * 257 + 60, (100, 100, 100)),  # 16 bits are scaled, not clipped
        ("RGBA", (255, 0, 0, 255), (255, 0, 0)),
        ("RGBA", (10, 20, 30, 0), (255, 255, 255)),  # transparent: white shows, not the hidden colour
        ("LA", (0, 0), (255, 255, 255)),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_folder_modes(tmp_path: Path, mode: str, color: Any, expected: tuple[int, int, int], channels: int) -> None:
    """Every pixel format comes out as RGB or gray of the same colour, to the last bit."""
    paint(tmp_path / "image.png", color, mode=mode)
    x, _ = load(f"folder:{tmp_path}", size=8, channels=channels).dataset[0]
    if channels == 1:
        gray = Image.new("RGB", (1, 1), expected).convert("L").getpixel((0, 0))
        expected = (gray,)  # type: ignore[assignment]
    assert x.shape == (channels, 8, 8)
    assert torch.equal(to_uint8(x), torch.tensor(expected, dtype=torch.uint8)[:, None, None].expand(channels, 8, 8))


def test_folder_palette_with_transparency(tmp_path: Path) -> None:
    """Palette indices are looked up, and the transparent index shows white."""
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 0, 255, 0])
    image.paste(0, (0, 0, 8, 4))
    image.save(tmp_path / "palette.gif", transparency=0)
    x = to_uint8(load(f"folder:{tmp_path}", size=8).dataset[0][0])
    assert x[:, 0, 0].tolist() == [255, 255, 255]
    assert x[:, 7, 7].tolist() == [0, 255, 0]


@pytest.mark.parametrize(
    "size",
    [
        (40, 12),  # wide
        (12, 40),  # tall
        (8, 8),  # square
        (1, 5),  # one pixel wide
    ],
)
def test_folder_takes_the_centred_square(tmp_path: Path, size: tuple[int, int]) -> None:
    """At its own scale an image is cut and not touched; at others it equals resizing all of it and then cutting."""
    # Mid-gray noise, as Pillow clips between its two passes and picks their order by the shape.
    image = Image.fromarray(np.random.default_rng(0).integers(100, 156, (size[1], size[0], 3), dtype=np.uint8))
    image.save(tmp_path / "image.png")
    for side in {min(size), -(-min(size) // 2), 2 * min(size)}:
        width, height = (length * side // min(size) for length in size)
        left, top = (width - side) // 2, (height - side) // 2
        whole = image.resize((width, height), Image.Resampling.LANCZOS)
        expected = torch.from_numpy(np.array(whole)[top : top + side, left : left + side])
        x = to_uint8(load(f"folder:{tmp_path}", size=side).dataset[0][0])
        assert (x.permute(1, 2, 0).int() - expected.int()).abs().max() <= int(side != min(size))


def test_folder_does_not_blur_an_odd_margin(tmp_path: Path) -> None:
    """An image one pixel too wide is cut at whole pixels, although its centred square starts at half a pixel."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8))
    image.save(tmp_path / "image.png")
    x = to_uint8(load(f"folder:{tmp_path}", size=8).dataset[0][0])
    assert torch.equal(x.permute(1, 2, 0), torch.from_numpy(np.array(image)[:, :8]))


def test_folder_turns_photos_upright(tmp_path: Path) -> None:
    """The EXIF orientation is applied: a picture stored upside down comes out upright."""
    image = Image.new("L", (8, 8), 0)
    image.paste(255, (0, 0, 8, 4))
    exif = Image.Exif()
    exif[0x0112] = 3  # rotated by 180 degrees
    image.save(tmp_path / "photo.png", exif=exif)
    x = load(f"folder:{tmp_path}", size=8, channels=1).dataset[0][0]
    assert (x[0, :4] == -1).all()
    assert (x[0, 4:] == 1).all()


def test_large_jpeg_equals_full_decode(tmp_path: Path) -> None:
    """Reading a JPEG at reduced scale, the fast path, looks like decoding all of it."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)).resize((640, 480))
    image.save(tmp_path / "large.jpg", quality=95)
    with Image.open(tmp_path / "large.jpg") as full:
        expected = np.asarray(ImageOps.fit(full, (100, 100), Image.Resampling.LANCZOS), dtype=np.int64)
    x = to_uint8(load(f"folder:{tmp_path}", size=100).dataset[0][0]).permute(1, 2, 0).numpy().astype(np.int64)
    # Measured: 1.65 of 255 on this noise; 2.2 where JPEG scales down to `size` itself, 9.4 where it goes below.
    assert np.abs(x - expected).mean() < 1.9


def test_folder_with_an_image_in_its_root_is_unlabelled(photos: Path) -> None:
    """One image beside the subfolders makes every label 0."""
    paint(photos / "top.png")
    data = load(f"folder:{photos}")
    assert data.classes == ()
    assert items(data)[1].max() == 0


def test_folder_follows_linked_classes_and_ignores_hidden_names(photos: Path, tmp_path: Path) -> None:
    """A class folder may be a symbolic link; names that begin with a dot are neither classes nor images."""
    root = tmp_path / "linked"
    root.mkdir()
    (root / "azure").symlink_to(photos / "blue")
    paint(root / ".thumbnails" / "0.png")
    paint(root / "azure" / "._0.png")
    data = load(f"folder:{root}")
    assert data.classes == ("azure",)
    assert len(data) == 18


def test_folder_under_dataloader_workers(photos: Path) -> None:
    """Two worker processes deliver what one process reads."""
    data = load(f"folder:{photos}", size=8)
    loader = DataLoader(data.dataset, batch_size=7, num_workers=2)
    x = torch.cat([batch for batch, _ in loader])
    assert torch.equal(x, items(data)[0])


def test_image_that_vanishes_is_named(photos: Path) -> None:
    """A file damaged after the check raises an error that names it."""
    data = load(f"folder:{photos}")
    file = data.dataset.files[0]  # type: ignore[attr-defined]
    file.unlink()
    with pytest.raises(InputError, match=f"cannot read the image {file}"):
        data.dataset[0]


# --- a Hugging Face data set on disk


@pytest.fixture
def hub() -> Any:
    """The `datasets` library."""
    return datasets


def table(hub: Any, count: int = 4, **columns: Any) -> Any:
    """A `datasets.Dataset` whose image `i` is 12 x 8 of gray level `i`."""
    pictures = [Image.new("L", (12, 8), i) for i in range(count)]
    features = {"picture": hub.Image(), "kind": hub.ClassLabel(names=["cat", "dog"]), "id": hub.Value("int32")}
    rows = {"id": list(range(count)), "picture": pictures, "kind": [i % 2 for i in range(count)]} | columns
    return hub.Dataset.from_dict(rows, features=hub.Features({name: features[name] for name in rows}))


def test_hf_dict(hub: Any, tmp_path: Path) -> None:
    """Columns are found by type, splits by name, and pixels come out exactly, also after pickling for a worker."""
    splits = {"train": table(hub, 5).with_format("torch"), "validation": table(hub, 3)}
    hub.DatasetDict(splits).save_to_disk(tmp_path / "saved")
    train = load(f"hf:{tmp_path / 'saved'}", size=8, channels=1)
    assert (len(train), train.shape, train.classes) == (5, (1, 8, 8), ("cat", "dog"))
    x, labels = items(train)
    assert labels.tolist() == [0, 1, 0, 1, 0]
    assert torch.equal(to_uint8(x), torch.arange(5, dtype=torch.uint8)[:, None, None, None].expand(5, 1, 8, 8))
    assert torch.equal(pickle.loads(pickle.dumps(train)).dataset[4][0], x[4])
    assert len(load(f"hf:{tmp_path / 'saved'}", split="held-out")) == 3


def test_hf_single(hub: Any, tmp_path: Path) -> None:
    """A plain Dataset is a train split; without a label column it is unlabelled; it has nothing to hold out."""
    table(hub).remove_columns("kind").save_to_disk(tmp_path / "saved")
    data = load(f"hf:{tmp_path / 'saved'}")
    assert data.classes == ()
    assert items(data)[1].tolist() == [0, 0, 0, 0]
    with pytest.raises(InputError, match="has only train to offer: save it with a split test or validation"):
        load(f"hf:{tmp_path / 'saved'}", split="held-out")


def test_hf_rows_that_cannot_be_used(hub: Any, tmp_path: Path) -> None:
    """A missing label stops the load and says which; missing pictures are skipped and counted, unless all are."""
    table(hub, kind=[0, 1, None, 0]).save_to_disk(tmp_path / "label")
    with pytest.raises(InputError, match=r"row 2 of .* has no kind"):
        load(f"hf:{tmp_path / 'label'}")
    table(hub, picture=[None] * 4).save_to_disk(tmp_path / "pictures")
    with pytest.raises(InputError, match="holds no readable image, all 4 tried are damaged"):
        load(f"hf:{tmp_path / 'pictures'}")
    pictures = [None, *(Image.new("L", (8, 8), shade) for shade in (1, 2, 3))]
    table(hub, picture=pictures, kind=[0, 1, 0, 1]).save_to_disk(tmp_path / "picture")
    data = load(f"hf:{tmp_path / 'picture'}", size=8, channels=1)
    x, labels = items(data)
    assert data.skipped == 1
    assert to_uint8(x[:, 0, 0, 0]).tolist() == [1, 2, 3]
    assert labels.tolist() == [1, 0, 1]


def test_hf_without_images(hub: Any, tmp_path: Path) -> None:
    """A data set without pictures, an empty one, and a folder that is none are told apart."""
    table(hub).remove_columns("picture").save_to_disk(tmp_path / "plain")
    with pytest.raises(InputError, match="no image column, only id, kind: cast"):
        load(f"hf:{tmp_path / 'plain'}")
    table(hub, 0).save_to_disk(tmp_path / "empty", num_shards=1)
    with pytest.raises(InputError, match=r"the train split of .* is empty"):
        load(f"hf:{tmp_path / 'empty'}")
    with pytest.raises(InputError, match=r"is not a saved data set .*: write one with save_to_disk"):
        load(f"hf:{tmp_path}")


# --- errors


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("swissroll", {}, "unknown data 'swissroll': did you mean 'swiss_roll'"),
        ("foldr:x", {}, "unknown data 'foldr:PATH': did you mean 'folder:PATH'"),
        ("folder", {}, "did you mean 'folder:PATH'"),
        ("", {}, "unknown data ''"),
        ("moons", {"split": "heldout"}, "unknown split 'heldout': did you mean 'held-out'"),
        ("moons", {"size": 32}, "moons comes in one shape only"),
        ("digits", {"channels": 3}, "digits comes with one number of channels only"),
        ("digits", {"size": 0}, "size 0 is too small"),
        ("folder:", {}, "'folder:' has no path: write folder:PATH"),
        ("folder:/no/such/place", {}, "/no/such/place does not exist"),
        (f"folder:{__file__}", {}, "is not a folder"),
        ("hf:/no/such/place", {}, "/no/such/place does not exist"),
        ("folder:.", {"size": 0}, "size 0 is too small"),
        ("folder:.", {"channels": 4}, "channels 4 is not possible"),
    ],
)
def test_bad_input(spec: str, options: dict[str, Any], message: str) -> None:
    """Each mistake gets one line that names it."""
    with pytest.raises(InputError, match=message) as caught:
        load(spec, **options)
    assert "\n" not in str(caught.value)


def test_folder_without_usable_images(tmp_path: Path) -> None:
    """No image, no readable image, and too few to hold any out are three different errors."""
    with pytest.raises(InputError, match=r"holds no image: put \.png, \.jpg"):
        load(f"folder:{tmp_path}")
    (tmp_path / "text.png").write_text("this is no image")
    with pytest.raises(InputError, match="holds no readable image, all 1 tried"):
        load(f"folder:{tmp_path}")
    with pytest.raises(InputError, match="has nothing to hold out"):
        load(f"folder:{tmp_path}", split="held-out")


@pytest.mark.parametrize(
    ("spec", "module", "extra"),
    [("digits", "sklearn", "train"), ("hf:.", "datasets", "datasets")],
)
def test_missing_library(monkeypatch: pytest.MonkeyPatch, spec: str, module: str, extra: str) -> None:
    """Without its library each kind of data says which extra to install; the toys need none."""
    for name in [name for name in sys.modules if name.partition(".")[0] == module] + [module]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match=rf"needs {module}.*pip install 'fastdiff-sampler\[{extra}\]'"):
        load(spec)
    assert len(load("moons")) == 20_000


# --- pixels and batches


def test_to_uint8_inverts_the_scaling() -> None:
    """All 256 levels survive the way to [-1, 1] and back, in float32 and float64; what lies outside is clamped."""
    levels = torch.arange(256, dtype=torch.uint8)
    for dtype in (torch.float32, torch.float64):
        assert torch.equal(to_uint8(levels.to(dtype) / 127.5 - 1), levels)
    assert to_uint8(torch.tensor([-torch.inf, -1.1, 1.1, torch.inf])).tolist() == [0, 0, 255, 255]
    with pytest.raises(InputError, match=r"takes floats in .* not torch.uint8"):
        to_uint8(levels)


@given(x=st.floats(-1, 1, width=16))
def test_to_uint8_rounds_to_nearest(x: float) -> None:
    """No value moves by more than half a level, also from half precision."""
    for dtype in (torch.float16, torch.float32):
        level = to_uint8(torch.tensor([x], dtype=dtype)).item()
        assert abs(level - (x + 1) * 127.5) <= 0.5 + 1e-4


lengths, sizes, seeds = st.integers(1, 40), st.integers(1, 100), st.integers(0, 2**70)


@given(n=lengths, size=sizes, seed=seeds, start=st.integers(0, 50))
def test_batches_resume_exactly(n: int, size: int, seed: int, start: int) -> None:
    """Starting at step k gives what skipping k batches gives."""
    resumed = list(islice(batches(n, size, seed, start), 3))
    skipped = list(islice(batches(n, size, seed), start, start + 3))
    assert {(batch.shape, batch.dtype) for batch in resumed} == {((size,), np.dtype(np.int64))}
    np.testing.assert_array_equal(resumed, skipped)


@given(n=lengths, size=sizes, seed=seeds)
def test_batches_are_whole_epochs_laid_end_to_end(n: int, size: int, seed: int) -> None:
    """Position p of the stream is item p % n of the permutation of epoch p // n."""
    count = 3 * n // size + 1
    stream = np.concatenate(list(islice(batches(n, size, seed), count)))
    for epoch in range(3):
        part = stream[epoch * n : (epoch + 1) * n]
        assert sorted(part) == list(range(n))
        np.testing.assert_array_equal(part, np.random.default_rng([seed, epoch]).permutation(n))


def test_batches_start_late_without_replay() -> None:
    """A start far out, at position 10^15, is as quick as the first; epochs and seeds differ in their order."""
    first, far = next(batches(1000, 1000, 0)), next(batches(1000, 1000, 0, start=10**12))
    assert not np.array_equal(first, far)
    assert not np.array_equal(first, next(batches(1000, 1000, 1)))


def test_batches_reject_bad_numbers_at_once() -> None:
    """The error comes from the call, not from the first batch."""
    for arguments, message in (
        ((0, 1, 0), "dataset_length 0"),
        ((1, 0, 0), "batch_size 0"),
        ((1, 1, -1), "seed -1"),
        ((1, 1, 0, -1), "start -1"),
    ):
        with pytest.raises(InputError, match=message):
            batches(*arguments)


def test_spread_reaches_from_the_first_to_the_last() -> None:
    """All parts of data that are sorted, each index once where there are fewer."""
    assert spread(10, 4) == [0, 3, 6, 9]
    assert spread(3, 10) == [0, 1, 2]
