"""Table and figure from the numbers that `fastdiff.bench.few_steps` left in `few_steps.json`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from fastdiff.bench.quality_report import read
from fastdiff.files import replacing, write_text

__all__ = ["JSON", "KEYS", "Results", "read", "render"]

JSON, MARKDOWN, FIGURE = "few_steps.json", "few_steps.md", "few_steps.png"
KEYS = ("problem", "sampler", "spacing", "nfe")
BASELINE = "ddim"
# What is measured, and whether less is better.
MEASURES = {
    "mixture": {"sliced Wasserstein": True, "distance": True},
    "digits": {"frechet, pixel": True, "frechet, feature": True, "agreement": False, "distance": True},
}
TITLES = {"distance": "distance to the exact solution (RMS)"}
SHOWN_LINES = 8

Results = dict[str, Any]
Scores = Mapping[int, float]


def render(results: Results, out: Path) -> list[Path]:
    """Write the Markdown and the figure into a folder and return their paths."""
    write_text(out / MARKDOWN, markdown(results))
    with replacing(out / FIGURE) as temporary:
        figure(results).savefig(temporary, dpi=150, format="png", bbox_inches="tight")
    return [out / MARKDOWN, out / FIGURE]


def scores(results: Results, problem: str, measure: str) -> dict[tuple[str, str], dict[int, float]]:
    """Return each (sampler, spacing)'s numbers by NFE."""
    found: dict[tuple[str, str], dict[int, float]] = {}
    for cell in results["cells"]:
        if cell["problem"] == problem and measure in cell:
            found.setdefault((cell["sampler"], cell["spacing"]), {})[cell["nfe"]] = cell[measure]
    return found


def best_spacings(results: Results, problem: str, measure: str) -> dict[str, tuple[str, dict[int, float]]]:
    """Return each sampler's best spacing and its numbers there, the best sampler first.

    Best is by the geometric mean over NFE; what lacks a number comes behind all that have one more.
    """
    sign = 1 if MEASURES[problem][measure] else -1
    best: dict[str, tuple[str, dict[int, float]]] = {}

    def rank(numbers: Scores) -> tuple[int, float]:
        return -len(numbers), sign * _mean(numbers)

    for (sampler, spacing), numbers in scores(results, problem, measure).items():
        if sampler not in best or rank(numbers) < rank(best[sampler][1]):
            best[sampler] = spacing, numbers
    return dict(sorted(best.items(), key=lambda item: rank(item[1][1])))


def replaced(numbers: Scores, baseline: Scores, nfe: int) -> float:
    """Return how many steps of the baseline first reach the number that is reached at `nfe`.

    Interpolated in the logarithms; inf where the baseline does not reach it, 0 where its fewest steps do better.
    """
    steps: list[int] = []
    for n in sorted(baseline):
        if not steps or baseline[n] < baseline[steps[-1]]:
            steps.append(n)
    reached = [baseline[n] for n in steps]
    if numbers[nfe] < reached[-1]:
        return math.inf
    if numbers[nfe] > reached[0]:
        return 0.0
    return float(np.exp(np.interp(-math.log(numbers[nfe]), -np.log(reached), np.log(steps))))


def markdown(results: Results) -> str:
    """Return the results as Markdown."""
    sections = [_setup(results)]
    for problem, measures in MEASURES.items():
        sections += [_section(results, problem, measure) for measure in measures]
    return "\n\n".join([*sections, _failures(results)]) + "\n"


