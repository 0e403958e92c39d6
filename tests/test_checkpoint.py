"""Checkpoints: what was saved is what is loaded, and anything else is refused with one line."""

from __future__ import annotations

import errno
import json
import pickle
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fastdiff import checkpoint as checkpoints
from fastdiff import models, schedules
from fastdiff.checkpoint import CONFIG, FORMAT, WEIGHTS, Checkpoint
from fastdiff.errors import CheckpointError
from fastdiff.models import MLP, MLPConfig, UNet, UNetConfig
from fastdiff.schedules import Schedule

MISSING = object()


def perturb(model: models.Model) -> models.Model:
    """Move every parameter, also those that start at 0, so that no output is 0 by construction."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def unet(width: int = 8, seed: int = 0) -> Checkpoint:
    config = UNetConfig(channels=1, width=width, blocks=1, classes=2, dropout=0.5)
    return Checkpoint(
        model=perturb(UNet(config, seed)).eval(),
        schedule=schedules.cosine(8),
        prediction="v",
        shape=(1, 8, 8),
        classes=("zero", "one"),
        clip=1.0,
        data="digits",
    )


def mlp() -> Checkpoint:
    return Checkpoint(
        model=perturb(MLP(MLPConfig(width=8, layers=2))).eval(),
        schedule=schedules.karras(5).with_unit_input(),
        prediction="eps",
        shape=(2,),
        classes=(),
        clip=None,
        data="moons",
    )


def output(checkpoint: Checkpoint) -> Tensor:
    """What the network says of fixed inputs."""
    x = torch.randn(3, *checkpoint.shape, generator=torch.Generator().manual_seed(2))
    y = torch.tensor([0, 1, 2]) if checkpoint.classes else None
    with torch.no_grad():
        return checkpoint.model(x, torch.tensor([0.0, 1.0, 4.0]), y)


def edit(folder: Path, entry: str, value: Any) -> None:
    """Change an entry of a config, named with dots; MISSING removes it."""
    config = json.loads((folder / CONFIG).read_text())
    *groups, last = entry.split(".")
    inner = config
    for group in groups:
        inner = inner[group]
    inner[last] = value
    if value is MISSING:
        del inner[last]
    (folder / CONFIG).write_text(json.dumps(config))


def refused(path: Path | str) -> str:
    """Load what cannot be loaded; return the error's one line."""
    with pytest.raises(CheckpointError) as raised:
        checkpoints.load(path)
    message = str(raised.value)
    assert message.strip()
    assert "\n" not in message
    return message


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A good checkpoint to damage."""
    checkpoints.save(tmp_path / "saved", unet())
    return tmp_path / "saved"


# --- round trip


@pytest.mark.parametrize("make", [unet, mlp])
def test_what_was_saved_is_loaded(tmp_path: Path, make: Callable[[], Checkpoint]) -> None:
    """Outputs are equal to the last bit, every other field is equal, and the network is ready to sample."""
    before = make()
    checkpoints.save(tmp_path / "saved", before, {"steps": 3})
    after = checkpoints.load(str(tmp_path / "saved"))
    assert torch.equal(output(before), output(after))
    assert output(after).abs().max() > 0
    assert not any(module.training for module in after.model.modules())
    for name in ("prediction", "shape", "classes", "clip", "data"):
        assert getattr(after, name) == getattr(before, name), name
    assert after.schedule.config == before.schedule.config
    assert models.describe(after.model) == models.describe(before.model)
    assert checkpoints.config_of(after) == checkpoints.config_of(before)
    assert names(tmp_path) == ["saved", "saved/config.json", "saved/model.safetensors"]


def _schedules() -> dict[str, Schedule]:
    plain = {name: schedules.make(name, T=7) for name in schedules.names()}
    unit = {f"{name} of unit input": schedule.with_unit_input() for name, schedule in plain.items()}
    return plain | unit | {"zero terminal SNR": schedules.linear(7).zero_terminal_snr()}


@pytest.mark.parametrize("name", _schedules())
def test_schedule_comes_back_to_the_last_bit(tmp_path: Path, name: str) -> None:
    """Every named schedule, and what is made from one, is rebuilt from config.json with equal levels."""
    schedule = _schedules()[name]
    checkpoints.save(tmp_path / "saved", replace(mlp(), schedule=schedule, prediction="x0"))
    loaded = checkpoints.load(tmp_path / "saved").schedule
    for column in ("alpha", "sigma", "time", "scale_in"):
        assert np.array_equal(getattr(loaded, column), getattr(schedule, column)), column


def test_schedule_that_cannot_be_rebuilt_is_refused_when_saved(tmp_path: Path) -> None:
    """A schedule made by hand has no config: better no checkpoint than one that can never be loaded."""
    by_hand = Schedule([0.9, 0.5], [0.1, 0.5])
    with pytest.raises(CheckpointError, match="schedule"):
        checkpoints.save(tmp_path / "saved", replace(mlp(), schedule=by_hand))
    assert not list(tmp_path.iterdir())


def test_plan_has_the_networks_own_prediction_and_clip() -> None:
    """Both are defaults that the caller can override."""
    own = unet().plan("ddim", steps=4)
    assert own == unet().plan("ddim", steps=4, prediction="v", clip=1.0)
    assert own != unet().plan("ddim", steps=4, prediction="eps")
    assert "clip" not in unet().plan("ddim", steps=4, clip=None).columns
    assert "clip" not in mlp().plan("ddpm").columns


def test_saving_replaces_the_whole_folder(saved: Path) -> None:
    """Files of an earlier checkpoint, such as the optimiser's, do not stay beside a new one."""
    checkpoints.save(saved, unet(), {"step": 1}, {"training.safetensors": {"a": torch.zeros(2)}})
    assert names(saved) == ["config.json", "model.safetensors", "training.safetensors"]
    assert checkpoints.read_config(saved)["training"] == {"step": 1}
    checkpoints.save(saved, mlp())
    assert names(saved) == ["config.json", "model.safetensors"]
    assert torch.equal(output(checkpoints.load(saved)), output(mlp()))


