"""What fastdiff is meant to reach on one AVX-512 core, or two, and whether a run reached it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fastdiff.bench.speed.results import Entry

DDIM, NOISY = ("ddim", "ddim-cfg"), ("ddim-eta1", "ddim-eta1-cfg", "ddpm", "ddpm-cfg")


@dataclass(frozen=True)
class Target:
    """A bound on a number of the entries that `concerns` picks; the worst of them counts.

    Attributes:
        what: in words.
        value: the number, None where an entry has none.
        bound: the least that is asked for, or the most where `at_most`.
        unit: what stands behind the number.
    """

    what: str
    concerns: Callable[[Entry], bool]
    value: Callable[[Entry], float | None]
    bound: float
    at_most: bool = False
    unit: str = "x"

    def worst(self, entries: list[Entry]) -> float | None:
        """Return the number that counts, or None if nothing of it was measured."""
        values = [self.value(entry) for entry in entries if self.concerns(entry)]
        found = [value for value in values if value is not None]
        return (max if self.at_most else min)(found, default=None)

    def met(self, value: float) -> bool:
        """Whether a number is as good as asked for."""
        return value <= self.bound if self.at_most else value >= self.bound


def _ratio(peer: str) -> Callable[[Entry], float | None]:
    def value(entry: Entry) -> float | None:
        timing = entry.timings.get(peer)
        return None if timing is None or timing.ratio is None else timing.ratio.median

    return value


def _ns_per_element(peer: str) -> Callable[[Entry], float | None]:
    return lambda entry: entry.timings[peer].ns.median / entry.elements if peer in entry.timings else None


def _call_ns(entry: Entry) -> float | None:
    return entry.timings["fastdiff"].ns.median if "fastdiff" in entry.timings else None


def _is(cases: tuple[str, ...], threads: int = 1, elements: int = 0) -> Callable[[Entry], bool]:
    return lambda entry: entry.case in cases and entry.threads == threads and entry.elements >= elements


def _small_cfg(entry: Entry) -> bool:
    return entry.key[:2] == ("ddim-cfg", "1x4x64x64") and entry.threads == 1


def _large_plain_ddim(entry: Entry) -> bool:
    inputs = 2 / 3 * entry.traffic  # x and the network's output; x is then written
    return _is(("ddim",))(entry) and entry.dtype == "float32" and inputs >= 64e6


LARGE_DDIM = _is(DDIM, elements=260_000)
TARGETS = (
    Target("DDIM, eta 0, guidance, 1x4x64x64: against diffusers", _small_cfg, _ratio("diffusers"), 30),
    Target("DDIM, eta 0, 2.6e5 elements or more: against diffusers", LARGE_DDIM, _ratio("diffusers"), 10),
    Target("the same: against torch.compile", LARGE_DDIM, _ratio("compile"), 1.5),
    Target("DDIM, eta 0, float32, 64 MB or more: share of the memory's limit", _large_plain_ddim, _ratio("limit"), 0.9),
    Target("steps with noise: against diffusers", _is(NOISY), _ratio("diffusers"), 12),
    Target("steps with noise on 2 threads: against diffusers", _is(NOISY, threads=2), _ratio("diffusers"), 20),
    Target("steps with noise: against torch.compile, fallback_random", _is(NOISY), _ratio("compile-fallback"), 7),
    Target("steps with noise: against torch.compile", _is(NOISY), _ratio("compile"), 60),
    Target("normals: against torch.randn", _is(("normal",)), _ratio("eager"), 7),
    Target("a normal", _is(("normal",)), _ns_per_element("fastdiff"), 0.45, at_most=True, unit=" ns"),
    Target("a normal with AVX2", _is(("normal",)), _ns_per_element("avx2"), 0.95, at_most=True, unit=" ns"),
    Target("a call on 16 elements", _is(("call",)), _call_ns, 3000, at_most=True, unit=" ns"),
)
