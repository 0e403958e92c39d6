"""The training loop: a run that was stopped, killed or out of disk ends in the bits of one that never was."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from itertools import islice, pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fastdiff import checkpoint as checkpoints
from fastdiff import schedules
from fastdiff.errors import CheckpointError, InputError, NonFiniteError
from fastdiff.models import MLP, MLPConfig
from fastdiff.train import TrainConfig, trainer
from fastdiff.train.batch import Batch
from fastdiff.train.objectives import l_simple
from fastdiff.train.trainer import Trainer, train

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS, STATE = checkpoints.WEIGHTS, trainer.STATE

POINTS = TrainConfig(
    data="moons", width=8, T=10, steps=10, batch=8, warmup=2, save_every=4, sample_every=100, schedule="cosine"
)
DIGITS = dataclasses.replace(POINTS, data="digits", dropout=0.3)


def weights(folder: Path) -> dict[str, str]:
    """Digests of all bytes: averaged weights in one file, raw weights and optimiser moments in the other."""
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in (WEIGHTS, STATE)}


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def stopped(config: TrainConfig, out: Path, at: int, *, resume: bool = False) -> None:
    """Train until `at` steps are done, and be interrupted there."""
    advance = Trainer._advance

    def advance_or_stop(self: Trainer, batch: Batch) -> Tensor:
        if self.step == at:
            raise KeyboardInterrupt
        return advance(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_advance", advance_or_stop)
        with pytest.raises(KeyboardInterrupt):
            train(config, out, resume=resume)


# --- resuming


@pytest.mark.parametrize("config", [DIGITS, POINTS], ids=["U-Net", "MLP"])
def test_stopped_and_resumed_run_ends_in_the_same_bits(config: TrainConfig, tmp_path: Path) -> None:
    """Stopped twice, a step after a checkpoint and right after one: raw, averaged weights and moments are equal."""
    whole = weights(train(config, tmp_path / "whole"))
    for step in (5, 8):
        stopped(config, tmp_path / "stopped", step, resume=step > 5)
        torch.manual_seed(step)  # what else the process draws must not matter
    resumed = train(config, tmp_path / "stopped", resume=True)
    assert resumed == tmp_path / "stopped" / "step-00000010"
    assert weights(resumed) == whole
    assert load_file(resumed / STATE).keys() == load_file(tmp_path / "whole" / "step-00000010" / STATE).keys()
    assert {name.split(".")[0] for name in load_file(resumed / STATE)} == {"model", "optimizer"}


def test_dropout_is_on_and_seeded_by_the_step(tmp_path: Path) -> None:
    """Runs with and without dropout differ, else the test above says nothing of it."""
    run = dataclasses.replace(DIGITS, steps=3)
    with_dropout = train(run, tmp_path / "with")
    without = train(dataclasses.replace(run, dropout=0.0), tmp_path / "without")
    assert weights(with_dropout)[STATE] != weights(without)[STATE]


def test_seed_decides_the_run(tmp_path: Path) -> None:
    """Two runs of one seed are equal bit for bit, another seed is another run."""
    run = dataclasses.replace(POINTS, steps=3)
    first, again, other = (
        weights(train(dataclasses.replace(run, seed=seed), tmp_path / name))
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert first == again
    assert all(first[name] != other[name] for name in first)


KILLED = """
import json, sys, time
from pathlib import Path
from fastdiff import checkpoint
from fastdiff.train import TrainConfig
from fastdiff.train.trainer import train

write, saves = checkpoint.save_file, 0

def stop_within_the_second_save(tensors, file):
    global saves
    saves += 1
    write(tensors, file)
    if saves == 4:  # two files a checkpoint
        file.write_bytes(file.read_bytes()[:1000])
        Path(sys.argv[2]).touch()
        time.sleep(3600)

