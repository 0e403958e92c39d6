"""Tables and figures from the numbers that `fastdiff.bench.quality` left in `quality.json`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter
from torch import Tensor

from fastdiff import pictures
from fastdiff.bench.neighbours import COPY
from fastdiff.errors import InputError
from fastdiff.files import replacing, write_text

JSON, MARKDOWN = "quality.json", "quality.md"
TABLE, NEIGHBOURS, GRID = "quality_table.png", "quality_neighbours.png", "quality_grid.png"
SPACES = ("pixel", "feature")
AGREEMENT_TARGET, RATIO_TARGET = 0.995, 1.15
SIDE = 8

Results = dict[str, Any]
Row = dict[str, Any]


def read(path: Path) -> Results:
    """Read results. Raises InputError if there are none."""
    try:
        results: Results = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} holds no results ({error}): measure first") from None
    return results


def pack(x: Tensor) -> list[str]:
    """Turn images [N, 1, 8, 8] in [-1, 1] into text: two hexadecimal digits a pixel."""
    return [bytes(image.flatten().tolist()).hex() for image in pictures.to_uint8(x)]


def unpack(packed: Sequence[str]) -> Tensor:
    """Return what `pack` was given, rounded to 256 levels."""
    pixels = torch.tensor([list(bytes.fromhex(image)) for image in packed])
    return pixels.view(-1, 1, SIDE, SIDE) / 127.5 - 1


def render(results: Results, out: Path) -> list[Path]:
    """Write the Markdown and the figures into a folder and return their paths."""
    figures = {TABLE: table_figure, NEIGHBOURS: neighbours_figure, GRID: grid_figure}
    write_text(out / MARKDOWN, markdown(results))
    for name, draw in figures.items():
        with replacing(out / name) as temporary:
            draw(results).savefig(temporary, dpi=150, format="png", bbox_inches="tight")
    return [out / MARKDOWN, *(out / name for name in figures)]


def markdown(results: Results) -> str:
    """Return the results as Markdown."""
    sections = (_setup, _headline, _guidance, _steps_and_eta, _neighbours, _one_noise)
    return "\n\n".join(section(results) for section in sections) + "\n"


def table_figure(results: Results) -> Figure:
    """Frechet distance, as a multiple of a copier's (dashed), against the number of steps; one line an eta."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    for axes, space in zip(figure.subplots(1, 2), SPACES, strict=True):
        _ratio_lines(axes, results, space)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right center")
    return figure


def neighbours_figure(results: Results) -> Figure:
    """Samples over their nearest training images, from the nearest of all on the left to the farthest."""
    pairs = results["neighbours"]["pairs"]
    figure = _picture_rows({"sample": pairs["samples"], "nearest in training": pairs["training"]})
    axes = figure.axes[0]
    places = _centres(axes.get_xlim()[1], len(pairs["distances"]))
    axes.set_xticks(places, [f"{distance:.2f}" for distance in pairs["distances"]])
    axes.set_xlabel("Euclidean distance")
    return figure


def grid_figure(results: Results) -> Figure:
    """Each digit from the same noise, one row a number of steps."""
    return _picture_rows({f"{steps} steps": packed for steps, packed in results["grid"].items()})


def _setup(results: Results) -> str:
    setup = results["setup"]
    machine, accuracy = setup["machine"], setup["classifier"]["held-out accuracy"]
    network, schedule = setup["network"], setup["network"]["schedule"]
    seconds = sum(row["seconds"] for row in results["cells"])
    return f"""# Sample quality: digits

Written by `python -m fastdiff.bench.quality` from `{JSON}`; begun {results["started"]}, {seconds / 60:.1f} minutes \
of sampling.

- **Network:** `model.safetensors` with SHA-256 `{setup["checkpoint"]}`, predicts {network["prediction"]}, schedule \
{schedule.get("name", "custom")}.
- **Sampler:** DDIM, {setup["spacing"]} spacing, class-conditional, seed {setup["seed"]}: every cell starts from the \
same noise.
- **Judge:** a small convolutional network trained on the real train split alone, {accuracy["network"]:.2%} right on \
the held-out split; its {setup["classifier"]["features"]} penultimate activations are the feature space. Second \
opinion: a support vector classifier on pixels, {accuracy["svc"]:.2%} right.
- **Frechet distance:** to the held-out split, in float64. Its floor is that of the train split. A few samples raise \
it, so beside each stands the multiple of what a copier gets: as many training images drawn with replacement.
- **Machine:** {machine["cpu"]}, {machine["cores"]} cores, {machine["threads"]} threads; torch {machine["torch"]}, \
Python {machine["python"]}, fastdiff {machine["fastdiff"]}."""


def _headline(results: Results) -> str:
    row = _headline_row(results)
    measured = [
        *(
            (f"label agreement, by {judge}", f"{share:.2%}", f">= {AGREEMENT_TARGET:.1%}", share >= AGREEMENT_TARGET)
            for judge, share in row["agreement"].items()
        ),
        *(_headline_distance(results, row, space) for space in SPACES),
    ]
    rows = [(what, value, target, "yes" if met else "no") for what, value, target, met in measured]
    return (
        f"## Headline: {row['steps']} steps, eta {row['eta']}, guidance {row['guidance']}, {row['samples']} samples\n\n"
        + _table(("measure", "value", "target", "met"), rows)
    )


def _headline_row(results: Results) -> Row:
    return next(row for row in results["cells"] if row["table"] == "headline")


