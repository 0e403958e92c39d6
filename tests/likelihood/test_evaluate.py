"""Learned variances in checkpoints, and `fastdiff eval`."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fastdiff as fd
from fastdiff import checkpoint as checkpoints
from fastdiff import cli
from fastdiff.checkpoint import Checkpoint
from fastdiff.errors import InputError
from fastdiff.likelihood import evaluate
from fastdiff.models import MLP, ConvAutoencoder, ConvAutoencoderConfig, MLPConfig, UNet, UNetConfig
from fastdiff.train import data as datasets

T = 6


@torch.no_grad()
def trained(model: Any) -> Any:
    """A network whose every weight counts, the labels' too; at first the last layer gives 0."""
    for k, parameter in enumerate(model.parameters()):
        parameter.add_(0.3 * fd.noise.normal((1, *parameter.shape), seed=k)[0])
    return model.eval()


LEARNED = Checkpoint(
    trained(MLP(MLPConfig(width=8, classes=2, learn_variance=True), seed=1)),
    fd.schedules.cosine(T),
    prediction="v",
    shape=(2,),
    classes=("upper", "lower"),
    clip=None,
    data="moons",
)
FIXED = replace(LEARNED, model=trained(MLP(MLPConfig(width=8, classes=2), seed=1)))
DIGITS = Checkpoint(
    trained(UNet(UNetConfig(channels=1, width=8, blocks=1, classes=10), seed=1)),
    *(fd.schedules.cosine(T), "v", (1, 8, 8), tuple("0123456789"), 1.0, "digits"),
)