checkpoint.save_file = stop_within_the_second_save
train(TrainConfig(**json.loads(sys.argv[3])), sys.argv[1])
"""


def test_killed_run_resumes_to_the_same_bits(tmp_path: Path) -> None:
    """SIGKILL in the middle of writing the second checkpoint: the run goes on from the first one."""
    run, reached = tmp_path / "killed", tmp_path / "writing the second checkpoint"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, run, reached, json.dumps(DIGITS.to_dict())],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        while not reached.exists():
            assert process.poll() is None, process.communicate()[1].decode()
            time.sleep(0.02)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert checkpoints.newest_step(run) == run / "step-00000004"
    half_written = [path for path in run.iterdir() if path.name.startswith(".step-00000008")]
    assert len(half_written) == 1
    assert weights(train(DIGITS, run, resume=True)) == weights(train(DIGITS, tmp_path / "whole"))


def test_settings_that_are_free_change_no_bit(tmp_path: Path, pictures: None) -> None:
    """How often a run saves and draws samples, and who reads the data, leave the weights as they are."""
    free = {"save_every": 3, "sample_every": 2, "workers": 1}
    assert weights(train(dataclasses.replace(POINTS, **free), tmp_path / "a")) == weights(train(POINTS, tmp_path / "b"))


def test_finished_run_can_be_resumed(tmp_path: Path) -> None:
    """There is nothing left to do: the last checkpoint stays as it is."""
    last = train(POINTS, tmp_path)
    before = weights(last)
    assert train(POINTS, tmp_path, resume=True) == last
    assert weights(last) == before


def test_resume_with_another_setting_is_refused(tmp_path: Path) -> None:
    """The error names the setting, and the run stays as it was."""
    last = train(dataclasses.replace(POINTS, steps=4), tmp_path)
    before = weights(last)
    with pytest.raises(InputError, match=r"cannot resume: lr was 0\.001, now 0\.002"):
        train(dataclasses.replace(POINTS, steps=4, lr=2e-3), tmp_path, resume=True)
    assert listing(tmp_path) == ["step-00000004"]
    assert weights(last) == before


@pytest.mark.parametrize("tracker", ["none", "tensorboard"])
@pytest.mark.parametrize("existing", [False, True], ids=["no folder", "empty folder"])
def test_resume_with_nothing_is_refused(tmp_path: Path, existing: bool, tracker: str) -> None:
    """No folder, or an empty one: the error says so and nothing is written."""
    run = tmp_path / "run"
    if existing:
        run.mkdir()
    with pytest.raises(InputError, match="nothing to resume"):
        train(dataclasses.replace(POINTS, tracker=tracker), run, resume=True)
    assert not run.exists() or not list(run.iterdir())


@pytest.mark.parametrize("tracker", ["none", "tensorboard"])
def test_starting_over_a_run_is_refused(tmp_path: Path, tracker: str) -> None:
    """A run is never overwritten, nor written into, by a new one."""
    last = train(dataclasses.replace(POINTS, steps=4), tmp_path)
    before = weights(last)
    with pytest.raises(InputError, match="already holds a run"):
        train(dataclasses.replace(POINTS, steps=4, tracker=tracker), tmp_path)
    assert listing(tmp_path) == ["step-00000004"]
    assert weights(last) == before


@pytest.mark.parametrize("damaged", [WEIGHTS, STATE])
@pytest.mark.parametrize("damage", ["truncated", "missing", "foreign"])
def test_damaged_checkpoint_is_not_resumed(tmp_path: Path, damaged: str, damage: str) -> None:
    """A file of the newest checkpoint is cut, gone, or holds other tensors: one line that names it."""
    file = train(dataclasses.replace(POINTS, steps=4), tmp_path) / damaged
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "missing":
        file.unlink()
    else:
        save_file({"weight": torch.zeros(3)}, file)
    with pytest.raises(CheckpointError, match=damaged) as raised:
        train(dataclasses.replace(POINTS, steps=4), tmp_path, resume=True)
    assert "\n" not in str(raised.value)


# --- checkpoints


def test_only_the_newest_checkpoint_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each save there is one finished checkpoint afterwards, of the step that was saved."""
    seen, save = [], Trainer._save

    def save_and_look(self: Trainer) -> None:
        save(self)
        seen.append(listing(self.out))

    monkeypatch.setattr(Trainer, "_save", save_and_look)
    last = train(POINTS, tmp_path)
    assert seen == [["step-00000004"], ["step-00000008"], ["step-00000010"]]
    assert json.loads((last / "config.json").read_text())["training"] == {**POINTS.to_dict(), "step": 10}


