"""What generated code must keep to, and what has become worse."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from fastdiff.bench.code.instructions import VECTOR
from fastdiff.bench.code.path import Tally
from fastdiff.bench.code.record import Entry, Record, by_name
from fastdiff.bench.code.work import Work

REGISTERS = {"cuda": 48, "triton": 80}
# Of a CUDA kernel that draws noise and reads two tensors for a sum: four blocks of 256 threads fit a multiprocessor.
SUM_REGISTERS = 64
# With 128 of AMD's as many threads fit a compute unit (1024) as with 64 of NVIDIA's a multiprocessor.
AMD_REGISTERS = 128
# Instructions per element of a step that draws noise and whose network's tensors are bf16, on NVIDIA GPUs.
INSTRUCTIONS = {
    ("cuda", "exact"): 58,
    ("cuda", "fast"): 38,
    ("triton", "exact"): 64,
    ("triton", "fast"): 42,
}
# A compiler's choices hang together: a change elsewhere in a kernel may move these a little.
SLACK = {"instructions": (0.02, 0), "registers": (0, 4)}  # relative and absolute


def misses(entry: Entry) -> list[str]:
    """Return the limits that a kernel does not keep, a line each."""
    return list(_misses(entry))


def _misses(entry: Entry) -> Iterator[str]:
    found = entry.measure
    most = AMD_REGISTERS if entry.target.startswith("gfx") else REGISTERS[entry.backend]
    if entry.backend == "cuda" and entry.case.startswith("noise_loss, target"):
        most = SUM_REGISTERS
    if found.registers > most:
        yield f"{found.registers} registers, more than {most}"
    if found.local or found.local_accesses:
        yield f"local memory: {found.local} bytes, {found.local_accesses} accesses"
    if entry.work is not None:
        yield from _misses_of_work(entry, entry.work)


def _misses_of_work(entry: Entry, work: Work) -> Iterator[str]:
    found, wanted = entry.measure, work.tally(entry.elements)
    if found.vectors.loads != wanted.loads:
        yield f"{found.vectors.loads} loads of 128 bits, {wanted.loads} wanted: {found.loads}"
    if found.vectors.stores != wanted.stores:
        yield f"{found.vectors.stores} stores of 128 bits, {wanted.stores} wanted: {found.stores}"
    if not work.reduces:
        yield from _misses_of_elements(entry, wanted)
    if found.wide_products < work.wide_products * entry.elements:
        yield f"{found.wide_products} wide products: the main path leaves out a part of Philox"
    limit = INSTRUCTIONS.get((entry.backend, entry.normals))
    counted = entry.case.startswith("step") and entry.dtype == "bf16" and entry.target.startswith("sm_")
    if limit is not None and counted and entry.per_element > limit:
        yield f"{entry.per_element:.1f} instructions per element, more than {limit}"


def _misses_of_elements(entry: Entry, wanted: Tally) -> Iterator[str]:
    found = entry.measure
    if any(int(bits) < 32 for bits in found.loads) or any(int(bits) < VECTOR for bits in found.stores):
        yield f"accesses too narrow for an image tensor: loads {found.loads}, stores {found.stores}"
    # On AMD GPUs Triton has the sine and the cosine of a library, which are polynomials.
    by_library = entry.normals == "fast" and entry.target.startswith("gfx")
    if found.fma != wanted.fma and not by_library:
        yield f"{found.fma} fused multiply-adds, {wanted.fma} named"
    if found.shared_accesses or found.barriers:
        yield f"{found.shared_accesses} accesses to shared memory and {found.barriers} barriers"
    if found.loops:
        yield f"{found.loops} loops without accesses, whose instructions are counted once"


def regressions(before: Record, now: Record) -> list[str]:
    """Return what is worse than it was, a line each.

    Numbers are compared between kernels of the same compiler. A limit must be kept by every kernel that kept all.
    """
    return list(_regressions(by_name(before.entries), before.compilers, now))


def _regressions(known: Mapping[str, Entry], compilers: Mapping[str, str], now: Record) -> Iterator[str]:
    for name, entry in by_name(now.entries).items():
        old = known.get(name)
        if old is None or not misses(old):
            yield from (f"{name}: {miss}" for miss in misses(entry))
        if compilers.get(entry.backend) != now.compilers[entry.backend]:
            continue
        if old is None:
            yield f"{name}: not in the record"
        else:
            yield from (f"{name}: {line}" for line in _worse(costs(old), costs(entry)))


def _worse(old: Mapping[str, float], new: Mapping[str, float]) -> Iterator[str]:
    for cost, value in new.items():
        relative, absolute = SLACK.get(cost, (1e-9, 0))  # a quotient may be rounded
        if value > old[cost] * (1 + relative) + absolute:
            yield f"{cost} was {old[cost]:g} and is {value:g}"


def costs(entry: Entry) -> dict[str, float]:
    """Return the numbers of which less is better; those of the main path per element."""
    found = entry.measure
    counts = {
        "instructions": found.instructions,
        "loads": sum(found.loads.values()),
        "stores": sum(found.stores.values()),
        "fma": found.fma,
        "special": found.special,
        "shared_accesses": found.shared_accesses,
        "shuffles": found.shuffles,
        "barriers": found.barriers,
        "atomics": found.atomics,
    }
    per_element = {cost: count / entry.elements for cost, count in counts.items()}
    return {**per_element, "registers": found.registers, "local": found.local, "shared": found.shared}
