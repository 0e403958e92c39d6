"""What fastdiff is meant to reach on one AVX-512 core, or two, and on an H200, and whether a run reached it."""

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


def _ns(peer: str) -> Callable[[Entry], float | None]:
    return lambda entry: entry.timings[peer].ns.median if peer in entry.timings else None


def _share(of: str, peer: str) -> Callable[[Entry], float | None]:
    """Return how a peer's time compares with that of `of`, in which the memory does nothing else."""

    def value(entry: Entry) -> float | None:
        both = of in entry.timings and peer in entry.timings
        return entry.timings[of].ns.median / entry.timings[peer].ns.median if both else None

    return value


def _bytes_over(peer: str) -> Callable[[Entry], float | None]:
    """Return what fastdiff's call allocates over what a peer's does."""
    return lambda entry: entry.bytes["fastdiff"] / entry.bytes[peer] if {"fastdiff", peer} <= set(entry.bytes) else None


def _is(cases: tuple[str, ...], threads: int = 1, elements: int = 0) -> Callable[[Entry], bool]:
    return lambda entry: entry.case in cases and entry.threads == threads and entry.elements >= elements


def _small_cfg(entry: Entry) -> bool:
    return entry.key[:2] == ("ddim-cfg", "1x4x64x64") and entry.threads == 1


def _on(shapes: tuple[str, ...], cases: tuple[str, ...], dtype: str = "") -> Callable[[Entry], bool]:
    return lambda entry: entry.case in cases and entry.key[1] in shapes and dtype in ("", entry.dtype)


def _streams(cases: tuple[str, ...], dtype: str = "") -> Callable[[Entry], bool]:
    """Entries that move 100 MB and more."""
    return lambda entry: entry.case in cases and entry.traffic >= 100e6 and dtype in ("", entry.dtype)


def _large_plain_ddim(entry: Entry) -> bool:
    inputs = 2 / 3 * entry.traffic  # x and the network's output; x is then written
    return _is(("ddim",))(entry) and entry.dtype == "float32" and inputs >= 64e6


LARGE_DDIM, LARGE_TRAINING = _is(DDIM, elements=260_000), _is(("train-step",), elements=260_000)
ON_CPU = (
    Target("DDIM, eta 0, guidance, 1x4x64x64: against diffusers", _small_cfg, _ratio("diffusers"), 30),
    Target("DDIM, eta 0, 2.6e5 elements or more: against diffusers", LARGE_DDIM, _ratio("diffusers"), 10),
    Target("the same: against torch.compile", LARGE_DDIM, _ratio("compile"), 1.5),
    Target("DDIM, eta 0, float32, 64 MB or more: share of the memory's limit", _large_plain_ddim, _ratio("limit"), 0.9),
    Target("steps with noise: against diffusers", _is(NOISY), _ratio("diffusers"), 12),
    Target("steps with noise on 2 threads: against diffusers", _is(NOISY, threads=2), _ratio("diffusers"), 20),
    Target("steps with noise: against torch.compile, fallback_random", _is(NOISY), _ratio("compile-fallback"), 7),
    Target("steps with noise: against torch.compile", _is(NOISY), _ratio("compile"), 60),
    Target("noise and loss of training, 2.6e5 elements or more: against torch", LARGE_TRAINING, _ratio("eager"), 8),
    Target("the same: memory over that of torch", LARGE_TRAINING, _bytes_over("eager"), 0.5, at_most=True),
    Target("normals: against torch.randn", _is(("normal",)), _ratio("eager"), 7),
    Target("a normal", _is(("normal",)), _ns_per_element("fastdiff"), 0.45, at_most=True, unit=" ns"),
    Target("a normal with AVX2", _is(("normal",)), _ns_per_element("avx2"), 0.95, at_most=True, unit=" ns"),
    Target("a call on 16 elements", _is(("call",)), _ns("fastdiff"), 3000, at_most=True, unit=" ns"),
)

STEPS = (*DDIM, *NOISY)
ONE, LATENTS, PIXELS, LOOP = ("1x4x64x64",), ("1x4x64x64", "16x4x64x64"), ("64x3x256x256",), ("1x3x32x32",)
COPY, NOISE_COPY = "share of a device copy, 100 MB or more: ", "share of a device copy, 100 MB or more: noise, "
ON_GPU = (
    Target(COPY + "DDIM, eta 0", _streams(("ddim",)), _share("copy", "fastdiff"), 0.9),
    Target(NOISE_COPY + "float32", _streams(NOISY, "float32"), _share("copy", "fastdiff"), 0.9),
    Target(NOISE_COPY + "bfloat16", _streams(NOISY, "bfloat16"), _share("copy", "fastdiff"), 0.65),
    Target(NOISE_COPY + "bfloat16, fast normals", _streams(NOISY, "bfloat16"), _share("copy", "fast"), 0.85),
    Target("a step inside a graph, 1x4x64x64", _on(ONE, STEPS), _ns("graph"), 3000, at_most=True, unit=" ns"),
    Target("DDIM, eta 0, 64x3x256x256: against diffusers", _on(PIXELS, ("ddim",)), _ratio("diffusers"), 4.5),
    Target("DDPM, guidance, 64x3x256x256: against diffusers", _on(PIXELS, ("ddpm-cfg",)), _ratio("diffusers"), 6.5),
    Target("steps at latent sizes: against diffusers", _on(LATENTS, STEPS), _ratio("diffusers"), 20),
    Target("no noise, 64x3x256x256: against torch.compile", _on(PIXELS, DDIM), _ratio("compile"), 1),
    Target("noise, 64x3x256x256: against torch.compile", _on(PIXELS, NOISY), _ratio("compile"), 1.5),
    Target("a loop as one graph: against diffusers", _on(LOOP, ("loop",)), _ratio("diffusers"), 4),
    Target("the same: its network compiled, with graphs", _on(LOOP, ("loop",)), _ratio("diffusers-overhead"), 1.2),
)
TARGETS = {"cpu": ON_CPU, "cuda": ON_GPU}