def test_what_a_killed_run_left_is_cleared_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older checkpoint, a half-written and a half-deleted one do not stay for ever beside the newest."""
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "remove", lambda folder: None)
        stopped(POINTS, tmp_path, 9)
    assert listing(tmp_path) == ["step-00000004", "step-00000008"]
    for left in (".step-00000008-a1b2c3d4", "step-00000002"):
        (tmp_path / left).mkdir()
        (tmp_path / left / WEIGHTS).touch()
    train(POINTS, tmp_path, resume=True)
    assert listing(tmp_path) == ["step-00000010"]


@pytest.mark.parametrize("fatal", [3, 4], ids=["first file", "second file"])
def test_full_disk_keeps_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fatal: int) -> None:
    """Full at the second save: one line; the first one loads, and resuming from it ends in the same bits."""
    calls = []

    def write_half(tensors: dict[str, Tensor], file: Path) -> None:
        save_file(tensors, file)
        calls.append(file)
        if len(calls) == fatal:
            file.write_bytes(file.read_bytes()[:100])
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_file", write_half)
        with pytest.raises(CheckpointError, match="No space left on device") as raised:
            train(POINTS, tmp_path / "full")
    assert "\n" not in str(raised.value)
    assert listing(tmp_path / "full") == ["step-00000004"]
    assert checkpoints.load(tmp_path / "full").data == "moons"
    resumed = train(POINTS, tmp_path / "full", resume=True)
    assert weights(resumed) == weights(train(POINTS, tmp_path / "whole"))


@pytest.mark.parametrize("config", [DIGITS, POINTS], ids=["U-Net", "MLP"])
def test_checkpoint_holds_the_average_ready_to_sample(tmp_path: Path, config: TrainConfig) -> None:
    """What is loaded is the averaged network, with the data's shape, classes and bound, and it samples."""
    last = train(dataclasses.replace(config, steps=3), tmp_path)
    loaded = checkpoints.load(tmp_path)
    state = load_file(last / STATE)
    average = loaded.model.state_dict()
    assert average.keys() == {name.removeprefix("model.") for name in state if name.startswith("model.")}
    assert any(not torch.equal(value, state[f"model.{name}"]) for name, value in average.items())
    image = config.data == "digits"
    assert (loaded.shape, len(loaded.classes), loaded.clip) == ((1, 8, 8), 10, 1.0) if image else ((2,), 2, None)
    assert (loaded.data, loaded.prediction, len(loaded.schedule)) == (config.data, config.prediction, config.T)
    assert not loaded.model.training


def test_variance_exploding_schedule_trains_on_unit_input(tmp_path: Path) -> None:
    """Levels of up to 80 reach the network scaled, in training and from the checkpoint."""
    train(dataclasses.replace(POINTS, schedule="karras", prediction="x0", steps=2), tmp_path)
    schedule = checkpoints.load(tmp_path).schedule
    assert np.allclose(schedule.scale_in * np.hypot(schedule.alpha, schedule.sigma), 1, rtol=1e-15)


# --- learning


def test_loss_goes_down_on_moons(tmp_path: Path) -> None:
    """On held-out noise the trained network is better than an untrained one, whose eps loss is the variance, 1.

    200 small steps measured 0.42 with this seed, from 0.96; other machines round otherwise, hence the room.
    """
    config = dataclasses.replace(POINTS, steps=200, batch=64, width=16, lr=5e-3, prediction="eps", ema=0.9, T=100)
    train(dataclasses.replace(config, save_every=200), tmp_path)
    loaded = checkpoints.load(tmp_path)
    data = trainer.datasets.load("moons", split="held-out").dataset
    points = torch.stack([data[i][0] for i in range(500)])
    times = torch.arange(500) % config.T

    def loss(model: nn.Module) -> float:
        with torch.no_grad():
            batch = Batch(points, times, torch.ones(500), times, {}, index=times, seed=9, step=0)
            return float(l_simple(loaded.schedule, "eps")(model, batch).mean())

    untrained = MLP(MLPConfig(width=16, classes=2))
    assert loss(untrained) == pytest.approx(1, abs=0.2)
    assert loss(loaded.model) < 0.7 * loss(untrained)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
