"""A run as a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from fastdiff.bench.speed.cases import DTYPES
from fastdiff.bench.speed.peers import PEERS
from fastdiff.bench.speed.results import Entry, Results, Timing
from fastdiff.bench.speed.targets import TARGETS, Target
from fastdiff.files import write_text
from fastdiff.ops.schema import GPU_BACKENDS


def render(results: Results, json: Path, picture: Path | None) -> Path:
    """Write the table beside the JSON, under its name, and return its path; it shows the picture, if there is one."""
    path = json.with_suffix(".md")
    write_text(path, markdown(results, json, picture))
    return path


def markdown(results: Results, json: Path, picture: Path | None) -> str:
    """Return the results as Markdown."""
    threads = dict.fromkeys(entry.threads for entry in results.entries)
    tables = [_times(results, count) for count in threads]
    sections = [
        _head(results, json),
        targets(results),
        f"![Speed-ups]({picture.name})" if picture else "",
        *tables,
        _memory(results),
        _backends(results),
        _absent(results),
    ]
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


def _head(results: Results, json: Path) -> str:
    machine, versions = results.machine, results.versions
    return f"""# Speed

Written by `fastdiff bench` from `{json.name}`; begun {results.date}.

- **Machine:** {", ".join(f"{value} cores" if name == "cores" else str(value) for name, value in machine.items())}.
- **Versions:** {", ".join(f"{name} {version}" for name, version in versions.items())}.
- **Backend:** {results.backend}.

Times are medians over rounds in which all peers take turns; a peer's column is its time over fastdiff's in the same \
round, the median and in brackets the quartiles: how many times faster fastdiff is. Where a result was wrong, no time \
was taken. GB/s is the bytes that the work cannot do without, over fastdiff's time. In float32 a step \
writes the next state alone; `fastdiff.sample` has it write the network's next input too. `bench/README.md` has the \
cases.

{_table(("column", "what it is"), PEERS.items())}"""


def targets(results: Results) -> str:
    """Return which targets are met, as Markdown; nothing if none of them was measured."""
    rows = []
    for target in TARGETS[results.device]:
        bound = f"{'<=' if target.at_most else '>='} {target.bound:g}{target.unit}"
        found = [_worst(target, [entry for entry in results.entries if entry.dtype == dtype]) for dtype in DTYPES]
        if any(found):
            rows.append((target.what, bound, *found))
        elif results.device == "cuda":
            rows.append((target.what, bound, *("not measured" for _ in found)))
    what = "target, for one thread unless it says otherwise" if results.device == "cpu" else "target"
    header = (what, "asked for", *(f"worst in {name}" for name in DTYPES))
    table = _table(header, rows)
    return f"## Targets\n\n{table}" if rows else ""


def _worst(target: Target, entries: list[Entry]) -> str:
    worst = target.worst(entries)
    if worst is None:
        return ""
    return f"{worst:.3g}{target.unit}, {'met' if target.met(worst) else '**missed**'}"


def _times(results: Results, threads: int) -> str:
    entries = [entry for entry in results.entries if entry.threads == threads]
    peers = [peer for peer in PEERS if any(peer in entry.timings for entry in entries) and peer != "fastdiff"]
    head = ("case", "shape", "dtype", "fastdiff", "ns/element", "GB/s", *peers)
    rows = [(*entry.key[:3], *_ours(entry), *(_ratio(entry.timings.get(peer)) for peer in peers)) for entry in entries]
    return f"## {heading(results, threads)}\n\n{_table(head, rows)}"


def _ours(entry: Entry) -> tuple[str, str, str]:
    """Return fastdiff's time, time per element and bytes per ns."""
    timing = entry.timings.get("fastdiff")
    if timing is None:
        return "", "", ""
    ns = timing.ns.median
    return duration(ns), f"{ns / entry.elements:.3g}", f"{entry.traffic / ns:.3g}" if entry.traffic else ""


def _ratio(timing: Timing | None) -> str:
    ratio = timing and timing.ratio
    return f"{ratio.median:.3g} ({ratio.q1:.3g}-{ratio.q3:.3g})" if ratio else ""


def _backends(results: Results) -> str:
    """Set the kernels of both GPU backends beside each other, in whatever they both did."""
    rows = []
    for entry in results.entries:
        for variant in ("", "-graph", "-fast"):
            pair = [entry.timings.get(f"{backend}{variant}") for backend in GPU_BACKENDS]
            times = [timing.ns.median for timing in pair if timing is not None]
            if len(times) == len(pair):
                ratio = f"{times[0] / times[1]:.3g}"
                rows.append((*entry.key[:3], variant.lstrip("-"), *(duration(time) for time in times), ratio))
    head = ("case", "shape", "dtype", "", *GPU_BACKENDS, " over ".join(GPU_BACKENDS))
    return f"## GPU backends\n\n{_table(head, rows)}" if rows else ""


def _memory(results: Results) -> str:
    """Say what a call allocates, where that was measured: fastdiff's in images of float32, the others' over it."""
    entries = [entry for entry in results.entries if "fastdiff" in entry.bytes]
    peers = [peer for peer in PEERS if any(peer in entry.bytes for entry in entries) and peer != "fastdiff"]
    rows = []
    for entry in entries:
        ours = entry.bytes["fastdiff"]
        others = (f"{entry.bytes[peer] / ours:.3g}" if peer in entry.bytes else "" for peer in peers)
        rows.append((*entry.key[:3], f"{ours / 1e6:.3g} MB", f"{ours / (4 * entry.elements):.3g}", *others))
    what = "The most that a call holds at a time of what it allocates, its results included; peers: times fastdiff's."
    head = ("case", "shape", "dtype", "fastdiff", "float32 images", *peers)
    return f"## Memory\n\n{what}\n\n{_table(head, rows)}" if rows else ""


def _absent(results: Results) -> str:
    """List what has no time: each reason once, with the cases that it concerns."""
    concerned: dict[str, list[str]] = {}
    for entry in results.entries:
        for kind, reasons in (("not measured", entry.missing), ("wrong result", entry.wrong)):
            for peer, reason in reasons.items():
                concerned.setdefault(f"**{peer}**, {kind}: {reason}", []).append(" ".join(map(str, entry.key)))
    if results.unmeasured:
        concerned["not measured: the time for the run was up"] = results.unmeasured
    lines = [f"- {reason} ({len(cases)}: {cases[0]}{' ...' * (len(cases) > 1)})" for reason, cases in concerned.items()]
    return "## Without a time\n\n" + "\n".join(lines) if lines else ""


def heading(results: Results, threads: int) -> str:
    """Return what the entries with so many threads ran on."""
    return f"{threads} thread{'s' * (threads > 1)}" if results.device == "cpu" else "GPU"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