def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object
) -> tuple[Any, str, str]:
    monkeypatch.setattr("sys.argv", ["fastdiff", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    return ended.value.code, out, err


# --- learned variance


def test_ddpm_uses_the_variance_that_was_learned() -> None:
    """By default, for a network that learned it, and for no other."""
    assert LEARNED.plan("ddpm", steps=3) == fd.samplers.ddpm(
        LEARNED.schedule, 3, "learned_range", prediction="v", clip=None
    )
    assert FIXED.plan("ddpm", steps=3) == fd.samplers.ddpm(FIXED.schedule, 3, prediction="v", clip=None)


@pytest.mark.parametrize(
    ("sampler", "options"), [("ddpm", {"variance": "small"}), ("ddim", {"eta": 1.0}), ("dpmpp_3m_sde", {})]
)
def test_other_noise_than_the_learned_is_refused(sampler: str, options: dict[str, Any]) -> None:
    """In one line that says what to use; the same plans fit a network that learned none."""
    with pytest.raises(InputError, match=f"{sampler}.* draws noise of a fixed variance.*learned_range.*ddim") as raised:
        LEARNED.plan(sampler, steps=3, **options)
    assert "\n" not in str(raised.value)
    FIXED.plan(sampler, steps=3, **options)


@pytest.mark.parametrize("sampler", ["ddim", "heun", "unipc", "dpmpp_2m"])
def test_samplers_without_noise_drop_the_variance(sampler: str) -> None:
    """They sample a network that learned its variance."""
    x = fd.sample(LEARNED.model, LEARNED.plan(sampler, steps=3), (4, 2), cond={"y": torch.tensor([0, 1, 2, 0])})
    assert x.shape == (4, 2)
    assert x.isfinite().all()


def test_learned_variance_needs_a_network_that_learned_it() -> None:
    """Before any work."""
    with pytest.raises(InputError, match="needs a network that learned its variance: use variance='small'"):
        FIXED.plan("ddpm", variance="learned_range")


def test_command_line_samples_a_learned_variance(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a word about samplers it takes ddpm; a sampler of other noise is refused."""
    checkpoints.save(tmp_path / "run", LEARNED)
    arguments = (
        "sample",
        "--checkpoint",
        tmp_path / "run",
        "--out",
        tmp_path / "x.png",
        "--steps",
        4,
        "--per-class",
        3,
    )
    code, out, _ = run(capsys, monkeypatch, *arguments)
    assert code in (0, None)
    assert "ddpm(variance=learned_range), 4 evaluations" in out
    code, _, err = run(capsys, monkeypatch, *arguments, "--sampler", "dpmpp_3m_sde")
    assert code == 1
    assert err.startswith("error: dpmpp_3m_sde")
    assert err.count("\n") == 1


# --- fastdiff eval


def spread(rows: Any, count: int) -> tuple[Tensor, Tensor]:
    """Samples and classes, from the first to the last of the data, at even distances."""
    x0, y = zip(*(rows[int(i)] for i in torch.linspace(0, len(rows) - 1, count, dtype=torch.float64)), strict=True)
    return torch.stack(x0), torch.stack(y)


@pytest.mark.parametrize("checkpoint", [FIXED, LEARNED], ids=["fixed", "learned"])
def test_bound_of_points_is_reported_in_nats(checkpoint: Checkpoint) -> None:
    """The parts are those of `likelihood.bound` on samples all over the held-out split, given their classes."""
    report = evaluate.likelihood(checkpoint, count=20, progress=False)
    rows = datasets.load("moons", split="held-out").dataset
    x0, y = spread(rows, 20)
    variance = "learned_range" if checkpoint is LEARNED else "small"
    terms = fd.likelihood.bound(
        *(checkpoint.model, x0, checkpoint.schedule), prediction="v", variance=variance, cond={"y": y}
    ).terms
    assert (report["unit"], report["variance"], report["samples"]) == ("nats/dim", variance, 20)
    assert report["terms"] == pytest.approx((terms.mean(dim=0) / 2).tolist(), rel=1e-12)
    parts = report["parts"]
    assert list(parts) == ["L_T", "L_1 + ... + L_5", "L_0", "bound"]
    total = terms.sum(dim=1) / 2
    assert parts["bound"]["mean"] == pytest.approx(float(total.mean()), rel=1e-12)
    assert parts["bound"]["standard_error"] == pytest.approx(float(total.std()) / math.sqrt(20), rel=1e-12)
    assert sum(parts[name]["mean"] for name in list(parts)[:3]) == pytest.approx(parts["bound"]["mean"], rel=1e-12)


def test_images_are_reported_in_bits() -> None:
    """Digits have 17 levels and 64 elements; nats over 64 ln 2. The network's clip is the model's."""
    report = evaluate.likelihood(DIGITS, count=3, progress=False)
    rows = datasets.load("digits", split="held-out").dataset
    x0, y = spread(rows, 3)
    found = fd.likelihood.bound(
        *(DIGITS.model, x0, DIGITS.schedule), prediction="v", levels=17, clip=1.0, cond={"y": y}
    )
    assert (report["unit"], report["levels"]) == ("bits/dim", 17)
    assert report["parts"]["bound"]["mean"] == pytest.approx(found.mean, rel=1e-12)


def test_network_of_latents_is_refused() -> None:
    """What it predicts is no data; one line, before anything is read."""
    autoencoder = fd.latents.Autoencoder(
        ConvAutoencoder(ConvAutoencoderConfig(channels=1, width=8)), (1, 8, 8), "digits"
    )
    network = UNet(UNetConfig(channels=4, width=8)).eval()
    latent = Checkpoint(network, FIXED.schedule, "v", (4, 4, 4), (), None, "digits", autoencoder)
    with pytest.raises(InputError, match="likelihood of latents says nothing"):
        evaluate.likelihood(latent)


@pytest.mark.parametrize("of", [FIXED, LEARNED], ids=["fixed", "learned"])
def test_ode_is_reported(of: Checkpoint) -> None:
    """-log p per dimension, of the ODE that begins where the sampler does; a learned variance takes no part."""
    checkpoint = replace(of, schedule=fd.schedules.cosine(60))
    report = evaluate.likelihood(
        checkpoint, count=4, method="ode", trace="exact", sampler="ddim", split="train", progress=False
    )
    rows = datasets.load("moons").dataset
    x0, y = spread(rows, 4)
    nats = fd.likelihood.log_likelihood(
        *(checkpoint.model, x0, checkpoint.schedule), prediction="v", plan=checkpoint.plan("ddim"), cond={"y": y}
    )
    assert report["unit"] == "nats/dim"
    assert report["parts"]["-log p"]["mean"] == pytest.approx(-float(nats.mean()) / 2, rel=1e-6)


def test_command_line_prints_and_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line for each part with its error and unit, and the same as JSON."""
    checkpoints.save(tmp_path / "run", LEARNED)
    file = tmp_path / "bound.json"
    code, out, _ = run(capsys, monkeypatch, "eval", tmp_path / "run", "--bpd", "--count", 8, "--out", file)
    assert code in (0, None)
    report = json.loads(file.read_text())
    assert out.splitlines()[0] == "moons, held-out split, 8 samples, variational bound, variance learned_range"
    for line, (name, part) in zip(out.splitlines()[1:5], report["parts"].items(), strict=True):
        assert line.startswith(name)
        assert line.endswith(f"{part['mean']:.4f} +- {part['standard_error']:.4f} nats/dim")
    assert len(report["terms"]) == T + 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "ask for the likelihood with --bpd"),
        (("--bpd", "--method", "elbo"), "unknown method 'elbo'"),
        (("--bpd", "--trace", "exact"), "trace is no option of method 'vlb'"),
        (("--bpd", "--method", "ode", "--variance", "small"), "variance is no option of method 'ode'"),
        (("--bpd", "--variance", "learned_range"), "needs a network that learned its variance"),
        (("--bpd", "--method", "ode", "--sampler", "ddpm"), "draws noise.*likelihood.bound"),
        (("--bpd", "--data", "swiss_roll"), "give the data it was trained on with --data"),
        (("--bpd", "--split", "test"), "unknown split 'test'"),
        (("--bpd", "--count", "1"), "count must be a whole number, at least 2"),
    ],
)
def test_wrong_use_costs_one_line(
    arguments: tuple[str, ...],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And nothing is measured."""
    checkpoints.save(tmp_path / "run", FIXED)
    code, out, err = run(capsys, monkeypatch, "eval", tmp_path / "run", *arguments)
    assert (code, out) == (1, "")
    assert err.startswith("error: ") and err.count("\n") == 1
    assert re.search(message, err)