# --- damaged and foreign


@pytest.mark.parametrize("length", ["0", "1", "7", "8", "100", "size // 2", "size - 1", "size + 1"])
def test_weights_of_the_wrong_length_are_refused(saved: Path, length: str) -> None:
    """Cut anywhere (in the header's length, the header, the data) or one byte too long."""
    content = (saved / WEIGHTS).read_bytes()
    wanted: int = eval(length, {"size": len(content)})
    (saved / WEIGHTS).write_bytes((content + b"\0")[:wanted])
    assert WEIGHTS in refused(saved)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"[]", id="list"),
        pytest.param(b"null", id="null"),
        pytest.param(b'"text"', id="text"),
        pytest.param(b'{"model_type": "unet"}', id="other JSON"),
        pytest.param(b'{"format": "fastdiff-checkpoint-0"}', id="other version"),
        pytest.param(b'{"format": ["fastdiff-checkpoint-1"]}', id="format of another type"),
        pytest.param(json.dumps({"format": FORMAT}).encode(), id="nothing but the format"),
        pytest.param(b"model:\n  kind: unet\n", id="YAML"),
        pytest.param(b'{"format": "fastdiff-check', id="truncated"),
        pytest.param(bytes(range(256)), id="binary"),
        pytest.param("{}".encode("utf-16"), id="UTF-16"),
        pytest.param(b"[" * 100_000, id="deeply nested"),
        pytest.param(b'{"format": ' + b"9" * 10_000 + b"}", id="number of 10,000 digits"),
    ],
)
def test_config_that_is_none_is_refused(saved: Path, content: bytes) -> None:
    """Whatever config.json holds, the error names it."""
    (saved / CONFIG).write_bytes(content)
    assert CONFIG in refused(saved)


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("model", MISSING),
        ("schedule", MISSING),
        ("prediction", MISSING),
        ("shape", MISSING),
        ("classes", MISSING),
        ("clip", MISSING),
        ("data", MISSING),
        ("model", None),
        ("model", "unet"),
        ("model", []),
        ("model", {}),
        ("model.kind", "resnet"),
        ("model.depth", 3),
        ("model.width", -8),
        ("model.width", 7),
        ("model.width", "8"),
        ("model.width", None),
        ("model.multipliers", 2),
        ("model.multipliers", [1]),
        ("model.dropout", 2.0),
        ("schedule", None),
        ("schedule", "cosine"),
        ("schedule", {}),
        ("schedule.name", "cosin"),
        ("schedule.T", 0),
        ("schedule.T", "many"),
        ("schedule.levels", 8),
        ("schedule.s", -1.0),
        ("prediction", "esp"),
        ("prediction", 7),
        ("shape", 8),
        ("shape", None),
        ("shape", []),
        ("shape", ["a", "b"]),
        ("shape", [1, -8, 8]),
        ("classes", 2),
        ("clip", "wide"),
        ("clip", -1.0),
    ],
    ids=lambda part: "missing" if part is MISSING else repr(part).strip("'"),
)
def test_config_with_a_wrong_entry_is_refused(saved: Path, entry: str, value: Any) -> None:
    """A config of the right format that describes no network that can be sampled is refused when it is loaded."""
    edit(saved, entry, value)
    assert CONFIG in refused(saved)


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """Change which tensors a checkpoint's weights hold."""
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda saved: checkpoints.save(saved, unet(width=16)), id="wider network"),
        pytest.param(lambda saved: checkpoints.save(saved, mlp()), id="other network"),
        pytest.param(lambda saved: rewrite(saved, lambda all_: dict(list(all_.items())[1:])), id="one less"),
        pytest.param(lambda saved: rewrite(saved, lambda all_: {**all_, "x": torch.zeros(1)}), id="one more"),
        pytest.param(lambda saved: rewrite(saved, lambda all_: {}), id="none"),
    ],
)
def test_weights_of_another_network_are_refused(saved: Path, change: Callable[[Path], None]) -> None:
    """The config describes one network, the file holds another."""
    config = (saved / CONFIG).read_bytes()
    change(saved)
    (saved / CONFIG).write_bytes(config)
    assert WEIGHTS in refused(saved)


