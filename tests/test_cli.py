"""The command line: what each command writes and prints, and that a mistake costs one line and nothing else."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

import fastdiff as fd
from fastdiff import checkpoint as checkpoints
from fastdiff import cli, pictures, schedules
from fastdiff.checkpoint import Checkpoint
from fastdiff.guidance import Classifier
from fastdiff.latents import Autoencoder
from fastdiff.models import (
    MLP,
    ConvAutoencoder,
    ConvAutoencoderConfig,
    MLPConfig,
    OverSigma,
    UNet,
    UNetClassifier,
    UNetConfig,
)

SCRIPT = Path(sys.executable).with_name("fastdiff")
T = 8


class Ended(NamedTuple):
    """How a call of the command line ended."""

    status: int
    out: str
    err: str


Run = Callable[..., Ended]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Call the command line in this process, in an empty folder, as the script does."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")

    def call(*arguments: str | Path | float) -> Ended:
        monkeypatch.setattr(sys, "argv", ["fastdiff", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended, torch.random.fork_rng(devices=[]):
            cli.main()
        out, err = capsys.readouterr()
        code = ended.value.code
        # What the interpreter does with a text: it prints it on stderr and ends with status 1.
        return Ended(1, out, f"{err}{code}\n") if isinstance(code, str) else Ended(int(code or 0), out, err)

    return call


def perturb(model: UNet | MLP | UNetClassifier) -> UNet | MLP | UNetClassifier:
    """Move every parameter, also those that start at 0, so that labels, times and points matter."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def classifier(levels: int) -> Classifier:
    """One that fits the network `digits` below, if it has as many levels."""
    network = UNetClassifier(UNetConfig(channels=1, width=8, blocks=1, classes=3))
    return Classifier(perturb(network), schedules.cosine(levels), (1, 8, 8), ("a", "b", "c"), "digits")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three checkpoints: `digits` with 3 classes, `faces` in colour without, and `points`."""
    folder = tmp_path_factory.mktemp("saved")
    digits = UNet(UNetConfig(channels=1, width=8, blocks=1, classes=3))
    faces = UNet(UNetConfig(channels=3, width=8, blocks=1))
    points = MLP(MLPConfig(width=8, layers=1))
    for name, model, shape, classes, clip in [
        ("digits", digits, (1, 8, 8), ("a", "b", "c"), 1.0),
        ("faces", faces, (3, 5, 9), (), 1.0),
        ("points", points, (2,), (), None),
    ]:
        checkpoints.save(
            folder / name,
            Checkpoint(perturb(model), schedules.cosine(T), "v", shape, classes, clip, name),
            {"steps": 1},
        )
    return folder


def pixels(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        image.load()
        assert image.format == "PNG"
        return np.asarray(image)


def files(folder: Path) -> dict[str, bytes | None]:
    """Everything in a folder, hidden or not, with the content of its files."""
    found = (path for path in folder.rglob("*"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None for path in found}


# --- sample


def test_sample_draws_a_row_for_each_class(run: Run, saved: Path, tmp_path: Path) -> None:
    """The picture is the grid of what the library draws with these arguments; four lines say how it was made."""
    ended = run(
        *("sample", "--checkpoint", saved / "digits", "--out", "new/grid.png", "--steps", 4, "--per-class", 2),
        *("--seed", 7, "--guidance", 2, "--sampler", "ddim", "--spacing", "trailing", "--eta", 0.5),
    )
    assert (ended.status, ended.err) == (0, "")
    loaded = checkpoints.load(saved / "digits")
    x = fd.sample(
        loaded.model,
        loaded.plan("ddim", steps=4, spacing="trailing", eta=0.5),
        (6, 1, 8, 8),
        seed=7,
        cond={"y": torch.tensor([0, 0, 1, 1, 2, 2])},
        guidance=2.0,
    )
    assert (pixels(tmp_path / "new" / "grid.png") == np.asarray(pictures.grid(x, 2))).all()
    lines = dict(line.split(maxsplit=1) for line in ended.out.splitlines())
    assert list(lines) == ["wrote", "sampler", "speed", "backend"]
    assert lines["wrote"] == str(tmp_path / "new" / "grid.png")
    assert lines["sampler"] == "ddim(eta=0.5), 4 evaluations, guidance 2"
    assert re.fullmatch(r"[\d.]+ images/s \(6 in [\d.]+ s\)", lines["speed"])
    assert lines["backend"] in {f"{name} on cpu" for name in fd.info().backends}


def test_sample_of_latents_is_decoded(run: Run, tmp_path: Path) -> None:
    """The picture holds what the checkpoint's autoencoder makes of the samples; an exported copy draws the same one."""
    autoencoder = Autoencoder(
        ConvAutoencoder(ConvAutoencoderConfig(1, width=8, latent_channels=2)).eval(), (1, 8, 8), ""
    )
    unet = perturb(UNet(UNetConfig(channels=2, width=8, blocks=1)))
    loaded = Checkpoint(unet, schedules.cosine(T), "v", (2, 4, 4), (), None, "digits", autoencoder)
    checkpoints.save(tmp_path / "latent", loaded)
    assert run("export", "latent", "copy").err == ""
    for name in ("latent", "copy"):
        ended = run(
            "sample", "--checkpoint", name, "--out", f"{name}.png", "--steps", 3, "--sampler", "ddim", "--count", 4
        )
        assert (ended.status, ended.err) == (0, "")
    x = fd.sample(loaded.model, loaded.plan("ddim", steps=3), (4, 2, 4, 4))
    assert (pixels(tmp_path / "latent.png") == np.asarray(pictures.grid(autoencoder.decode(x), 2))).all()
    assert (pixels(tmp_path / "copy.png") == pixels(tmp_path / "latent.png")).all()


