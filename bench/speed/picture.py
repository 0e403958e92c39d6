"""A run as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator

from fastdiff.bench.speed.cases import CASES
from fastdiff.bench.speed.report import heading
from fastdiff.bench.speed.results import Entry, Results
from fastdiff.files import replacing

COLOURS = {
    "eager": "tab:blue",
    "compile": "tab:orange",
    "compile-fallback": "tab:green",
    "diffusers": "tab:red",
    "limit": "tab:gray",
    "copy": "tab:gray",
}


def render(results: Results, json: Path) -> Path:
    """Write the picture beside the JSON, under its name, and return its path."""
    path = json.with_suffix(".png")
    with replacing(path) as temporary:
        figure(results).savefig(temporary, dpi=120, format="png", bbox_inches="tight")
    return path


def figure(results: Results) -> Figure:
    """Draw how many times faster fastdiff is, a panel for each shape and dtype, with the fewest threads."""
    least = min(entry.threads for entry in results.entries)
    alike = [entry for entry in results.entries if entry.threads == least]
    entries = [entry for entry in alike if CASES[entry.case].shape is None] or alike
    cases, shapes, dtypes = (list(dict.fromkeys(entry.key[part] for entry in entries)) for part in range(3))
    measured = {peer for entry in entries for peer in entry.timings}
    colours = {peer: colour for peer, colour in COLOURS.items() if peer in measured} or COLOURS
    size = (2 + 3 * len(shapes), 1.5 + 0.5 * len(cases) * len(dtypes))
    drawn = Figure(figsize=size, layout="constrained")
    panels = drawn.subplots(len(dtypes), len(shapes), sharex=True, sharey=True, squeeze=False)
    for row, dtype in enumerate(dtypes):
        for column, shape in enumerate(shapes):
            found = {entry.case: entry for entry in entries if entry.key[1:3] == (shape, dtype)}
            _panel(panels[row, column], [found.get(str(case)) for case in cases], colours)
            panels[row, column].set_title(f"{shape}, {dtype}", fontsize="medium")
    panels[0, 0].set_yticks(range(len(cases)), cases)
    panels[0, 0].invert_yaxis()
    drawn.supxlabel(f"time over fastdiff's, {heading(results, least)}: median and quartiles")
    handles = [Patch(color=colour, label=peer) for peer, colour in colours.items()]
    drawn.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    return drawn


def _panel(axes: Axes, entries: Sequence[Entry | None], colours: Mapping[str, str]) -> None:
    """Draw for each case a bar of each peer, from 1 to its ratio."""
    height = 0.8 / len(colours)
    for place, entry in enumerate(entries):
        for number, (peer, colour) in enumerate(colours.items()):
            timing = entry and entry.timings.get(peer)
            if timing and timing.ratio:
                y, ratio = place + height * (number + 0.5) - 0.4, timing.ratio
                axes.barh(y, ratio.median - 1, height, left=1, color=colour)
                axes.plot([ratio.q1, ratio.q3], [y, y], color="black", linewidth=1)
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(axis="x", alpha=0.3)