def test_average_is_the_formula(decay: float) -> None:
    """avg <- d avg + (1 - d) w, d = min(decay, (1 + n) / (10 + n)) after step n, in float64 here."""
    model, average = nn.Linear(3, 2), nn.Linear(3, 2)
    expected = [parameter.detach().double().clone() for parameter in average.parameters()]
    generator = torch.Generator().manual_seed(0)
    for n in range(1, 40):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        trainer.update_average(average, model, decay, n)
        d = min(decay, (1 + n) / (10 + n))
        for value, parameter in zip(expected, model.parameters(), strict=True):
            value.mul_(d).add_(parameter.detach().double(), alpha=1 - d)
    for value, parameter in zip(expected, average.parameters(), strict=True):
        assert torch.allclose(parameter.double(), value, rtol=1e-5, atol=1e-6)  # 40 roundings of float32


def test_average_follows_the_raw_weights_of_a_run(tmp_path: Path) -> None:
    """In a run the average starts at the initial weights and moves after every step."""
    run = Trainer(dataclasses.replace(POINTS, steps=5, ema=0.5), tmp_path)
    expected = [parameter.detach().clone() for parameter in run.model.parameters()]
    for n, batch in enumerate(islice(run._batches(), 5), start=1):
        run._advance(batch)
        d = min(0.5, (1 + n) / (10 + n))
        expected = [d * old + (1 - d) * new.detach() for old, new in zip(expected, run.model.parameters(), strict=True)]
    for value, parameter in zip(expected, run.average.parameters(), strict=True):
        assert torch.allclose(value, parameter, rtol=1e-5, atol=1e-7)


@settings(deadline=None, max_examples=30)
@given(steps=st.integers(2, 400), warmup=st.integers(0, 100), lr=st.floats(1e-6, 1.0))
def test_learning_rate_warms_up_then_falls_to_zero(steps: int, warmup: int, lr: float) -> None:
    """Linear up to lr at the end of the warm-up, half a cosine down, lr / 2 half-way, 0 at the end."""
    warmup = min(warmup, steps - 1)
    config = TrainConfig(steps=steps, warmup=warmup, lr=lr)
    rates = [trainer.learning_rate(config, step) for step in range(steps + 1)]
    up, down = rates[:warmup], rates[warmup:]
    assert np.allclose(up, lr * np.arange(1, warmup + 1) / max(1, warmup), rtol=1e-12)
    assert down[0] == lr
    assert all(a > b for a, b in pairwise(down))
    assert np.allclose(np.add(down, down[::-1]), lr, rtol=1e-12)
    assert down[-1] == 0


def test_optimiser_is_given_that_rate(tmp_path: Path) -> None:
    """Each step runs at the rate of its number, also after a resume."""
    run = Trainer(POINTS, tmp_path)
    for step, batch in enumerate(islice(run._batches(), 4)):
        run._advance(batch)
        assert {group["lr"] for group in run.optimizer.param_groups} == {trainer.learning_rate(POINTS, step)}


def test_gradient_is_clipped(tmp_path: Path) -> None:
    """The norm that reaches the optimiser is the bound where the gradient's own is larger."""
    run = Trainer(dataclasses.replace(POINTS, clip_norm=1e-3), tmp_path)
    norms = []

    def step() -> None:
        gradients = [p.grad for p in run.model.parameters() if p.grad is not None]
        norms.append(float(torch.stack([g.norm() for g in gradients]).norm()))

    run.optimizer.step = step
    for batch in islice(run._batches(), 2):
        run._advance(batch)
    assert norms == pytest.approx([1e-3, 1e-3], rel=1e-3)


