"""Two runs beside each other."""

from __future__ import annotations

from statistics import median

from fastdiff.bench.speed.peers import COMPILERS
from fastdiff.bench.speed.report import duration
from fastdiff.bench.speed.results import Entry, Results
from fastdiff.errors import InputError

THEIRS = (*COMPILERS, "eager", "diffusers", "limit", "copy")


def compare(before: Results, after: Results) -> str:
    """Return a line for each entry that both runs have: fastdiff's times, and their ratio, after over before.

    Behind the ratio stands its range, from one run's quartiles to the other's. The ratio of the other peers, whose code
    is not ours, shows what the machine did; where the range does not hold it, the line says slower or faster.

    Raises:
        InputError: there is no such entry.
    """
    old = {entry.key: entry for entry in before.entries if "fastdiff" in entry.timings}
    lines = [_line(old[new.key], new) for new in after.entries if new.key in old and "fastdiff" in new.timings]
    if not lines:
        raise InputError("the two runs share no case, shape, dtype and number of threads: nothing to compare")
    return "\n".join(lines)


def _line(old: Entry, new: Entry) -> str:
    a, b = old.timings["fastdiff"].ns, new.timings["fastdiff"].ns
    low, high = b.q1 / a.q3, b.q3 / a.q1
    others = _others(old, new)
    verdict = "slower" if low > others else "faster" if high < others else ""
    columns = (
        f"{' '.join(map(str, new.key)):<44}",
        f"{duration(a.median):>8} -> {duration(b.median):>8}",
        f"x {b.median / a.median:.3f} ({low:.3f}-{high:.3f})",
        f"others x {others:.3f}",
        verdict,
    )
    return "  ".join(columns).rstrip()


def _others(old: Entry, new: Entry) -> float:
    """Return the median ratio of the times of peers that are not ours; 1 without any."""
    both = [peer for peer in old.timings if peer in new.timings and peer in THEIRS]
    return median([new.timings[peer].ns.median / old.timings[peer].ns.median for peer in both] or [1.0])