@pytest.mark.parametrize("classes", [("a", "b", "c"), ()], ids=["with classes", "without"])
def test_sample_guided_by_a_classifier(run: Run, classes: tuple[str, ...], tmp_path: Path) -> None:
    """A row for each class also of a network that knows none; other guidance has to be asked for."""
    unet = perturb(UNet(UNetConfig(channels=1, width=8, blocks=1, classes=len(classes))))
    loaded, guide = Checkpoint(unet, schedules.cosine(T), "v", (1, 8, 8), classes, 1.0, "digits"), classifier(T)
    checkpoints.save(tmp_path / "network", loaded)
    checkpoints.save(tmp_path / "classifier", guide)
    settings = ("--checkpoint", "network", "--classifier", "classifier", "--steps", 3, "--sampler", "ddim")
    ended = run("sample", *settings, "--per-class", 2, "--omega", 3)
    assert (ended.status, ended.err) == (0, "")
    plan, cond = loaded.plan("ddim", steps=3), {"y": torch.tensor([0, 0, 1, 1, 2, 2])}
    x = fd.sample(guide.guide(loaded, 3.0), plan, (6, 1, 8, 8), cond=cond)
    assert (pixels(tmp_path / "samples.png") == np.asarray(pictures.grid(x, 2))).all()
    assert "sampler  ddim, 3 evaluations, guidance 1, omega 3\n" in ended.out
    unguided = fd.sample(guide.guide(loaded, 0.0), plan, (6, 1, 8, 8), cond=cond)
    assert not torch.equal(pictures.to_uint8(x), pictures.to_uint8(unguided))


def test_sample_of_a_network_without_classes(run: Run, saved: Path, tmp_path: Path) -> None:
    """`--count` images in about a square, no guidance."""
    ended = run("sample", "--checkpoint", saved / "faces", "--count", 5, "--steps", 2, "--sampler", "ddpm")
    assert (ended.status, ended.err) == (0, "")
    loaded = checkpoints.load(saved / "faces")
    x = fd.sample(loaded.model, loaded.plan("ddpm", steps=2), (5, 3, 5, 9), seed=0)
    assert (pixels(tmp_path / "samples.png") == np.asarray(pictures.grid(x, 2))).all()
    assert "sampler  ddpm, 2 evaluations\n" in ended.out
    assert "(5 in " in ended.out


def test_sample_of_points(run: Run, saved: Path, tmp_path: Path) -> None:
    """Points become a scatter plot."""
    ended = run("sample", "--checkpoint", saved / "points", "--count", 20, "--steps", 2, "--out", "points.png")
    assert (ended.status, ended.err) == (0, "")
    assert pixels(tmp_path / "points.png").shape[:2] == (480, 480)


