"""What a run measured, and its file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fastdiff.errors import InputError
from fastdiff.files import write_text


@dataclass(frozen=True)
class Spread:
    """Quartiles of a number over the rounds."""

    q1: float
    median: float
    q3: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Return the quartiles of at least one value."""
        return cls(*(float(value) for value in np.quantile(values, (0.25, 0.5, 0.75))))


@dataclass(frozen=True)
class Timing:
    """A peer's times.

    Attributes:
        ns: of one call, in nanoseconds.
        ratio: this peer's time over fastdiff's in the same round: how many times faster fastdiff is. None without it.
        rounds: how many there were.
    """

    ns: Spread
    ratio: Spread | None
    rounds: int


@dataclass(frozen=True)
class Entry:
    """A case on one shape, dtype and number of threads.

    Attributes:
        elements, traffic: see `work.Work`.
        timings: by peer.
        missing: by peer, why it took no part.
        wrong: by peer, what is wrong with its result; by "every peer", what kept all of them from being timed.
        bytes: by peer, the most that a call holds of what it allocates, its results included, where that is measured.
    """

    case: str
    shape: tuple[int, ...]
    dtype: str
    threads: int
    elements: int
    traffic: int
    timings: dict[str, Timing]
    missing: dict[str, str]
    wrong: dict[str, str]
    bytes: dict[str, int] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What tells an entry from the others of its run."""
        return self.case, "x".join(map(str, self.shape)), self.dtype, self.threads


@dataclass(frozen=True)
class Results:
    """A run: when it began, in UTC; on what; which versions and which of fastdiff's backends; what it found.

    `device` is the kind of device, "cpu" or "cuda"; `unmeasured` names the entries for which there was no time.
    """

    date: str
    machine: dict[str, str | int]
    versions: dict[str, str]
    backend: str
    entries: list[Entry] = field(default_factory=list)
    device: str = "cpu"
    unmeasured: list[str] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write the results as JSON, whole or not at all."""
        write_text(path, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read what `save` wrote. Raises InputError if the file holds none."""
        try:
            data = json.loads(path.read_text())
            return cls(**{**data, "entries": [_entry(**entry) for entry in data["entries"]]})
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise InputError(f"{path} holds no results of fastdiff bench: {error}") from None


def _entry(shape: list[int], timings: dict[str, Any], **rest: Any) -> Entry:
    return Entry(shape=tuple(shape), timings={peer: _timing(**timing) for peer, timing in timings.items()}, **rest)


def _timing(ns: dict[str, float], ratio: dict[str, float] | None, rounds: int) -> Timing:
    return Timing(Spread(**ns), None if ratio is None else Spread(**ratio), rounds)
