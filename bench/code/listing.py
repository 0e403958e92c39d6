"""Disassembled kernels as lists of instructions that know what follows them."""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_SASS = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@(!?)(U?P\w+)\s+)?([A-Z][\w.]*)\s*([^;]*?)\s*;")
_ADDRESS = re.compile(r"0x[0-9a-f]+$")
_LEAVES = ("EXIT", "RET", "BRX", "JMP", "JMX", "KILL")
_LABEL = re.compile(r"^(\.?[A-Za-z_][\w.$]*):")
_AMD = re.compile(r"^\s+([a-z]\w*)(?:\s+([^;]*?))?\s*(?:;.*)?$")


@dataclass(frozen=True)
class Instruction:
    """One instruction of a kernel.

    Attributes:
        opcode: with its modifiers, as "LDG.E.128".
        operands: the rest of the line.
        following: positions in the listing of what may run next.
        ends: whether the kernel may end here.
        guarded: whether a predicate decides if it does anything.
    """

    opcode: str
    operands: str
    following: tuple[int, ...]
    ends: bool = False
    guarded: bool = False


Listing = Sequence[Instruction]


def sass(text: str) -> dict[str, Listing]:
    """Return the kernels in what `cuobjdump -sass` prints, by name."""
    parts = re.split(r"^\s*Function : (\S+)\s*$", text, flags=re.MULTILINE)[1:]
    return {name: _sass_kernel(_SASS.findall(body)) for name, body in zip(parts[::2], parts[1::2], strict=True)}


def _sass_kernel(lines: Sequence[tuple[str, str, str, str, str]]) -> Listing:
    positions = {int(address, 16): k for k, (address, *_) in enumerate(lines)}
    joins: dict[str, int] = {}  # a barrier of divergent threads, and where they go on together
    listing = []
    for k, (_, negated, predicate, opcode, operands) in enumerate(lines):
        guard = Guard.of(negated, predicate)
        found = _ADDRESS.search(operands)
        target = positions.get(int(found[0], 16)) if found else None
        if opcode.startswith("BSSY") and target is not None:
            joins[operands.split(",")[0]] = target
        if opcode.startswith("BSYNC"):
            target = joins[operands]
        if opcode.startswith("CALL") and target is not None and _returns(lines[target:]):
            target = None
        following = _following(opcode, guard, operands, target, k + 1)
        ends = opcode.startswith("EXIT") and guard is not Guard.NEVER
        known = tuple(place for place in following if place < len(lines))
        listing.append(Instruction(opcode, operands, known, ends, guarded=guard is not Guard.ALWAYS))
    return listing


def _returns(lines: Sequence[tuple[str, str, str, str, str]]) -> bool:
    """Whether what is called comes back; for sm_80, ptxas also calls what it could jump to."""
    leaves = (
        opcode for _, _, predicate, opcode, _ in lines if not predicate and opcode.startswith(("RET", "EXIT", "BRA"))
    )
    return next(leaves, "").startswith("RET")


class Guard(enum.Enum):
    """When an instruction acts; PT and UPT are predicates that are always true."""

    ALWAYS, NEVER, SOMETIMES = range(3)

    @classmethod
    def of(cls, negated: str, predicate: str) -> Guard:
        if predicate not in ("", "PT", "UPT"):
            return cls.SOMETIMES
        return cls.NEVER if negated else cls.ALWAYS


def _following(opcode: str, guard: Guard, operands: str, target: int | None, through: int) -> tuple[int, ...]:
    name, *modifiers = opcode.split(".")
    jumps = name in ("BRA", "BSYNC", "CALL") and target is not None
    # The threads of a warp stand together: where they do not, it is not the main path.
    if guard is Guard.NEVER or "DIV" in modifiers or not (jumps or name in _LEAVES or opcode == "BPT.TRAP"):
        return (through,)
    conditional = guard is Guard.SOMETIMES or (name == "BRA" and not _ADDRESS.match(operands))
    return (*([target] if jumps and target is not None else []), *([through] if conditional else []))


def amdgcn(text: str) -> dict[str, Listing]:
    """Return the kernels in LLVM's assembly for AMD GPUs, by name."""
    kernels = re.findall(r"^\s*\.type\s+(\S+),@function", text, flags=re.MULTILINE)
    return {name: _amd_kernel(_between(text, f"\n{name}:", "\n.Lfunc_end")) for name in kernels}


def _between(text: str, begin: str, end: str) -> str:
    return text.partition(begin)[2].partition(end)[0]


def _amd_kernel(text: str) -> Listing:
    lines: list[tuple[str, str]] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(lines)
        elif found := _AMD.match(line):
            lines.append((found[1], found[2] or ""))
    return [_amd_instruction(k, opcode, operands, labels) for k, (opcode, operands) in enumerate(lines)]


def _amd_instruction(k: int, opcode: str, operands: str, labels: Mapping[str, int]) -> Instruction:
    if opcode in ("s_endpgm", "s_setpc_b64", "s_trap"):
        return Instruction(opcode, operands, (), ends=opcode == "s_endpgm")
    target = (labels[operands],) if opcode.startswith(("s_branch", "s_cbranch")) else ()
    return Instruction(opcode, operands, target if opcode == "s_branch" else (*target, k + 1))
