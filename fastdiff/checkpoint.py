"""Checkpoints: a folder with `config.json` and `model.safetensors`. Nothing in it is ever unpickled."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fastdiff import models, samplers, schedules
from fastdiff import prediction as predictions
from fastdiff.errors import CheckpointError, InputError, MissingDependencyError, lookup
from fastdiff.files import new_folder
from fastdiff.latents.autoencoder import Autoencoder
from fastdiff.plan import Plan
from fastdiff.samplers.ddpm import LEARNED
from fastdiff.schedules import Schedule

FORMAT = "fastdiff-checkpoint-1"
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
LATENTS = "latents.safetensors"
STEP_FOLDER = "step-{:08d}"
DIFFUSION = "diffusion"  # what a config that does not say it holds
Kind = TypeVar("Kind")

# Checkpoints that ship with the package, by name.
SHIPPED = Path(__file__).parent / "checkpoints"


class Saved(Protocol):
    """What a checkpoint folder can hold."""

    @property
    def model(self) -> models.Model:
        """The network whose weights are stored."""

    def config(self) -> dict[str, Any]:
        """Return what `config.json` says of it, JSON-ready: "holds", the kind of thing it is, and more."""


@dataclass(frozen=True)
class Checkpoint:
    """A trained network with what sampling needs to know of it.

    Attributes:
        model: the network, in evaluation mode.
        schedule: the noise levels it was trained on.
        prediction: what it predicts.
        shape: shape of one sample, without the batch.
        classes: names of the classes; empty for an unconditional network.
        clip: bound on |x0| that fits the data; None for data without one.
        data: name of the training data.
        latents: the autoencoder whose latents it works on; None for a network that works on the data themselves.

    Raises:
        InputError: the prediction is unknown, the clip is not positive, shape or classes are not the network's, or the
            shape is not that of the latents.
    """

    model: models.Model
    schedule: Schedule
    prediction: str
    shape: tuple[int, ...]
    classes: tuple[str, ...]
    clip: float | None
    data: str
    latents: Autoencoder | None = None

    def __post_init__(self) -> None:
        lookup("prediction", self.prediction, dict.fromkeys(predictions.names()))
        models.check_kind(self.model, models.DENOISERS, "diffusion network")
        models.check_fits(self.model, self.shape, len(self.classes))
        if self.latents is not None and self.latents.latent_shape != self.shape:
            raise InputError(f"shape {self.shape} is not that of the latents, {self.latents.latent_shape}")
        if self.clip is not None and not self.clip > 0:
            raise InputError(f"clip must be > 0, or None for no clipping, got {self.clip}")

    def plan(self, sampler: str = "ddim", **options: Any) -> Plan:
        """Build a plan for this network; `prediction`, `clip` and the `variance` of ddpm default to the network's own.

        Raises:
            InputError: the sampler or an option is unknown or out of range, or the plan draws noise of another variance
                than the network learned.
        """
        own = {"prediction": self.prediction, "clip": self.clip}
        if self.learns_variance and sampler == "ddpm":
            own["variance"] = LEARNED
        plan = samplers.make(sampler, self.schedule, **{**own, **options})
        if self.learns_variance and plan.draws_noise and not plan.learns_variance:
            raise InputError(
                f"{plan.name} draws noise of a fixed variance, and this network learned its own: use ddpm with "
                f"variance={LEARNED!r}, or a sampler that draws none, as ddim"
            )
        if plan.learns_variance and not self.learns_variance:
            raise InputError(f"{plan.name} needs a network that learned its variance: use variance='small' or 'large'")
        return plan

    @property
    def learns_variance(self) -> bool:
        """Whether the network gives the variance of its steps beside their mean."""
        return bool(getattr(self.model.config, "learn_variance", False))

    @property
    def decode(self) -> Callable[[Tensor], Tensor] | None:
        """What makes data of samples: `fastdiff.sample(..., decode=checkpoint.decode)`."""
        return None if self.latents is None else self.latents.decode

    def config(self) -> dict[str, Any]:
        """Return what `config.json` says of it, JSON-ready.

        Raises:
            CheckpointError: the schedule was made by hand.
        """
        return {
            "holds": DIFFUSION,
            "schedule": schedule_config(self.schedule),
            "prediction": self.prediction,
            "shape": list(self.shape),
            "classes": list(self.classes),
            "clip": self.clip,
            "data": self.data,
            "latents": None if self.latents is None else {**config_of(self.latents), "digest": self.latents.digest},
        }


def schedule_config(schedule: Schedule) -> dict[str, Any]:
    """Return what a schedule is rebuilt from, JSON-ready. Raises CheckpointError for one made by hand."""
    if not schedule.config:
        raise CheckpointError("this schedule was made by hand and could not be rebuilt: train on a named schedule")
    return dict(schedule.config)


def config_of(saved: Saved) -> dict[str, Any]:
    """Return the whole content of `config.json`, JSON-ready."""
    return {"format": FORMAT, "model": models.describe(saved.model), **saved.config()}


def save(
    path: str | Path,
    saved: Saved,
    training: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> None:
    """Write a checkpoint folder whole or not at all.

    Args:
        path: the folder; one of that name is replaced.
        saved: what to save.
        training: JSON-ready data kept beside it in config.json.
        tensors: further files of tensors, by file name.

    Raises:
        CheckpointError: it could not be written, or something that is no checkpoint has its name; what was there
            before is untouched.
    """
    target = Path(path)
    if target.exists() and not (target / CONFIG).is_file() and not (target.is_dir() and not any(target.iterdir())):
        raise CheckpointError(f"{path} is there already and is no checkpoint: choose another folder")
    config = {**config_of(saved), **({"training": dict(training)} if training else {})}
    files = {WEIGHTS: saved.model.state_dict(), **(tensors or {})}
    if isinstance(saved, Checkpoint) and saved.latents is not None:
        files[LATENTS] = saved.latents.model.state_dict()
    try:
        with new_folder(target) as folder:
            for name, content in files.items():
                save_file({key: value.detach().cpu().contiguous() for key, value in content.items()}, folder / name)
            (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"could not write checkpoint {path}: {error}; earlier checkpoints are untouched"
        ) from None


def load(path: str | Path = "digits", device: torch.device | str = "cpu") -> Checkpoint:
    """Load a checkpoint: a folder that `save` wrote, a run's folder (its newest checkpoint), or a shipped one's name.

    Raises:
        CheckpointError: there is none, or it is truncated, foreign or of another version.
    """

    folder = find(path)

    def build(config: Mapping[str, Any], model: models.Model) -> Checkpoint:
        latents = config.get("latents")  # an earlier version knew none
        return Checkpoint(
            model=model,
            schedule=schedules.from_config(config["schedule"]),
            prediction=config["prediction"],
            shape=tuple(config["shape"]),
            classes=tuple(config["classes"]),
            clip=config["clip"],
            data=config["data"],
            latents=latents and Autoencoder.from_config(latents, _network(latents, folder / LATENTS, device)),
        )

    return read(folder, DIFFUSION, build, device)


def read(
    folder: Path,
    holds: str,
    build: Callable[[Mapping[str, Any], models.Model], Kind],
    device: torch.device | str = "cpu",
) -> Kind:
    """Read a checkpoint folder: build its network, and from its config and that what it holds.

    Raises:
        CheckpointError: it holds something else, or is truncated, foreign or of another version.
    """
    config = read_config(folder)
    found = config.get("holds", DIFFUSION)
    if found != holds:
        raise CheckpointError(f"{folder} holds a network for {found}: one for {holds} is needed here")
    try:
        return build(config, _network(config, folder / WEIGHTS, device))
    except (CheckpointError, MissingDependencyError):
        raise
    except KeyError as error:
        raise CheckpointError(
            f"{folder / CONFIG} has no entry {error}: it is incomplete or of another version"
        ) from None
    except (ValueError, TypeError, MemoryError) as error:
        raise CheckpointError(f"{folder / CONFIG} does not describe a network: {error}") from None


def _network(config: Mapping[str, Any], file: Path, device: torch.device | str) -> models.Model:
    """Build the network that a config describes, with the weights of a file, in evaluation mode."""
    weights, description = read_tensors(file), config["model"]
    try:
        model = models.build(description)
        model.load_state_dict(weights)
    except RuntimeError:
        raise CheckpointError(f"{file} does not hold the weights that its {CONFIG} describes") from None
    return model.to(device).eval()


def find(path: str | Path) -> Path:
    """Return the checkpoint folder that `path` means. Raises CheckpointError if there is none."""
    folder = Path(path)
    if (folder / CONFIG).is_file():
        return folder
    newest = newest_step(folder)
    if newest is not None:
        return newest
    if not folder.exists() and str(path) in shipped():
        return shipped()[str(path)]
    if folder.is_dir():
        raise CheckpointError(f"{path} holds no checkpoint: there is no {CONFIG} in it and no finished step of a run")
    raise CheckpointError(
        f"no checkpoint {str(path)!r}: give a folder, or one that ships: {', '.join(shipped()) or 'none'}"
    )


def shipped() -> dict[str, Path]:
    """Return the checkpoints that ship with the package, by name."""
    return {config.parent.name: config.parent for config in sorted(SHIPPED.glob(f"*/{CONFIG}"))}


def newest_step(run: Path) -> Path | None:
    """Return a run's newest finished checkpoint folder, or None."""
    finished = sorted(config.parent for config in run.glob(f"step-*/{CONFIG}"))
    return finished[-1] if finished else None


def read_config(folder: Path) -> dict[str, Any]:
    """Read and check a checkpoint's config. Raises CheckpointError if it is not one."""
    try:
        config = json.loads((folder / CONFIG).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder / CONFIG} cannot be read: {error}") from None
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise CheckpointError(f"{folder / CONFIG} is no fastdiff checkpoint (its format is not {FORMAT!r})")
    return config


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Read a safetensors file. Raises CheckpointError if it is missing, truncated or of another kind."""
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{file} cannot be read, it is missing, truncated or no safetensors file: {error}"
        ) from None


def keep_only(newest: Path) -> None:
    """Delete every other step of a run, also half-written and half-deleted ones that a killed run left."""
    for folder in newest.parent.glob("step-*"):
        if folder != newest:
            remove(folder)
    for folder in newest.parent.glob(".step-*"):
        shutil.rmtree(folder)


def remove(folder: Path) -> None:
    """Delete a checkpoint folder; it stops being found before its content goes."""
    (folder / CONFIG).unlink(missing_ok=True)
    shutil.rmtree(folder)
