"""The table of generated code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from fastdiff.bench.code.instructions import VECTOR
from fastdiff.bench.code.limits import AMD_REGISTERS, INSTRUCTIONS, REGISTERS, SLACK, SUM_REGISTERS, misses
from fastdiff.bench.code.record import Entry, Record
from fastdiff.bench.code.work import DIVISION

_HEAD = (
    *("case", "registers", "instr./elem.", "elem.", "loads", "stores", "bytes/elem.", "fma", "named"),
    *("special", "wide mul.", "shared", "shuffles", "barriers", "atomics", "loops"),
)
_EXACT, _FAST = ([INSTRUCTIONS[backend, normals] for backend in ("cuda", "triton")] for normals in ("exact", "fast"))
_ABOUT = f"""# Generated code

`python -m fastdiff.bench.code` compiles every kernel ahead of time, without a GPU, and disassembles it; `--check`
compares with this record.

- **Main path:** what a thread executes where all its elements lie inside a sample and nothing is out of the ordinary,
  by the control flow of the machine code. Of all ways from entry to end it is the one that does the wanted 128-bit
  accesses, with the fewest calls and atomics, the wanted fused multiply-adds, and then the longest. Instructions whose
  guard is false count. A loop is passed as often as the wanted accesses take; a loop without any once (`loops`).
- **instr./elem.:** instructions on the main path over the elements of a thread (`elem.`), a sample's look-ups included.
  On NVIDIA GPUs a step with noise and bf16 may take {_EXACT[0]} (CUDA) and {_EXACT[1]} (Triton) with exact normals,
  {_FAST[0]} and {_FAST[1]} with fast ones.
- **loads, stores:** of global memory, number x bits. Image tensors move by 128 bits; narrower loads are numbers of a
  sample. **bytes/elem.:** what the 128-bit ones move.
- **fma, named:** fused multiply-adds in float32, and those that docs/step.md and docs/noise.md name, with two for a
  square root and {DIVISION} for a division. They must be equal.
- **special:** square roots, logarithms, sines, by the special function unit.
- **wide mul.:** products of 32 bits of which the upper half, or all 64 bits, are kept.
- **shared:** accesses to shared memory. No kernel has local memory.
- **registers:** at most {REGISTERS["cuda"]} (CUDA) and {REGISTERS["triton"]} (Triton);
  {AMD_REGISTERS} on AMD GPUs, {SUM_REGISTERS} (CUDA) for the loss to a target.
- **Regression:** with the same compiler, more than {SLACK["instructions"][0]:.0%} more instructions per element,
  more than {SLACK["registers"][1]} more registers, or more of anything else; with any, a limit missed by a kernel that
  kept all of them.
"""


def markdown(record: Record) -> str:
    """Return the table of a record, with what it misses."""
    parts = [_ABOUT, _compilers(record.compilers)]
    for backend, target in dict.fromkeys((entry.backend, entry.target) for entry in record.entries):
        chosen = [entry for entry in record.entries if (entry.backend, entry.target) == (backend, target)]
        parts.append(f"## {backend}, {target}\n\n{_table(_HEAD, [_row(entry) for entry in chosen])}")
    parts.append(f"## Limits missed\n\n{_missed(record.entries)}")
    return "\n".join(parts)


def _compilers(compilers: Mapping[str, str]) -> str:
    return "Compilers: " + "; ".join(f"{backend}: {version}" for backend, version in compilers.items()) + ".\n"


def _row(entry: Entry) -> tuple[str, ...]:
    found, work = entry.measure, entry.work
    moved = (found.vectors.loads + found.vectors.stores) * VECTOR / 8
    return (
        entry.case if work else f"{entry.case}: {entry.kernel}",
        str(found.registers),
        f"{entry.per_element:.1f}",
        str(entry.elements),
        *(_widths(found.loads), _widths(found.stores)),
        f"{moved / entry.elements:g}",
        str(found.fma),
        str(work.tally(entry.elements).fma) if work else "",
        *map(str, (found.special, found.wide_products, found.shared_accesses, found.shuffles, found.barriers)),
        *map(str, (found.atomics, found.loops)),
    )


def _widths(accesses: Mapping[str, int]) -> str:
    return ", ".join(f"{count} x {bits}" for bits, count in accesses.items())


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _missed(entries: Iterable[Entry]) -> str:
    lines = [f"- {entry.name}: {miss}" for entry in entries for miss in misses(entry)]
    return "\n".join(lines or ["None."]) + "\n"
