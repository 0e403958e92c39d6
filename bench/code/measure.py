"""The numbers of one compiled kernel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fastdiff.bench.code.instructions import VECTOR, Effect, effect, tally
from fastdiff.bench.code.listing import Listing
from fastdiff.bench.code.path import Tally, main_path


@dataclass(frozen=True)
class Resources:
    """What a kernel takes: registers of a thread, bytes of local memory of a thread, bytes of shared memory."""

    registers: int
    local: int
    shared: int


@dataclass(frozen=True)
class Measure:
    """What a compiled kernel takes, and what one thread does on its main path (see `path`).

    Attributes:
        instructions: all of them, also those whose guard is false; the other numbers are of those that act.
        loads, stores: of global memory, how many by bits: {"128": 3, "32": 7}.
        fma: fused multiply-adds in float32.
        special: square roots, logarithms, sines by the special function unit.
        wide_products: 32 x 32 bits to the upper or to all 64 bits.
        shared_accesses, shuffles, barriers, atomics: how many.
        local_accesses: how many in the whole kernel.
        loops: how many the main path passes; each counts as passed once.
    """

    registers: int
    local: int
    shared: int
    instructions: int
    loads: dict[str, int]
    stores: dict[str, int]
    fma: int
    special: int
    wide_products: int
    shared_accesses: int
    shuffles: int
    barriers: int
    local_accesses: int
    atomics: int
    loops: int

    @property
    def vectors(self) -> Tally:
        """How many 128 bits the loads and stores of at least 128 bits move, and the fused multiply-adds."""
        return Tally(_vectors(self.loads), _vectors(self.stores), self.fma)


def _vectors(accesses: Mapping[str, int]) -> int:
    return sum(int(bits) // VECTOR * count for bits, count in accesses.items())


def measure(listing: Listing, resources: Resources, wanted: Tally, turns: int = 1) -> Measure:
    """Measure a kernel on its main path, of which one turn does what is wanted or comes nearest to it."""
    path = main_path(listing, wanted, tally, turns)
    effects = [effect(step.instruction) for step in path.steps if step.acts]
    count = {kind: sum(amount for name, amount in effects if name == kind) for kind in {name for name, _ in effects}}
    local = sum(effect(instruction)[0] == "local" for instruction in listing)
    return Measure(
        registers=resources.registers,
        local=resources.local,
        shared=resources.shared,
        instructions=len(path.steps),
        loads=_by_width(effects, "load"),
        stores=_by_width(effects, "store"),
        fma=count.get("fma", 0),
        special=count.get("special", 0),
        wide_products=count.get("wide product", 0),
        shared_accesses=count.get("shared", 0),
        shuffles=count.get("shuffle", 0),
        barriers=count.get("barrier", 0),
        local_accesses=local,
        atomics=count.get("atomic", 0),
        loops=path.loops,
    )


def _by_width(effects: Iterable[Effect], kind: str) -> dict[str, int]:
    widths = Counter(bits for name, bits in effects if name == kind)
    return {str(bits): widths[bits] for bits in sorted(widths, reverse=True)}