@pytest.mark.parametrize(
    ("sampler", "evaluations"), [((), 5), (("--sampler", "annealed_langevin", "--option", "per_level=2"), 11)]
)
def test_sample_of_a_score_network_of_few_levels(
    run: Run, tmp_path: Path, sampler: tuple[str, ...], evaluations: int
) -> None:
    """NCSN has fewer levels than the steps that are usual: without --steps all of them are visited."""
    schedule = schedules.geometric(5).with_unit_input()
    network = OverSigma(perturb(MLP(MLPConfig(width=8, layers=1))), schedule)
    checkpoints.save(tmp_path / "ncsn", Checkpoint(network, schedule, "score", (2,), (), None, "points"))
    ended = run("sample", "--checkpoint", "ncsn", "--count", 5, *sampler)
    assert (ended.status, ended.err) == (0, "")
    assert f", {evaluations} evaluations" in ended.out


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sample_in_low_precision(run: Run, saved: Path, tmp_path: Path, dtype: str) -> None:
    """The network computes in that dtype; the picture is near float32's, not equal to it."""
    common = ("sample", "--checkpoint", saved / "digits", "--steps", 2, "--per-class", 2)
    assert run(*common, "--out", "exact.png").status == 0
    assert run(*common, "--out", "low.png", "--dtype", dtype).status == 0
    exact, low = (pixels(tmp_path / name).astype(float) for name in ("exact.png", "low.png"))
    # Two steps of a network of 8 bits: a mean of at most 2 of 255 grey levels.
    assert 0 < np.abs(exact - low).mean() < 2


def test_sample_replaces_an_older_picture(run: Run, saved: Path, tmp_path: Path) -> None:
    """The same command twice gives the same bytes, another seed others, and nothing is left beside them."""
    common = ("sample", "--checkpoint", saved / "digits", "--steps", 2, "--per-class", 1)
    assert run(*common).status == 0
    first = files(tmp_path)
    assert run(*common, "--seed", 1).status == 0
    assert files(tmp_path) != first
    assert run(*common).status == 0
    assert files(tmp_path) == first
    assert first.keys() == {"samples.png"}


