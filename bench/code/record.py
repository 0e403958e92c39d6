"""What was measured, as a file: one entry a kernel and target."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastdiff.bench.code.measure import Measure
from fastdiff.bench.code.work import Work
from fastdiff.errors import InputError
from fastdiff.files import write_text


@dataclass(frozen=True)
class Entry:
    """One kernel of a case, compiled by a backend for a target.

    Attributes:
        elements: how many a thread has on the main path.
        work: what one element takes; None for what runs after the first kernel of a case.
    """

    case: str
    backend: str
    target: str
    kernel: str
    dtype: str
    normals: str
    elements: int
    measure: Measure
    work: Work | None

    @property
    def name(self) -> str:
        """What tells the entry from all others."""
        return f"{self.backend}, {self.target}: {self.case}" + ("" if self.work else f", kernel {self.kernel}")

    @property
    def per_element(self) -> float:
        """Instructions of the main path per element."""
        return self.measure.instructions / self.elements


@dataclass(frozen=True)
class Record:
    """Entries, and the versions of the compilers that made their kernels, by backend."""

    compilers: Mapping[str, str]
    entries: tuple[Entry, ...]

    def save(self, path: Path) -> None:
        """Write JSON with a line for each entry, so that a change shows which kernels it touched."""
        entries = ",\n".join(json.dumps(asdict(entry)) for entry in self.entries)
        write_text(path, f'{{"compilers": {json.dumps(dict(self.compilers))}, "entries": [\n{entries}\n]}}\n')

    @classmethod
    def load(cls, path: Path) -> Record:
        """Read what `save` wrote. Raises InputError if there is no record in the file."""
        try:
            data = json.loads(path.read_text())
            return cls(data["compilers"], tuple(_entry(**entry) for entry in data["entries"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} holds no record of generated code: {error}") from None


def _entry(measure: Mapping[str, Any], work: Mapping[str, Any] | None, **rest: Any) -> Entry:
    return Entry(measure=Measure(**measure), work=None if work is None else Work(**work), **rest)


def by_name(entries: Iterable[Entry]) -> dict[str, Entry]:
    return {entry.name: entry for entry in entries}