@pytest.mark.parametrize("config", [POINTS, DIGITS], ids=["MLP", "U-Net"])
def test_loss_that_is_not_finite_ends_the_run(tmp_path: Path, config: TrainConfig) -> None:
    """A huge learning rate: the error says what to do, and no broken checkpoint is written."""
    with pytest.raises(NonFiniteError, match=r"(loss is (nan|inf)|not finite) at step \d+: lower the learning rate"):
        train(dataclasses.replace(config, lr=1e30, warmup=0, clip_norm=1e30), tmp_path)
    assert checkpoints.newest_step(tmp_path) is None


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of the last step before a save is finite and that step breaks the weights: an error, no checkpoint."""
    advance = Trainer._advance

    def break_after(self: Trainer, batch: Batch) -> Tensor:
        loss = advance(self, batch)
        if self.step == 8:
            with torch.no_grad():
                next(iter(self.model.parameters())).fill_(math.nan)
                next(iter(self.average.parameters())).fill_(math.nan)
        return loss

    monkeypatch.setattr(Trainer, "_advance", break_after)
    with pytest.raises(NonFiniteError):
        train(POINTS, tmp_path)
    assert listing(tmp_path) == ["step-00000004"]


# --- batches


def test_times_and_dropped_labels_are_functions_of_seed_and_step(tmp_path: Path) -> None:
    """They repeat, differ between steps and seeds, cover all levels, and drop as often as asked."""
    config = dataclasses.replace(DIGITS, batch=500, condition_dropout=0.15, T=10)
    run, again = Trainer(config, tmp_path), Trainer(config, tmp_path)
    drawn = [run._drawn(step) for step in range(20)]
    for step, values in enumerate(drawn):
        assert all(np.array_equal(a, b) for a, b in zip(values, again._drawn(step), strict=True))
    other = Trainer(dataclasses.replace(config, seed=1), tmp_path)._drawn(0)
    assert not np.array_equal(drawn[0][0], drawn[1][0])
    assert not np.array_equal(drawn[0][0], other[0])
    t, weight, dropped = (np.concatenate(part) for part in zip(*drawn, strict=True))
    # Five standard errors of a frequency p among 10,000: 5 sqrt(p (1 - p) / 10,000).
    assert abs(dropped.mean() - 0.15) < 5 * math.sqrt(0.15 * 0.85 / 10_000)
    assert np.abs(np.bincount(t, minlength=10) / 10_000 - 0.1).max() < 5 * math.sqrt(0.1 * 0.9 / 10_000)
    assert set(t) == set(range(10))
    assert (weight == 1).all()
    kept = Trainer(dataclasses.replace(config, condition_dropout=0.0), tmp_path)
    assert not kept._drawn(0)[2].any()


def _batches(run: Trainer, count: int, process: int = 0, processes: int = 1) -> list[Batch]:
    """The first shares of a process among several, without starting any."""
    run.accelerator = SimpleNamespace(process_index=process, num_processes=processes, device=torch.device("cpu"))  # type: ignore[assignment]
    return list(islice(run._batches(), count))


def test_dropped_label_becomes_the_null_token(tmp_path: Path) -> None:
    """Labels are the data's own or the number of classes, the latter as often as asked."""
    config = dataclasses.replace(DIGITS, batch=400, condition_dropout=0.25)
    labels = torch.cat([batch.cond["y"] for batch in _batches(Trainer(config, tmp_path), 10)])
    assert set(labels.tolist()) == set(range(11))
    assert abs(float((labels == 10).float().mean()) - 0.25) < 5 * math.sqrt(0.25 * 0.75 / 4000)  # five standard errors
    kept = dataclasses.replace(DIGITS, batch=400, condition_dropout=0.0)
    batches = _batches(Trainer(kept, tmp_path), 4)
    assert all(int(batch.cond["y"].max()) < 10 for batch in batches)


def test_data_without_classes_has_no_condition(tmp_path: Path) -> None:
    """An unlabelled run gives the network no y."""
    config = dataclasses.replace(POINTS, data="swiss_roll")
    assert [batch.cond for batch in _batches(Trainer(config, tmp_path), 2)] == [{}, {}]


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("config", [DIGITS, POINTS], ids=["U-Net", "MLP"])
def test_shares_of_processes_are_the_whole_batch(tmp_path: Path, config: TrainConfig, processes: int) -> None:
    """Put together, what several processes get is what a single one gets: data, times, labels and positions."""
    run = Trainer(config, tmp_path)
    whole = _batches(run, 4)
    shares = [_batches(run, 4, process, processes) for process in range(processes)]
    for step, batch in enumerate(whole):
        parts = [share[step] for share in shares]
        assert all(len(part.x0) == config.batch // processes for part in parts)
        for name in ("x0", "t", "index"):
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(batch, name)), name
        assert torch.equal(torch.cat([part.cond["y"] for part in parts]), batch.cond["y"])
        assert batch.index.tolist() == list(range(config.batch))


@given(processes=st.integers(1, 16), each=st.integers(1, 50))
def test_shares_cover_the_batch_once(processes: int, each: int) -> None:
    """Equal parts, none twice, none left out."""
    shares = [trainer._share(processes * each, process, processes) for process in range(processes)]
    assert [len(share) for share in shares] == [each] * processes
    assert np.concatenate(shares).tolist() == list(range(processes * each))


