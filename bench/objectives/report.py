"""Tables and figure from the numbers that `fastdiff.bench.objectives` left in `objectives.json`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from fastdiff.bench.objectives.cells import DDIM, DDPM, GUIDED, SAMPLERS_OF_SCORES, STRENGTHS, VARIANCES
from fastdiff.bench.objectives.measure import BOUND_IMAGES
from fastdiff.bench.objectives.runs import BASE
from fastdiff.bench.quality_report import read
from fastdiff.files import replacing, write_text

__all__ = ["JSON", "Results", "read", "render"]

JSON, MARKDOWN, FIGURE = "objectives.json", "objectives.md", "objectives.png"
COMMAND = "python -m fastdiff.bench.objectives"
TITLES = {
    "simple": "L_simple, eps",
    "hybrid": "L_hybrid, eps, learned variance",
    "vlb": "L_vlb, eps, learned variance, importance-sampled t",
    "min-snr": "v, min-SNR weights",
    "flow": "flow matching (schedule flow)",
    "ncsn": "NCSN",
    "latent": "latent: 8 x 8 latents of the autoencoder",
    "pixel": "pixel: 32 x 32",
    "vae": "the autoencoder alone: real images, reconstructed",
    "cfg": "classifier-free, w",
    "classifier": "classifier on the unconditional branch, omega",
    "both": "classifier on the conditional branch, omega",
}
SPACES = ("pixel", "feature")
SHOWN_AGREEMENT = 0.9, 1.005  # an unconditional network's is that of chance

Results = dict[str, Any]
Row = dict[str, Any]


def render(results: Results, out: Path) -> list[Path]:
    """Write the Markdown and the figure into a folder and return their paths."""
    write_text(out / MARKDOWN, markdown(results))
    with replacing(out / FIGURE) as temporary:
        figure(results).savefig(temporary, dpi=150, format="png", bbox_inches="tight")
    return [out / MARKDOWN, out / FIGURE]


def markdown(results: Results) -> str:
    """Return the results as Markdown."""
    sections = (_setup, _objectives, _scores, _latents, _guidance)
    return "\n\n".join(section(results) for section in sections) + "\n"


def figure(results: Results) -> Figure:
    """Fidelity against diversity over the strength of guidance: one line a kind, one point a strength."""
    drawn = Figure(figsize=(11, 4.5), layout="constrained")
    shown: dict[str, Callable[[Row], float]] = {
        "Frechet distance, feature space": lambda row: row["frechet"]["feature"],
        "spread within a class / that of training images": lambda row: row["spread"],
    }
    for axes, (title, value) in zip(drawn.subplots(1, len(shown)), shown.items(), strict=True):
        for by in STRENGTHS:
            rows = [row for row in _rows(results, "guidance") if row["options"]["by"] == by]
            axes.plot([value(row) for row in rows], [row["agreement"] for row in rows], marker="o", label=TITLES[by])
            for row in rows:
                axes.annotate(f"{row['options']['strength']:g}", (value(row), row["agreement"]), fontsize="small")
        axes.set(xlabel=title, ylabel="agreement with the label", ylim=SHOWN_AGREEMENT)
    axes.legend(fontsize="small")
    return drawn


def _setup(results: Results) -> str:
    machine, real = results["setup"]["machine"], results["real"]["8"]
    accuracy = real["judge"]["held-out accuracy"]
    return f"""# Objectives, score networks, latents, guidance: digits

Written by `{COMMAND}` from `{JSON}`. It trains every run through `fastdiff.train` (settings in `runs.py`), \
then measures; the command above each table makes that table alone.

- **Budget:** a U-Net of width {BASE.width}, {BASE.steps} steps of {BASE.batch} samples, one learning rate, schedule \
{BASE.schedule} with {BASE.T} levels where nothing else is said, one thread. Two numbers in a cell are two training \
seeds, which change initialisation, batches, t and noise: what differs less than these do is no difference. Where \
there is one number, one seed was trained.
- **Samples:** {real["count"]}, class-conditional, the labels of the train split, seed 0 of the noise, x0 clipped to 1.
- **Judge and Frechet distances:** those of `quality.md`, to the held-out split: a classifier trained on real images, \
{accuracy["network"]:.2%} right on the held-out split. In pixel and feature space {_pair(real["floor"])} is the floor, \
that of the train split; a copier, who draws as many training images with replacement, gets {_pair(real["copier"])}.
- **Machine:** {machine["cpu"]}, {machine["cores"]} cores; torch {results["setup"]["torch"]}."""


def _objectives(results: Results) -> str:
    rows = _rows(results, "objectives")
    head = (
        *("objective", "bits/dim", "standard error", "DDIM 25: Frechet pixel", "feature", "agreement"),
        *("DDPM 50: Frechet pixel", "feature", "agreement"),
    )
    lines = []
    for run in VARIANCES:
        bits = _found(rows, run=run, measure="variational")
        drawn = [_samples(_found(rows, run=run, measure="samples", options=sampler)) for sampler in (DDIM, DDPM)]
        errors = _each(bits, lambda row: f"{row['error']:.3f}")
        lines.append((TITLES[run], _each(bits, lambda row: f"{row['bits']:.3f}"), errors, *drawn[0], *drawn[1]))
    return _section(
        "objectives",
        "Objectives",
        f"""Bits per dimension are the variational bound of {BOUND_IMAGES} held-out images, given the labels, over all \