def test_missing_weights_are_refused(saved: Path) -> None:
    """A config alone is no checkpoint."""
    (saved / WEIGHTS).unlink()
    assert WEIGHTS in refused(saved)
    (saved / WEIGHTS).mkdir()
    assert WEIGHTS in refused(saved)


class Payload:
    """Runs code when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("write", [torch.save, lambda value, file: file.write_bytes(pickle.dumps(value))])
@pytest.mark.parametrize("target", [WEIGHTS, CONFIG])
def test_pickle_is_refused_and_never_run(saved: Path, target: str, write: Callable[[Any, Path], None]) -> None:
    """Code hidden in a file that is named like a checkpoint's does not run; the control shows that it could."""
    marker = saved.parent / "it ran"
    write({"weight": Payload(marker)}, saved / target)
    assert target in refused(saved)
    assert not marker.exists()
    pickle.loads(pickle.dumps(Payload(marker)))
    assert marker.exists()


# --- where a checkpoint is looked for


def test_no_folder_and_unknown_name_say_what_ships(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names what was asked for, and every checkpoint that ships."""
    monkeypatch.setattr(checkpoints, "SHIPPED", tmp_path / "shipped")
    assert "'nowhere'" in refused("nowhere")
    checkpoints.save(tmp_path / "shipped" / "faces", mlp())
    assert "faces" in refused("digitz")
    assert str(tmp_path / "missing") in refused(tmp_path / "missing")


def test_shipped_checkpoint_is_loaded_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name finds the package's own checkpoint; a folder of that name comes first."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoints, "SHIPPED", tmp_path / "shipped")
    checkpoints.save(tmp_path / "shipped" / "points", mlp())
    assert torch.equal(output(checkpoints.load("points")), output(mlp()))
    checkpoints.save("points", unet())
    assert checkpoints.load("points").shape == (1, 8, 8)


def test_folder_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    """An empty folder, one with weights alone, and a file are none."""
    (tmp_path / "empty").mkdir()
    assert "holds no checkpoint" in refused(tmp_path / "empty")
    save_file(mlp().model.state_dict(), tmp_path / "empty" / WEIGHTS)
    assert "holds no checkpoint" in refused(tmp_path / "empty")
    refused(tmp_path / "empty" / WEIGHTS)


def test_run_folder_gives_its_newest_finished_step(tmp_path: Path) -> None:
    """Steps are compared as numbers; a folder without config.json is one that was never finished."""
    for step in (2, 10):
        checkpoints.save(tmp_path / checkpoints.STEP_FOLDER.format(step), unet(seed=step))
    unfinished = tmp_path / checkpoints.STEP_FOLDER.format(20)
    unfinished.mkdir()
    save_file(mlp().model.state_dict(), unfinished / WEIGHTS)
    assert checkpoints.newest_step(tmp_path) == tmp_path / "step-00000010"
    assert torch.equal(output(checkpoints.load(tmp_path)), output(unet(seed=10)))
    checkpoints.remove(tmp_path / "step-00000010")
    assert torch.equal(output(checkpoints.load(tmp_path)), output(unet(seed=2)))


# --- failing to save


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let the kernel refuse to make any file larger than `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_write_that_the_kernel_stops_leaves_the_previous_checkpoint(saved: Path) -> None:
    """A real write fails after 1,000 bytes: one line, the old weights, no litter."""
    with files_of_at_most(1000), pytest.raises(CheckpointError) as raised:
        checkpoints.save(saved, unet(seed=5))
    assert "\n" not in str(raised.value)
    assert torch.equal(output(checkpoints.load(saved)), output(unet()))
    assert names(saved.parent) == ["saved", "saved/config.json", "saved/model.safetensors"]
    checkpoints.save(saved, unet(seed=5))
    assert torch.equal(output(checkpoints.load(saved)), output(unet(seed=5)))


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error")])
@pytest.mark.parametrize("fatal", [1, 2], ids=["first file", "second file"])
def test_full_disk_leaves_the_previous_checkpoint(
    saved: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, fatal: int
) -> None:
    """A disk that is full half-way through either file: one line, the old weights, no litter."""
    written = []

    def write_half(tensors: dict[str, Tensor], file: Path) -> None:
        save_file(tensors, file)
        written.append(file)
        if len(written) == fatal:
            file.write_bytes(file.read_bytes()[:50])
            raise error

    monkeypatch.setattr(checkpoints, "save_file", write_half)
    with pytest.raises(CheckpointError) as raised:
        checkpoints.save(saved, unet(seed=5), {"step": 1}, {"training.safetensors": {"a": torch.zeros(9)}})
    assert str(error) in str(raised.value)
    assert len(written) == fatal
    assert torch.equal(output(checkpoints.load(saved)), output(unet()))
    assert names(saved.parent) == ["saved", "saved/config.json", "saved/model.safetensors"]


def test_place_that_cannot_be_written_is_a_checkpoint_error(tmp_path: Path) -> None:
    """A file where a folder should be."""
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="could not write"):
        checkpoints.save(tmp_path / "file" / "saved", mlp())
    assert names(tmp_path) == ["file"]
