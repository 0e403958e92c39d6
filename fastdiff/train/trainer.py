"""The training loop. All that a step needs is a function of (seed, step), so a resumed run is the run."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from fastdiff import checkpoint as checkpoints
from fastdiff import models
from fastdiff.checkpoint import Saved
from fastdiff.errors import InputError, NonFiniteError
from fastdiff.files import check_folder
from fastdiff.train import data as datasets
from fastdiff.train import state as states
from fastdiff.train import tasks
from fastdiff.train.batch import Batch
from fastdiff.train.config import PRECISIONS, TRACKERS, TrainConfig
from fastdiff.train.libraries import require
from fastdiff.train.times import TIMES, Floats, Ints

STATE = "training.safetensors"
REPORT_EVERY = 20  # steps; reading the loss waits for the device
Bools = npt.NDArray[np.bool_]
# Names the independent random streams that share a run's seed.
_TIMES_STREAM, _NETWORK_STREAM = 1, 2


def train(config: TrainConfig, out: str | Path, *, resume: bool = False, progress: bool = True) -> Path:
    """Train a network and return the folder of its last checkpoint.

    Writes `out/step-XXXXXXXX/` (config.json, model.safetensors with the averaged weights, training.safetensors with
    all that a resume needs) and `out/samples/`. Processes, devices and mixed precision are Accelerate's: run it under
    `accelerate launch` for several.

    Args:
        config: the run.
        out: its folder.
        resume: continue from its newest checkpoint; the weights end as if the run had never stopped.
        progress: show a bar where the output is a terminal.

    Raises:
        InputError: the data or a name is wrong, the folder already holds a run, or resuming would not continue it.
        CheckpointError: a checkpoint cannot be read or written.
        NonFiniteError: the loss is NaN or infinite.
    """
    return Trainer(config, Path(out), resume=resume).run(progress)


class Trainer:
    """A run in progress: task, network, averaged network, optimiser, data and the step they stand at."""

    def __init__(self, config: TrainConfig, out: Path, *, resume: bool = False) -> None:
        self.config, self.out = config, out
        newest = checkpoints.newest_step(out)
        if newest is None and resume:
            raise InputError(f"nothing to resume: {out} holds no checkpoint")
        if newest is not None and not resume:
            raise InputError(f"{out} already holds a run: resume it (--resume) or choose another folder (--out)")
        self.accelerator = _accelerator(config, out)
        _share(config.batch, 0, self.accelerator.num_processes)  # or there is nothing to begin
        self.data = datasets.load(config.data, size=config.size, channels=config.channels)
        if self.data.skipped:
            self.accelerator.print(f"skipped {self.data.skipped} unreadable images of {config.data}", file=sys.stderr)
        self.task = tasks.make(config, self.data)
        check_folder(out)
        self.times = TIMES[config.times](self.task.levels)
        model = models.build(self.task.description, seed=config.seed)
        self.average = models.build(models.describe(model), seed=config.seed).to(self.accelerator.device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True)
        self.model: nn.Module
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.step = 0
        if newest is not None:
            self._restore(newest)

    def run(self, progress: bool = True) -> Path:
        """Train to the last step and return the last checkpoint's folder."""
        config, accelerator = self.config, self.accelerator
        if config.tracker != "none":
            accelerator.init_trackers("fastdiff")
        bar = tqdm(
            total=config.steps,
            initial=self.step,
            desc="train",
            unit="step",
            disable=None if progress and accelerator.is_main_process else True,
        )
        batches = self._batches()
        with bar:
            while self.step < config.steps:
                loss = self._advance(next(batches))
                bar.update()
                if self._due(REPORT_EVERY):
                    self._report(bar, float(accelerator.reduce(loss, "mean")))
                if self._due(config.save_every):
                    self._save()
                if self._due(config.sample_every):
                    self._draw_samples()
        accelerator.end_training()
        return self._folder()

    def _due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.config.steps

    def _advance(self, batch: Batch) -> Tensor:
        config = self.config
        _seed_network(config.seed, self.step, self.accelerator.process_index)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, self.step)
        self.model.train()
        with self._autocast():
            losses = self.task.loss(self.model, batch)
        loss = (losses * batch.weight).mean()
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.model.parameters(), config.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        update_average(self.average, self.accelerator.unwrap_model(self.model), config.ema, self.step)
        if self.times.learns:
            t, found = self.accelerator.gather((batch.t, losses.detach()))
            self.times.learn(t.cpu().numpy(), found.cpu().double().numpy())
        return loss.detach()

    def _autocast(self) -> torch.autocast:
        dtype = PRECISIONS[self.config.precision]
        return torch.autocast(self.accelerator.device.type, dtype, enabled=dtype != torch.float32)

    def _batches(self) -> Iterator[Batch]:
        """Yield this process's share of every batch from the current step on."""
        config, accelerator = self.config, self.accelerator
        positions = _share(config.batch, accelerator.process_index, accelerator.num_processes)
        indices = datasets.batches(len(self.data), config.batch, config.seed, self.step)
        loader = DataLoader(
            self.data.dataset,
            batch_sampler=(whole[positions].tolist() for whole in indices),
            num_workers=config.workers,
        )
        index = torch.from_numpy(positions).to(accelerator.device)
        for step, (x0, label) in enumerate(_named_errors(loader), start=self.step):
            t, weight, dropped = (torch.from_numpy(drawn[positions]) for drawn in self._drawn(step))
            cond = {}
            if self.data.classes:
                cond = {"y": torch.where(dropped, len(self.data.classes), label).to(accelerator.device)}
            yield Batch(
                x0=x0.to(accelerator.device),
                t=t.to(accelerator.device),
                weight=weight.float().to(accelerator.device),
                label=label.to(accelerator.device),
                cond=cond,
                index=index,
                seed=config.seed,
                step=step,
            )

    def _drawn(self, step: int) -> tuple[Ints, Floats, Bools]:
        """Return for a whole batch the schedule indices, the factors of their losses, and which labels are dropped.

        A function of (seed, step) and, for times that learn, of the losses before.
        """
        config = self.config
        generator = np.random.default_rng([config.seed, _TIMES_STREAM, step])
        t, weight = self.times.draw(generator, config.batch)
        return t, weight, generator.random(config.batch) < config.condition_dropout

    def _report(self, bar: tqdm, loss: float) -> None:
        if not math.isfinite(loss):
            raise NonFiniteError(f"the loss is {loss} at step {self.step}: lower the learning rate (--lr)")
        bar.set_postfix(loss=f"{loss:.4f}")
        self.accelerator.log({"loss": loss, "lr": learning_rate(self.config, self.step - 1)}, step=self.step)

    def saved(self) -> Saved:
        """Return what a checkpoint holds now: the averaged network with what its use needs to know of it."""
        return self.task.saved(self.average.eval())

    def _folder(self) -> Path:
        return self.out / checkpoints.STEP_FOLDER.format(self.step)

    def _save(self) -> None:
        state = states.collect(self.accelerator.unwrap_model(self.model), self.optimizer, self.times.state)
        if not all(bool(value.isfinite().all()) for value in state.values()):
            raise NonFiniteError(f"the weights are not finite at step {self.step}: lower the learning rate (--lr)")
        if self.accelerator.is_main_process:
            training = {**self.config.to_dict(), "step": self.step}
            checkpoints.save(self._folder(), self.saved(), training, {STATE: state})
            checkpoints.keep_only(self._folder())
        self.accelerator.wait_for_everyone()

    def _restore(self, folder: Path) -> None:
        earlier = checkpoints.read_config(folder)
        training = earlier.get("training", {})
        self.config.check_same_run(training)
        self.task.check_same_run(earlier)
        states.load_weights(self.average, folder / checkpoints.WEIGHTS)
        states.load(self.accelerator.unwrap_model(self.model), self.optimizer, self.times.state, folder / STATE)
        self.step = int(training["step"])

    def _draw_samples(self) -> None:
        if self.accelerator.is_main_process:
            self.task.draw(self.average.eval(), self.out / "samples" / f"{self._folder().name}.png")