levels, with the standard error of its mean over images, first seed; steps have the posterior's variance, or the \
learned one. The digits have 17 grey levels, so that knowing nothing costs 4.09. Samples are by DDIM with 25 \
evaluations, and by ancestral sampling with that variance and 50.""",
        _table(head, lines),
    )


def _scores(results: Results) -> str:
    rows = _rows(results, "scores")
    lines = [
        (TITLES[run], _plan(sampler), _each(found, lambda row: str(row["nfe"])), *_samples(found))
        for run, samplers in SAMPLERS_OF_SCORES.items()
        for sampler in samplers
        for found in [_found(rows, run=run, options=sampler)]
    ]
    return _section(
        "scores",
        "NCSN against DDPM",
        """NCSN is denoising score matching with weight sigma^2 on a geometric sequence of sigmas (Song & Ermon 2019), \
DDPM is L_simple of eps. Each is drawn with its paper's sampler, and with a solver of the ODE.""",
        _table(("network", "sampler", "evaluations", "Frechet pixel", "feature", "agreement"), lines),
    )


def _latents(results: Results) -> str:
    rows, real = _rows(results, "latents"), results["real"]["32"]
    times = {row["run"]: row["cpu seconds a step"] * row["steps"] for row in rows if row["measure"] == "seconds"}
    head = ("what", "training", "sampling", "Frechet pixel", "feature", "agreement")
    lines = []
    for run in ("latent", "pixel", "vae"):
        found = [row for row in _found(rows, run=run) if row["measure"] != "seconds"]
        sampling = _each(found, lambda row: f"{row['cpu seconds']:.0f} s" if "nfe" in row else "")
        lines.append((TITLES[run], f"{times[run]:.0f} s" if run in times else "", sampling, *_samples(found)))
    return _section(
        "latents",
        "Latent against pixel diffusion",
        f"""Digits enlarged to 32 x 32, at about equal training time: that of the pixel network against the latent \
network's and its autoencoder's together. Seconds are of one processor, for the training and for all samples (DDIM \
with 25 evaluations, decoder included). Images are averaged to 8 x 8 before they are judged, the judge's own too: its \
floor is {_pair(real["floor"])} in pixel and feature space, a copier gets {_pair(real["copier"])}.""",
        _table(head, lines),
    )


def _guidance(results: Results) -> str:
    rows = _rows(results, "guidance")
    lines = [
        (TITLES[by], f"{strength:g}", *_samples(found), _each(found, lambda row: f"{row['spread']:.3f}"))
        for by, strengths in STRENGTHS.items()
        for strength in strengths
        for found in [[row for row in rows if row["options"]["by"] == by and row["options"]["strength"] == strength]]
    ]
    return _section(
        "guidance",
        "Classifier guidance against classifier-free guidance",
        f"""One network ({TITLES[GUIDED]}), DDIM. The classifier is trained on noised training images with the budget \
of all. Fidelity is agreement with the label; diversity is the Frechet distance, and the spread: the mean distance of \
two samples of a class, over that of training images.

![Fidelity against diversity]({FIGURE})""",
        _table(("guidance", "strength", "Frechet pixel", "feature", "agreement", "spread"), lines),
    )


def _section(name: str, title: str, text: str, table: str) -> str:
    return f"## {title}\n\n`{COMMAND} --tables {name}`\n\n{text}\n\n{table}"


def _rows(results: Results, table: str) -> list[Row]:
    return [row for row in results["cells"] if row["table"] == table]


def _found(rows: Iterable[Row], **wanted: Any) -> list[Row]:
    return sorted((row for row in rows if wanted.items() <= row.items()), key=lambda row: row["seed"])


def _samples(rows: Sequence[Row]) -> tuple[str, str, str]:
    pixel, feature = (_each(rows, lambda row, space=space: f"{row['frechet'][space]:.3f}") for space in SPACES)
    return pixel, feature, _each(rows, lambda row: f"{row['agreement']:.2%}")


def _each(rows: Iterable[Row], show: Callable[..., str]) -> str:
    """Return a number of each training seed."""
    return ", ".join(show(row) for row in rows)


def _pair(distances: Mapping[str, float]) -> str:
    return " and ".join(f"{distances[space]:.3f}" for space in SPACES)


def _plan(sampler: Mapping[str, Any]) -> str:
    return ", ".join(str(value) if name == "sampler" else f"{name} {value}" for name, value in sampler.items())


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