def figure(results: Results) -> Figure:
    """The best samplers and DDIM: each measure of which less is better, against the evaluations."""
    panels = [(problem, measure) for problem, found in MEASURES.items() for measure, less in found.items() if less]
    drawn = Figure(figsize=(12, 4 * math.ceil(len(panels) / 2)), layout="constrained")
    for place, (problem, measure) in enumerate(panels):
        axes = drawn.add_subplot(math.ceil(len(panels) / 2), 2, place + 1)
        best = best_spacings(results, problem, measure)
        shown = [*list(best)[:SHOWN_LINES], *([BASELINE] if BASELINE in best else [])]
        for line_of, sampler in enumerate(dict.fromkeys(shown)):
            spacing, numbers = best[sampler]
            color, line = ("black", "--") if sampler == BASELINE else (colormaps["tab10"](line_of), "-")
            label = f"{sampler}, {spacing}"
            axes.plot(list(numbers), list(numbers.values()), line, color=color, marker="o", label=label)
        floor = results["floor"][problem].get(measure)
        if floor is not None:
            axes.axhline(floor, color="grey", linewidth=0.8)
        axes.set(xscale="log", yscale="log", title=f"{problem}: {_title(measure)}", xlabel="network evaluations")
        axes.set_xticks(ticks := sorted({cell["nfe"] for cell in results["cells"]}), [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.legend(fontsize="x-small")
    return drawn


def _setup(results: Results) -> str:
    setup, machine = results["setup"], results["setup"]["machine"]
    counts = ", ".join(f"{count} samples of the {name}" for name, count in setup["samples"].items())
    return f"""# Few steps

Written by `python -m fastdiff.bench.few_steps` from `{JSON}`; begun {results["started"]}.

- **Cells:** at most so many network evaluations, from the same noise; {counts}. Each sampler stands with the spacing \
that is best for it by the geometric mean of its row, of those measured (all are in `{JSON}`).
- **Mixture:** nine Gaussians in the plane with their exact network, on the linear schedule; unclipped.
- **Digits:** the shipped network without guidance, x0 clipped to 1; distances are to the held-out split.
- **Distance to the exact solution:** of deterministic samplers, from the same noise, to Heun with \
{setup["exact steps"]} steps.
- **In brackets:** how many evaluations of DDIM, with its own best spacing, first reach the number, interpolated in \
the logarithms.
- **Machine:** {machine["cpu"]}, {machine["cores"]} cores; torch {setup["torch"]}.

![Error against network evaluations](few_steps.png)"""


def _section(results: Results, problem: str, measure: str) -> str:
    best = best_spacings(results, problem, measure)
    columns = sorted({cell["nfe"] for cell in results["cells"]})
    floor = results["floor"][problem].get(measure)
    beside = "" if floor is None else f" Real samples, as many: {floor:.4g}."
    less = MEASURES[problem][measure]
    head = ["sampler", "spacing", *(f"NFE {n}" for n in columns)]
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for sampler, (spacing, numbers) in best.items():
        lines.append(f"| {sampler} | {spacing} | " + " | ".join(_cell(numbers, best, n, less) for n in columns) + " |")
    better = "less" if less else "more"
    return f"## {problem}: {_title(measure)}\n\n{better.capitalize()} is better.{beside}\n\n" + "\n".join(lines)


def _cell(numbers: Scores, best: Mapping[str, tuple[str, dict[int, float]]], nfe: int, less: bool) -> str:
    if nfe not in numbers:
        return ""
    if not less:
        return f"{numbers[nfe]:.2%}"
    baseline = best.get(BASELINE)
    if baseline is None or numbers is baseline[1]:
        return f"{numbers[nfe]:.4g}"
    steps = replaced(numbers, baseline[1], nfe)
    least, most = min(baseline[1]), max(baseline[1])
    shown = f"> {most}" if math.isinf(steps) else f"{steps:.0f}" if steps else f"< {least}"
    return f"{numbers[nfe]:.4g} ({shown})"


def _failures(results: Results) -> str:
    broken = [cell for cell in results["cells"] if "failed" in cell]
    names = [f"{cell['sampler']} ({cell['problem']}, {cell['spacing']}, NFE {cell['nfe']})" for cell in broken]
    return "Runs that ended in NaN or infinity: " + (", ".join(names) or "none") + "."


def _title(measure: str) -> str:
    return TITLES.get(measure, measure)


def _mean(numbers: Scores) -> float:
    values = np.maximum(list(numbers.values()), np.finfo(float).tiny)  # nobody may agree
    return float(np.exp(np.mean(np.log(values))))