def _named_errors(loader: Iterable[Any]) -> Iterator[Any]:
    """Pass batches on; give an error of a reading process, which comes wrapped in its traceback, its own line back."""
    try:
        yield from loader
    except InputError as error:
        raise InputError(str(error).strip().splitlines()[-1].removeprefix("fastdiff.errors.InputError: ")) from None


def learning_rate(config: TrainConfig, step: int) -> float:
    """Return the rate of a step (0-based): linear warm-up, then a half cosine to 0 at the last step."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.lr * 0.5 * (1 + math.cos(math.pi * done))


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Move the averaged weights towards the model's after optimiser step `step` (from 1).

    The decay grows as (1 + step) / (10 + step) up to `decay`, so that early averages forget the initial weights.
    """
    weight = 1 - min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), weight)


def _accelerator(config: TrainConfig, out: Path) -> Accelerator:
    # Autocast is ours: Accelerate fixes one precision for a whole process, which may train twice.
    tracker = TRACKERS[config.tracker]
    accelerator = Accelerator(mixed_precision="no", log_with=tracker, project_dir=out)
    if tracker is not None:
        require(tracker, tracker)  # Accelerate would go on without it and say nothing
    return accelerator


def _share(batch: int, process: int, processes: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the positions within a batch that a process takes."""
    if batch % processes:
        raise InputError(f"batch {batch} does not divide among {processes} processes")
    return np.arange(process * batch // processes, (process + 1) * batch // processes)


def _seed_network(seed: int, step: int, process: int) -> None:
    """Seed torch's generator, which dropout inside the network draws from."""
    torch.manual_seed(int(np.random.SeedSequence([seed, _NETWORK_STREAM, step, process]).generate_state(1)[0]))
