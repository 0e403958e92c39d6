"""What instructions do, as far as the limits speak of it, for NVIDIA's SASS and AMD's GCN."""

from __future__ import annotations

import re
from collections.abc import Sequence

from fastdiff.bench.code.listing import Instruction
from fastdiff.bench.code.path import Tally

VECTOR = 128  # bits of the widest access that every target has

Effect = tuple[str, int]  # what is done, and how often or how many bits wide
_NOTHING: Effect = ("other", 1)

# By the name before the first dot; the number is what one instruction counts for.
_SASS: dict[str, Effect] = {
    **dict.fromkeys(("LDS", "STS", "LDSM", "STSM", "ATOMS"), ("shared", 1)),
    **dict.fromkeys(("LDL", "STL"), ("local", 1)),
    **dict.fromkeys(("ATOM", "ATOMG", "RED", "REDG"), ("atomic", 1)),
    **dict.fromkeys(("CALL",), ("call", 1)),
    "SHFL": ("shuffle", 1),
    "BAR": ("barrier", 1),
    "MUFU": ("special", 1),
    "FFMA": ("fma", 1),
    "FFMA32I": ("fma", 1),
    "FFMA2": ("fma", 2),
}
_SASS_ACCESSES = {"LDG": "load", "LD": "load", "STG": "store", "ST": "store"}
_SASS_WIDTHS = {"64": 64, "128": 128, "256": 256, "U16": 16, "S16": 16, "U8": 8, "S8": 8}

_AMD: tuple[tuple[str, Effect], ...] = (
    (r"(global|flat|buffer)_atomic", ("atomic", 1)),
    (r"scratch_", ("local", 1)),
    (r"ds_(bpermute|permute|swizzle)", ("shuffle", 1)),
    (r"ds_", ("shared", 1)),
    (r"s_barrier", ("barrier", 1)),
    (r"s_swappc", ("call", 1)),
    (r"v_pk_fma_f32", ("fma", 2)),
    (r"v_(fma|fmac|fmaak|fmamk)_f32", ("fma", 1)),
    (r"v_(mad_u64_u32|mul_hi_u32)", ("wide product", 1)),
    (r"v_(rcp|rsq|sqrt|log|exp|sin|cos)_f32", ("special", 1)),
)
_AMD_ACCESS = re.compile(r"(?:global|flat|buffer)_(load|store)_([a-z]+?)(?:x(\d))?(?:_d16.*)?$")
_AMD_WIDTHS = {"dword": 32, "ushort": 16, "sshort": 16, "short": 16, "ubyte": 8, "sbyte": 8, "byte": 8}


def effect(instruction: Instruction) -> Effect:
    """Return what an instruction does: ("load", 128) for 128 bits of global memory, ("fma", 2) for two of them."""
    return _sass(instruction) if instruction.opcode[0].isupper() else _amd(instruction)


def tally(instruction: Instruction) -> Tally:
    """Return what an instruction adds to a way through the kernel."""
    kind, amount = effect(instruction)
    vectors = amount // VECTOR
    if kind == "load":
        return Tally(loads=vectors)
    if kind == "store":
        return Tally(stores=vectors)
    if kind in ("atomic", "call"):
        return Tally(rare=1)
    return Tally(fma=amount) if kind == "fma" else Tally()


def _sass(instruction: Instruction) -> Effect:
    name, *modifiers = instruction.opcode.split(".")
    if name in _SASS_ACCESSES:
        return _SASS_ACCESSES[name], max([_SASS_WIDTHS.get(modifier, 0) for modifier in modifiers] or [0]) or 32
    if name == "IMAD" and {"WIDE", "HI"} & set(modifiers):
        return "wide product", 1
    if name == "FFMA" and instruction.operands.endswith(", -RZ"):
        return _NOTHING  # a product: with -0 added, it rounds as one
    if name == "HFMA2" and not _only_constants(instruction.operands.split(", ")[1:3]):
        return "fma", 2
    return _SASS.get(name, _NOTHING)


def _only_constants(factors: Sequence[str]) -> bool:
    """Whether a multiplication only brings a constant into a register."""
    return all(factor.lstrip("-").startswith(("RZ", "1")) for factor in factors)


def _amd(instruction: Instruction) -> Effect:
    access = _AMD_ACCESS.match(instruction.opcode)
    if access:
        return access[1], _AMD_WIDTHS[access[2]] * int(access[3] or 1)
    return next((known for name, known in _AMD if re.match(name, instruction.opcode)), _NOTHING)