def test_batch_that_does_not_divide_is_refused() -> None:
    """A part smaller than the others would weigh its samples more."""
    with pytest.raises(InputError, match="batch 8 does not divide among 3 processes"):
        trainer._share(8, 0, 3)


def test_dropout_differs_between_processes() -> None:
    """Each process has a generator of its own, and each step too."""
    with torch.random.fork_rng(devices=[]):
        draws = []
        for step, process in ((0, 0), (0, 1), (1, 0), (0, 0)):
            trainer._seed_network(5, step, process)
            draws.append(float(torch.rand(())))
    assert len(set(draws)) == 3
    assert draws[0] == draws[3]


# --- what a run shows


@pytest.mark.parametrize(
    ("config", "size"),
    # Digits are enlarged to 32, with gaps of 2: 8 in a row, 10 classes.
    [(DIGITS, (8 * 34 + 2, 10 * 34 + 2)), (POINTS, (480, 480))],
    ids=["digits", "points"],
)
def test_sample_grids_are_pngs(tmp_path: Path, config: TrainConfig, size: tuple[int, int], pictures: None) -> None:
    """One picture at every `sample_every` steps and at the end, a row for each class."""
    train(dataclasses.replace(config, steps=5, sample_every=3), tmp_path)
    assert listing(tmp_path / "samples") == ["step-00000003.png", "step-00000005.png"]
    for file in (tmp_path / "samples").iterdir():
        with Image.open(file) as image:
            image.load()
            assert (image.format, image.size) == ("PNG", size)


def test_tensorboard_gets_the_loss(tmp_path: Path) -> None:
    """The event file in the run's folder holds loss and learning rate at every report and at the last step."""
    from tensorboard.backend.event_processing import event_accumulator

    config = dataclasses.replace(POINTS, steps=trainer.REPORT_EVERY + 5, tracker="tensorboard")
    train(config, tmp_path)
    (events,) = tmp_path.rglob("events.out.tfevents.*")
    log = event_accumulator.EventAccumulator(str(events)).Reload()
    steps = [trainer.REPORT_EVERY, config.steps]
    assert [event.step for event in log.Scalars("loss")] == steps
    assert all(0 < event.value < 10 for event in log.Scalars("loss"))
    rates = [trainer.learning_rate(config, step - 1) for step in steps]
    assert [event.value for event in log.Scalars("lr")] == pytest.approx(rates)


def test_bf16_runs_and_resumes_to_the_same_bits(tmp_path: Path) -> None:
    """Autocast changes the numbers, keeps float32 weights, and is as repeatable as float32."""
    config = dataclasses.replace(DIGITS, steps=6, save_every=3, precision="bf16")
    whole = train(config, tmp_path / "whole")
    stopped(config, tmp_path / "stopped", 4)
    assert weights(train(config, tmp_path / "stopped", resume=True)) == weights(whole)
    assert {value.dtype for value in load_file(whole / STATE).values()} == {torch.float32}
    AcceleratorState._reset_state(reset_partial_state=True)
    exact = train(dataclasses.replace(config, precision="fp32"), tmp_path / "exact")
    assert weights(exact)[STATE] != weights(whole)[STATE]


def test_one_program_can_train_in_two_precisions(tmp_path: Path) -> None:
    """A notebook may train in float32 and then in bf16: neither is a missing dependency."""
    config = dataclasses.replace(POINTS, steps=1)
    train(config, tmp_path / "fp32")
    train(dataclasses.replace(config, precision="bf16"), tmp_path / "bf16")


def test_wrong_data_writes_nothing(tmp_path: Path) -> None:
    """An unknown name is found before anything is made, whatever the tracker."""
    for tracker in ("none", "tensorboard"):
        with pytest.raises(InputError, match="did you mean 'moons'"):
            train(dataclasses.replace(POINTS, data="moonz", tracker=tracker), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_prediction_that_a_schedule_cannot_have_writes_nothing(tmp_path: Path) -> None:
    """eps at alpha = 0 is found before the run begins."""
    assert schedules.flow(10).alpha[-1] == 0
    with pytest.raises(InputError, match="alpha is 0"):
        train(dataclasses.replace(POINTS, schedule="flow", prediction="eps"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
