"""A run as a table and a picture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator

from fastdiff.bench.speed.cases import CASES, DTYPES
from fastdiff.bench.speed.peers import PEERS
from fastdiff.bench.speed.results import Entry, Results, Timing
from fastdiff.bench.speed.targets import TARGETS, Target
from fastdiff.files import replacing, write_text

COLOURS = {
    "eager": "tab:blue",
    "compile": "tab:orange",
    "compile-fallback": "tab:green",
    "diffusers": "tab:red",
    "limit": "tab:gray",
}


def render(results: Results, json: Path) -> list[Path]:
    """Write the table and the picture beside the JSON, under its name, and return their paths."""
    table, picture = json.with_suffix(".md"), json.with_suffix(".png")
    write_text(table, markdown(results, json, picture))
    with replacing(picture) as temporary:
        figure(results).savefig(temporary, dpi=120, format="png", bbox_inches="tight")
    return [table, picture]


def markdown(results: Results, json: Path, picture: Path) -> str:
    """Return the results as Markdown."""
    threads = dict.fromkeys(entry.threads for entry in results.entries)
    tables = [_times([entry for entry in results.entries if entry.threads == count], count) for count in threads]
    sections = [_head(results, json), _targets(results), f"![Speed-ups]({picture.name})", *tables, _absent(results)]
    return "\n\n".join(section for section in sections if section) + "\n"


def line(entry: Entry) -> str:
    """Return an entry in one line, for a terminal."""
    ours = entry.timings.get("fastdiff")
    others = [
        f"{peer} {_ratio(timing) or duration(timing.ns.median)}"
        for peer, timing in entry.timings.items()
        if peer != "fastdiff"
    ]
    wrong = [f"{peer} WRONG: {reason}" for peer, reason in entry.wrong.items()]
    time = "" if ours is None else duration(ours.ns.median)
    return "  ".join([*(str(part) for part in entry.key), time, *others, *wrong])


def duration(ns: float) -> str:
    """Return a time with three digits and its unit."""
    for unit, size in (("s", 1e9), ("ms", 1e6), ("us", 1e3)):
        if ns >= size:
            return f"{ns / size:.3g} {unit}"
    return f"{ns:.3g} ns"


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
    drawn.supxlabel(f"time over fastdiff's, {_threads(least)}: median and quartiles")
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


def _head(results: Results, json: Path) -> str:
    machine, versions = results.machine, results.versions
    return f"""# Speed

Written by `fastdiff bench` from `{json.name}`; begun {results.date}.

- **Machine:** {machine["cpu"]}, {machine["cores"]} cores, {machine["memory"]}, {machine["instruction set"]}, \
{machine["system"]}.
- **Versions:** {", ".join(f"{name} {version}" for name, version in versions.items())}.
- **Backend:** {results.backend}.

Times are medians over rounds in which all peers take turns; a peer's column is its time over fastdiff's in the same \
round, the median and in brackets the quartiles: how many times faster fastdiff is. Where a result was wrong, no time \
was taken. GB/s is the bytes that the work cannot do without, over fastdiff's time. `bench/README.md` has the cases.

{_table(("column", "what it is"), PEERS.items())}"""


def _targets(results: Results) -> str:
    rows = []
    for target in TARGETS:
        bound = f"{'<=' if target.at_most else '>='} {target.bound:g}{target.unit}"
        found = [_worst(target, [entry for entry in results.entries if entry.dtype == dtype]) for dtype in DTYPES]
        if any(found):
            rows.append((target.what, bound, *found))
    header = ("target, for one thread unless it says otherwise", "asked for", *(f"worst in {name}" for name in DTYPES))
    table = _table(header, rows)
    return f"## Targets\n\n{table}" if rows else ""


def _worst(target: Target, entries: list[Entry]) -> str:
    worst = target.worst(entries)
    if worst is None:
        return ""
    return f"{worst:.3g}{target.unit}, {'met' if target.met(worst) else '**missed**'}"


def _times(entries: Sequence[Entry], threads: int) -> str:
    peers = [peer for peer in PEERS if any(peer in entry.timings for entry in entries) and peer != "fastdiff"]
    head = ("case", "shape", "dtype", "fastdiff", "ns/element", "GB/s", *peers)
    rows = [(*entry.key[:3], *_ours(entry), *(_ratio(entry.timings.get(peer)) for peer in peers)) for entry in entries]
    return f"## {_threads(threads).capitalize()}\n\n{_table(head, rows)}"


def _ours(entry: Entry) -> tuple[str, str, str]:
    """Return fastdiff's time, time per element and bytes per ns."""
    timing = entry.timings.get("fastdiff")
    if timing is None:
        return "", "", ""
    ns = timing.ns.median
    return duration(ns), f"{ns / entry.elements:.3g}", f"{entry.traffic / ns:.3g}"


def _ratio(timing: Timing | None) -> str:
    ratio = timing and timing.ratio
    return f"{ratio.median:.3g} ({ratio.q1:.3g}-{ratio.q3:.3g})" if ratio else ""


def _absent(results: Results) -> str:
    """List what has no time: each reason once, with the cases that it concerns."""
    concerned: dict[str, list[str]] = {}
    for entry in results.entries:
        for kind, reasons in (("not measured", entry.missing), ("wrong result", entry.wrong)):
            for peer, reason in reasons.items():
                concerned.setdefault(f"**{peer}**, {kind}: {reason}", []).append(" ".join(map(str, entry.key)))
    lines = [f"- {reason} ({len(cases)}: {cases[0]}{' ...' * (len(cases) > 1)})" for reason, cases in concerned.items()]
    return "## Without a time\n\n" + "\n".join(lines) if lines else ""


def _threads(count: int) -> str:
    return f"{count} thread{'s' * (count > 1)}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