def _headline_distance(results: Results, row: Row, space: str) -> tuple[str, str, str, bool]:
    floor, copier = results["floor"][space], results["copier"][str(row["samples"])][space]
    ratio = row["frechet"][space] / floor
    value = f"{row['frechet'][space]:.4g} = {ratio:.3f} x floor {floor:.4g} (a copier: {copier / floor:.3f} x)"
    return f"Frechet distance, {space} space", value, f"<= {RATIO_TARGET} x floor", ratio <= RATIO_TARGET


def _guidance(results: Results) -> str:
    head = ("w", "agreement", "by svc", *(f"Frechet, {space} (x copier)" for space in SPACES), "samples")
    at = {name: _headline_row(results)[name] for name in ("steps", "eta")}
    without = [row for row in _table_rows(results) if at.items() <= row.items()]
    rows = [
        (
            f"{row['guidance']:g}",
            f"{row['agreement']['network']:.2%}",
            f"{row['agreement']['svc']:.2%}",
            *(_distance(results, row, space) for space in SPACES),
            str(row["samples"]),
        )
        for row in [*without, *(row for row in results["cells"] if row["table"] == "guidance")]
    ]
    return "## Guidance\n\n" + _table(head, rows)


def _steps_and_eta(results: Results) -> str:
    setup = results["setup"]
    shown: dict[str, Callable[[Row], str]] = {
        "Frechet distance, feature space (x copier)": lambda row: _distance(results, row, "feature"),
        "Frechet distance, pixel space (x copier)": lambda row: _distance(results, row, "pixel"),
        "Label agreement": lambda row: f"{row['agreement']['network']:.2%}",
        "Label agreement, by svc": lambda row: f"{row['agreement']['svc']:.2%}",
    }
    parts = [f"### {title}\n\n{_by_eta_and_steps(results, show)}" for title, show in shown.items()]
    intro = f"""## Steps and eta, guidance 1

{setup["samples"]} samples a cell, {setup["samples at 1000"]} at 1000 steps. Fewer samples raise a distance and a \
copier's alike: compare across them by the ratio.

![Frechet distance against steps]({TABLE})"""
    return "\n\n".join([intro, *parts])


def _by_eta_and_steps(results: Results, show: Callable[[Row], str]) -> str:
    cells = {(row["eta"], row["steps"]): show(row) for row in _table_rows(results)}
    etas, steps = (list(dict.fromkeys(key[axis] for key in cells)) for axis in (0, 1))
    rows = [(str(eta), *(cells.get((eta, count), "") for count in steps)) for eta in etas]
    return _table(("eta", *(f"{count} steps" for count in steps)), rows)


def _neighbours(results: Results) -> str:
    found = results["neighbours"]
    head = (
        *("distance from", "count", *found["samples"]["quantiles"]),
        *("nearer than 1 % of held-out", "nearer than all held-out", f"copies (< {COPY})"),
    )
    rows = [
        (
            name,
            str(found[name]["count"]),
            *(f"{value:.3f}" for value in found[name]["quantiles"].values()),
            f"{found[name]['below 1 %']:.2%}",
            f"{found[name]['below minimum']:.2%}",
            str(found[name]["copies"]),
        )
        for name in ("samples", "held-out")
    ]
    return f"""## Nearest training images

Euclidean distance in pixel space from each sample of the headline, and from each held-out image, to its nearest \
training image. A network that copied its training set would do well in everything above, but not here.

{_table(head, rows)}

![Samples and their nearest training images]({NEIGHBOURS})"""


def _one_noise(results: Results) -> str:
    return f"## One noise, different numbers of steps\n\n![DDIM with eta 0]({GRID})"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _table_rows(results: Results) -> list[Row]:
    return [row for row in results["cells"] if row["table"] == "table"]


def _ratio(results: Results, row: Row, space: str) -> float:
    ratio: float = row["frechet"][space] / results["copier"][str(row["samples"])][space]
    return ratio


def _distance(results: Results, row: Row, space: str) -> str:
    return f"{row['frechet'][space]:.4g} ({_ratio(results, row, space):.2f})"


def _ratio_lines(axes: Axes, results: Results, space: str) -> None:
    rows = _table_rows(results)
    etas, steps = (list(dict.fromkeys(row[axis] for row in rows)) for axis in ("eta", "steps"))
    for eta, colour in zip(etas, colormaps["viridis"](np.linspace(0, 0.9, len(etas))), strict=True):
        points = [(row["steps"], _ratio(results, row, space)) for row in rows if row["eta"] == eta]
        axes.loglog(*zip(*points, strict=True), marker="o", markersize=4, color=colour, label=f"eta {eta}")
    axes.axhline(1, color="black", linestyle="--", label="training images")
    axes.set_xticks(steps, [str(count) for count in steps])
    axes.set_xticks([], minor=True)
    for set_formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        set_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
    axes.set(title=f"{space} space", xlabel="steps", ylabel="Frechet distance / copier's")


def _picture_rows(rows: dict[str, list[str]]) -> Figure:
    """Show packed images, a named row each."""
    columns = len(next(iter(rows.values())))
    image = pictures.grid(unpack([packed for row in rows.values() for packed in row]), columns)
    figure = Figure(figsize=(image.width / 50, image.height / 50), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(image, cmap="gray", extent=(0, image.width, image.height, 0))
    axes.set_xticks([])
    axes.set_yticks(_centres(image.height, len(rows)), list(rows))
    axes.tick_params(length=0)
    return figure


def _centres(length: float, count: int) -> list[float]:
    """Return the centres of `count` equal parts of [0, length]."""
    return [length * (i + 0.5) / count for i in range(count)]