@pytest.mark.parametrize("terminal", [False, True])
def test_bar_is_shown_on_a_terminal_alone(
    run: Run, saved: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    """Where stderr is a file or a pipe, no bar and no carriage return reaches it."""

    class Stream(io.StringIO):
        def isatty(self) -> bool:
            return terminal

    stream = Stream()
    monkeypatch.setattr(sys, "stderr", stream)
    assert run("sample", "--checkpoint", saved / "points", "--count", 4, "--steps", 2).status == 0
    assert ("\r" in stream.getvalue()) == terminal
    assert ("row" in stream.getvalue()) == terminal


# --- train, export


TINY = ("--data", "moons", "--width", 8, "--levels", T, "--batch", 8, "--warmup", 1)


def test_train_resume_export_and_sample(run: Run, tmp_path: Path) -> None:
    """A tiny run is trained, refused a second time, resumed, exported; run and export draw the same picture."""
    ended = run("train", *TINY, "--steps", 4, "--save-every", 2, "--out", "run")
    assert (ended.status, ended.err) == (0, "")
    assert ended.out.splitlines()[-1].split() == ["trained", "run/step-00000004"]
    assert (tmp_path / "run" / "samples" / "step-00000004.png").is_file()

    before = files(tmp_path)
    again = run("train", *TINY, "--steps", 4, "--save-every", 2, "--out", "run")
    assert one_line(again) == "run already holds a run: resume it (--resume) or choose another folder (--out)"
    other = run("train", *TINY, "--steps", 4, "--lr", 0.5, "--out", "run", "--resume")
    assert "cannot resume: lr was 0.001, now 0.5" in one_line(other)
    nothing = run("train", *TINY, "--out", "elsewhere", "--resume")
    assert "nothing to resume: elsewhere" in one_line(nothing)
    assert files(tmp_path) == before
    resumed = run("train", *TINY, "--steps", 4, "--save-every", 2, "--out", "run", "--resume")
    assert (resumed.status, resumed.out.split()) == (0, ["trained", "run/step-00000004"])

    assert run("export", "run", "exported").out.split() == ["wrote", "exported"]
    assert sorted(files(tmp_path / "exported")) == ["config.json", "model.safetensors"]
    assert checkpoints.read_config(tmp_path / "exported")["training"]["steps"] == 4
    for name in ("run", "exported"):
        assert run("sample", "--checkpoint", name, "--steps", 2, "--per-class", 9, "--out", f"{name}.png").status == 0
    assert files(tmp_path)["run.png"] == files(tmp_path)["exported.png"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_export_in_low_precision(run: Run, saved: Path, tmp_path: Path, dtype: str) -> None:
    """About half the bytes; it loads as float32 and draws nearly the same picture. Unknown dtypes are named."""
    message = one_line(run("export", saved / "digits", "small", "--dtype", f"{dtype}s"))
    assert f"did you mean '{dtype}'" in message
    assert not files(tmp_path)
    assert run("export", saved / "digits", "small", "--dtype", dtype).status == 0
    size, small = (folder.joinpath("model.safetensors").stat().st_size for folder in (saved / "digits", Path("small")))
    assert small < 0.7 * size
    assert {p.dtype for p in checkpoints.load("small").model.parameters()} == {torch.float32}
    for name, folder in (("exact.png", saved / "digits"), ("low.png", "small")):
        ended = run("sample", "--checkpoint", folder, "--steps", 2, "--per-class", 2, "--out", name)
        assert ended.status == 0
    exact, low = (pixels(tmp_path / name).astype(float) for name in ("exact.png", "low.png"))
    assert 0 < np.abs(exact - low).mean() < 2  # of 255: weights of 8 bits, two steps


def test_export_does_not_delete_what_is_no_checkpoint(run: Run, saved: Path, tmp_path: Path) -> None:
    """A folder of other files, given by mistake, is refused and stays; an older checkpoint is replaced."""
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "thesis.txt").write_text("years of work")
    message = one_line(run("export", saved / "digits", "papers"))
    assert "papers" in message
    assert (tmp_path / "papers" / "thesis.txt").read_text() == "years of work"
    assert run("export", saved / "digits", "mine").status == 0
    assert run("export", saved / "points", "mine").status == 0
    assert checkpoints.load(tmp_path / "mine").data == "points"


# --- info, help


def test_info(run: Run) -> None:
    """It prints what `fastdiff.info()` holds."""
    assert run("info") == (0, f"{fd.info()}\n", "")


# --- bench


def test_bench_measures_and_compares(run: Run, tmp_path: Path) -> None:
    """A line for each case, three files, and a comparison of two runs with a line for each case."""
    brief = ("--quick", "--cases", "ddim,normal", "--shapes", "2x1x4x4", "--dtypes", "float32", "--rounds", 1)
    for name in ("before", "after"):
        ended = run("bench", *brief, "--out", f"new/{name}.json")
        assert (ended.status, ended.err) == (0, "")
        *lines, wrote_json, wrote_table, wrote_plot = ended.out.splitlines()
        assert [line.split()[0] for line in lines] == ["ddim", "normal"]
        assert all(peer in lines[0] for peer in ("eager", "diffusers", "limit"))
        assert wrote_json == f"wrote    new/{name}.json"
        assert wrote_table == f"wrote    new/{name}.md"
        assert pixels(tmp_path / wrote_plot.split()[1]).size > 0
    ended = run("bench", "--compare", "new/before.json", "new/after.json")
    assert (ended.status, ended.err) == (0, "")
    assert [line.split()[0] for line in ended.out.splitlines()] == ["ddim", "normal"]


@pytest.mark.parametrize("command", ["sample", "train", "export", "bench", "info"])
def test_help_shows_an_example(run: Run, command: str) -> None:
    """Every command has one that begins with the words to type."""
    ended = run(command, "--help")
    text = re.sub(r"\x1b\[[\d;]*m", "", ended.out)
    assert (ended.status, ended.err) == (0, "")
    assert re.search(rf"Example: fastdiff {command}\b", text), text


def test_example_of_sample_is_a_command_that_works(
    run: Run, saved: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The options in the example exist; the steps are reduced to what the tiny schedule has."""
    monkeypatch.setattr(checkpoints, "SHIPPED", saved)
    text = re.sub(r"\x1b\[[\d;]*m", "", run("sample", "--help").out)
    (example,) = re.findall(r"Example: fastdiff (.*?)\s*$", text, flags=re.M)
    assert run(*example.replace("--steps 10", "--steps 2").split()).status == 0
    assert files(tmp_path).keys() == {"samples.png"}


# --- mistakes


def one_line(ended: Ended) -> str:
    """Check that a call ended as a mistake should; return what it said."""
    assert ended.status == 1
    assert ended.err.startswith("error: ")
    assert ended.err.endswith("\n")
    assert ended.err.count("\n") == 1
    assert "Traceback" not in ended.out + ended.err
    return ended.err.removeprefix("error: ").rstrip("\n")


def test_plan_prints_the_table_and_draws_nothing(run: Run, saved: Path, tmp_path: Path) -> None:
    """The table is that of the sampler with the options given: numbers, lists, names and null."""
    picture = tmp_path / "none.png"
    given = (
        "--option",
        "sigmas=[3, 2.5, 1e-1]",
        "--option",
        "clip=null",
        "--option",
        "solver=bh1",
        "--option",
        "order=3",
    )
    ended = run("sample", "--checkpoint", saved / "digits", "--out", picture, "--plan", "--sampler", "unipc", *given)
    options = {"sigmas": [3, 2.5, 0.1], "clip": None, "solver": "bh1", "order": 3}
    assert ended.out == f"{fd.load(saved / 'digits').plan('unipc', **options)}\n"
    assert not picture.exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--sampler", "ddin"), "unknown sampler 'ddin': did you mean 'ddim'"),
        (("--spacing", "trailin"), "unknown spacing 'trailin': did you mean 'trailing'"),
        (("--backend", "eagre"), "unknown backend 'eagre': did you mean 'eager'"),
        (("--dtype", "flota32"), "unknown dtype 'flota32': did you mean 'float32'"),
        (("--device", "cpuu"), "did you mean 'cpu'"),
        (("--device", "cuda:99"), "device 'cuda:99'"),
        (("--device", "hpu"), "device 'hpu'"),
        (("--device", "meta"), "device 'meta'"),
        (("--device", ""), "device"),
        (("--steps", T + 1, "--sampler", "ddim"), f"steps must be a whole number in 1..{T}, got {T + 1}"),
        (("--steps", 0), "got 0"),
        (("--eta", -0.5, "--sampler", "ddim"), "eta must be >= 0"),
        (("--eta", "lots", "--sampler", "ddim"), "unknown eta 'lots': did you mean 'sigma-hat'"),
        (("--eta", "nan", "--sampler", "ddim"), "eta must be >= 0"),
        (("--eta", 50, "--sampler", "ddim"), "use a smaller eta"),
        (("--eta", 0.5, "--sampler", "ddpm"), "eta"),
        (("--option", "order"), "--option must be name=value, got order"),
        (("--option", "oder=3", "--sampler", "unipc"), "unknown option of unipc 'oder': did you mean 'order'"),
        (("--option", "steps=3"), "--option steps: give it as --steps"),
        (("--option", "clip=0", "--sampler", "ddim"), "clip must be > 0"),
        (("--per-class", 0), "--per-class must be at least 1, got 0"),
        (("--per-class", -3), "--per-class must be at least 1, got -3"),
        (("--seed", -1), "seed"),
        (("--seed", 2**64), "seed"),
        (("--guidance", "nan"), "guidance must be finite"),
        (("--out", "grid.jpg"), "grid.jpg should end in .png"),
        (("--out", "file/grid.png"), "file"),
        (("--out", "file/deeper/grid.png"), "file"),
        (("--out", "folder.png"), "folder.png"),
        (("--checkpoint", "nowhere"), "no checkpoint 'nowhere'"),
        (("--checkpoint", "classifier"), "holds a network for classifier: one for diffusion is needed here"),
        (("--classifier", "nowhere"), "no checkpoint 'nowhere'"),
        (("--classifier", "truncated"), "holds a network for diffusion: one for classifier is needed here"),
        (("--classifier", "classifier"), "train both on one schedule"),
        (("--classifier", "classifier", "--omega", "nan"), "omega must be finite"),
        (("--omega", 2), "name one with --classifier"),
        (("--checkpoint", "folder.png"), "holds no checkpoint"),
        (("--checkpoint", "truncated"), "model.safetensors"),
    ],
    ids=lambda part: " ".join(map(str, part)) if isinstance(part, tuple) else "",
)
def test_mistake_in_sample_costs_one_line(
    run: Run, saved: Path, tmp_path: Path, arguments: tuple[str | float, ...], said: str
) -> None:
    """The error says what was wrong; no traceback, no picture, no folder, nothing on stdout."""
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    checkpoints.save(tmp_path / "truncated", checkpoints.load(saved / "digits"))
    checkpoints.save(tmp_path / "classifier", classifier(T + 1))
    weights = tmp_path / "truncated" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    before = files(tmp_path)
    defaults = {"--checkpoint": saved / "digits", "--steps": 2, "--per-class": 1, "--out": "new/grid.png"}
    given = dict(zip(arguments[::2], arguments[1::2], strict=True))
    ended = run("sample", *(part for option in (defaults | given).items() for part in option))
    assert said in one_line(ended)
    assert ended.out == ""
    assert files(tmp_path) == before


def test_backend_that_is_missing_is_an_error(run: Run, saved: Path, tmp_path: Path) -> None:
    """A named backend is never replaced by another: the error gives the reason that `info` gives."""
    missing = {name: reason for name, reason in fd.info().backends.items() if reason is not None}
    if not missing:
        pytest.skip("every backend is available here")
    for name, reason in missing.items():
        ended = run("sample", "--checkpoint", saved / "digits", "--steps", 2, "--backend", name)
        assert " ".join(reason.split()) in one_line(ended)
    assert not files(tmp_path)


def test_count_must_be_positive(run: Run, saved: Path, tmp_path: Path) -> None:
    """For a network without classes."""
    message = one_line(run("sample", "--checkpoint", saved / "faces", "--count", 0, "--steps", 2))
    assert message == "--count must be at least 1, got 0"
    assert not files(tmp_path)


def test_place_to_write_is_checked_before_sampling(
    run: Run, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that cannot be made is found at once, not after an hour of drawing samples."""
    monkeypatch.setattr("fastdiff.cli.sampling.run_plan", lambda *args, **kwargs: pytest.fail("it began to sample"))
    (tmp_path / "file").touch()
    one_line(run("sample", "--checkpoint", saved / "points", "--steps", 2, "--out", "file/grid.png"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--data", "digitz"), "unknown data 'digitz': did you mean 'digits'"),
        (("--data", "folder"), "did you mean 'folder:PATH'"),
        (("--data", "folder:missing"), "missing does not exist"),
        (("--data", "folder:file"), "file is not a folder"),
        (("--data", "folder:broken"), "broken holds no readable image"),
        (("--data", "folder:empty"), "empty holds no image"),
        (("--data", "hf:empty"), "empty is not a saved data set"),
        (("--schedule", "cosin"), "unknown schedule 'cosin': did you mean 'cosine'"),
        (("--prediction", "esp"), "unknown prediction 'esp': did you mean 'eps'"),
        (("--precision", "bf61"), "unknown precision 'bf61': did you mean 'bf16'"),
        (("--tracker", "tensorbord"), "unknown tracker 'tensorbord': did you mean 'tensorboard'"),
        (("--size", 16, "--data", "moons"), "leave size out"),
        (("--batch", 0), "batch must be > 0"),
        (("--steps", 0), "steps must be > 0"),
        (("--levels", 0), "must be > 0"),
        (("--lr", "nan"), "lr must be > 0"),
        (("--dropout", 1.5), "dropout must be in [0, 1)"),
        (("--width", 7), "width must be even"),
        (("--objective", "classifier", "--data", "swiss_roll"), "swiss_roll has no classes to tell apart"),
        (("--multipliers", "1,x"), "--multipliers must be whole numbers with commas between, got '1,x'"),
        (("--multipliers", "1,2,3", "--data", "digits"), "one entry a level"),
        (("--attention", ""), "--attention must be whole numbers"),
        (("--schedule", "flow", "--prediction", "eps"), "alpha is 0"),
        (("--schedule", "geometric", "--lr", 1e30, "--clip-norm", 1e30), "lower the learning rate"),
        (("--out", "file/run"), "file"),
    ],
    ids=lambda part: " ".join(map(str, part)) if isinstance(part, tuple) else "",
)
def test_mistake_in_train_costs_one_line(
    run: Run, tmp_path: Path, arguments: tuple[str | float, ...], said: str
) -> None:
    """The error says what was wrong; no traceback, no folder of a run."""
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    for name in ("a.png", "b.jpg"):
        (tmp_path / "broken" / name).write_bytes(b"no image")
    before = files(tmp_path)
    defaults = {"--data": "moons", "--width": 8, "--batch": 8, "--warmup": 0, "--steps": 3, "--out": "new/run"}
    given = dict(zip(arguments[::2], arguments[1::2], strict=True))
    ended = run("train", *(part for option in (defaults | given).items() for part in option))
    assert said in one_line(ended)
    assert files(tmp_path) == before


def test_export_of_a_classifier_is_refused(run: Run, tmp_path: Path) -> None:
    """In one line that says what the folder holds."""
    checkpoints.save(tmp_path / "classifier", classifier(T))
    before = files(tmp_path)
    assert "holds a network for classifier" in one_line(run("export", "classifier", "exported"))
    assert files(tmp_path) == before


@pytest.mark.parametrize("out", ["exported", "file", "file/exported"])
def test_mistake_in_export_costs_one_line(run: Run, saved: Path, tmp_path: Path, out: str) -> None:
    """No run, or a place that cannot be written."""
    (tmp_path / "file").write_text("mine")
    before = files(tmp_path)
    one_line(run("export", "nowhere" if out == "exported" else saved / "digits", out))
    assert files(tmp_path) == before


@pytest.mark.parametrize("arguments", [("sample", "--steps", "many"), ("sample", "--stesp", "3"), ("smaple",)])
def test_wrong_usage_has_status_2(run: Run, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """Options that do not exist or parse are typer's own errors."""
    ended = run(*arguments)
    assert ended.status == 2
    assert "Traceback" not in ended.err
    assert not files(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--cases", "ddmi"), "unknown case 'ddmi'"),
        (("--shapes", "4"), "shapes must have four sizes"),
        (("--out", "speed.txt"), "give NAME.json"),
        (("--compare", "here.json", "there.json"), "here.json holds no results"),
    ],
)
def test_mistake_in_bench_costs_one_line(run: Run, tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    """Nothing is measured or written."""
    assert said in one_line(run("bench", *arguments))
    assert not files(tmp_path)


def test_bench_without_its_libraries_says_what_to_install(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra is named."""
    for name in ("command", "picture"):
        monkeypatch.delitem(sys.modules, f"fastdiff.bench.speed.{name}", raising=False)
        monkeypatch.delattr(f"fastdiff.bench.speed.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.axes", None)
    assert "pip install 'fastdiff-sampler[bench]'" in one_line(run("bench"))


def test_training_without_its_libraries_says_what_to_install(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra is named."""
    monkeypatch.delitem(sys.modules, "fastdiff.train.trainer", raising=False)
    monkeypatch.setitem(sys.modules, "accelerate", None)
    assert "pip install 'fastdiff-sampler[train]'" in one_line(run("train", *TINY))


# --- the installed script


def script(*arguments: str | Path, cwd: Path) -> Ended:
    assert SCRIPT.exists(), "the package is not installed: there is no script"
    done = subprocess.run(
        [SCRIPT, *arguments], cwd=cwd, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, check=False
    )
    return Ended(done.returncode, done.stdout.decode(), done.stderr.decode())


def test_script_draws_samples_without_a_bar(saved: Path, tmp_path: Path) -> None:
    """The real program with its output in a pipe: a picture, four lines, and an empty stderr."""
    ended = script(
        *("sample", "--checkpoint", saved / "digits", "--steps", "3", "--per-class", "2", "--out", "grid.png"),
        cwd=tmp_path,
    )
    assert (ended.status, ended.err) == (0, "")
    assert [line.split()[0] for line in ended.out.splitlines()] == ["wrote", "sampler", "speed", "backend"]
    assert pixels(tmp_path / "grid.png").shape == (3 * 34 + 2, 2 * 34 + 2)


def test_script_ends_a_mistake_with_one_line(saved: Path, tmp_path: Path) -> None:
    """The real program's status and stderr."""
    ended = script("sample", "--checkpoint", saved / "digits", "--sampler", "dpm", cwd=tmp_path)
    assert "unknown sampler 'dpm': did you mean" in one_line(ended)
    assert ended.out == ""
    assert not files(tmp_path)
