"""bench/code on listings made by hand: which way it takes through a kernel, and what it counts there."""

from __future__ import annotations

import pytest

from fastdiff.bench.code.instructions import effect, tally
from fastdiff.bench.code.listing import Instruction, Listing, amdgcn, sass
from fastdiff.bench.code.measure import Resources, measure
from fastdiff.bench.code.path import Path, Tally, main_path

RESOURCES = Resources(registers=32, local=0, shared=0)


def kernel(*lines: str) -> Listing:
    """A SASS listing as cuobjdump prints it, one instruction every 16 bytes, with the words of its encoding."""
    body = "\n".join(
        f"        /*{16 * k:04x}*/       {line} ;      /* 0x00000a00ff017b82 */\n{' ' * 60}/* 0x000e220000000800 */"
        for k, line in enumerate(lines)
    )
    return sass(f'\n\tcode for sm_90a\n\t\tFunction : made\n\t.headerflags\t@"EF_CUDA_SM90"\n{body}\n')["made"]


def path(listing: Listing, turns: int = 1, **wanted: int) -> Path:
    return main_path(listing, Tally(**wanted), tally, turns)


def opcodes(found: Path) -> str:
    return " ".join(step.instruction.opcode for step in found.steps)


def test_a_straight_kernel_is_its_own_path() -> None:
    listing = kernel(
        "LDC R1, c[0x0][0x28]", "LDG.E.128 R4, [R2.64]", "STG.E.128 [R2.64], R4", "EXIT", "BRA 0x40", "NOP"
    )
    assert len(listing) == 6
    assert opcodes(path(listing, loads=1, stores=1)) == "LDC LDG.E.128 STG.E.128 EXIT"


def test_an_early_exit_and_the_way_round_the_tail_are_not_the_main_path() -> None:
    listing = kernel(
        "ISETP.GE.AND P0, PT, R0, UR4, PT",
        "@P0 EXIT",
        "@!P1 BRA 0x70",  # a whole block
        *["LDG.E.U16 R4, [R2.64]", "STG.E.U16 [R2.64], R4", "NOP", "EXIT"],
        *["LDG.E.128 R4, [R2.64]", "STG.E.128 [R2.64], R4", "EXIT"],
    )
    assert opcodes(path(listing, loads=1, stores=1)) == "ISETP.GE.AND EXIT BRA LDG.E.128 STG.E.128 EXIT"


def test_a_call_is_avoided_and_a_barrier_continues_where_it_was_set() -> None:
    listing = kernel(
        "BSSY.RECONVERGENT B0, 0x90",
        "@!P0 BRA 0x60",
        "MOV R0, R12",
        "CALL.REL.NOINC 0xb0",
        "MOV R4, R17",
        "BSYNC.RECONVERGENT B0",
        "FFMA R4, -R5, R5, R12",
        "FFMA R4, R4, R17, R5",
        "BSYNC.RECONVERGENT B0",
        "STG.E.128 [R2.64], R4",
        "EXIT",
        "RET.REL.NODEC R2 0x0",
    )
    found = path(listing, stores=1, fma=2)
    assert opcodes(found) == "BSSY.RECONVERGENT BRA FFMA FFMA BSYNC.RECONVERGENT STG.E.128 EXIT"


def test_an_atomic_that_a_branch_or_a_guard_avoids_is_not_done() -> None:
    avoided = kernel("STG.E.128 [R2.64], R4", "BRA.U !UP0, 0x40", "MOV R0, R1", "REDG.E.MIN.64 [R2.64], R4", "EXIT")
    assert measure(avoided, RESOURCES, Tally(stores=1)).atomics == 0
    guarded = kernel("STG.E.128 [R2.64], R4", "@P0 REDG.E.MIN.64 [R2.64], R4", "EXIT")
    found = measure(guarded, RESOURCES, Tally(stores=1))
    assert (found.atomics, found.instructions) == (0, 3)
    unavoidable = kernel("STG.E.128 [R2.64], R4", "REDG.E.MIN.64 [R2.64], R4", "EXIT")
    assert measure(unavoidable, RESOURCES, Tally(stores=1)).atomics == 1


def test_of_equal_ways_the_longest_is_taken() -> None:
    listing = kernel("@P0 BRA 0x30", "FADD R0, R1, R2", "FADD R0, R0, R2", "STG.E.128 [R2.64], R4", "EXIT")
    assert len(path(listing, stores=1).steps) == 5


def test_what_a_case_wants_decides_between_ways() -> None:
    listing = kernel("BRA.U UP0, 0x30", "LDG.E.128 R4, [R2.64]", "FFMA R4, R4, R4, R5", "STG.E.128 [R2.64], R4", "EXIT")
    assert "LDG" in opcodes(path(listing, loads=1, stores=1, fma=1))
    assert "LDG" not in opcodes(path(listing, loads=0, stores=1))


LOOP = ("MOV R0, RZ", "LDG.E.128 R4, [R2.64]", "FADD R0, R0, R4", "@P0 BRA 0x10", "STG.E [R2.64], R0", "EXIT")


@pytest.mark.parametrize("turns", [1, 2, 5])
def test_a_loop_is_passed_as_often_as_a_thread_has_turns(turns: int) -> None:
    found = path(kernel(*LOOP), turns, loads=1)
    assert opcodes(found) == " ".join(["MOV", *["LDG.E.128", "FADD", "BRA"] * turns, "STG.E", "EXIT"])
    assert found.loops == 0


def test_a_loop_that_ends_by_a_call_of_the_exit() -> None:
    listing = kernel("LDG.E.128 R4, [R2.64]", "@P0 CALL.REL.NOINC 0x30", "BRA 0x0", "EXIT")
    assert opcodes(path(listing, 1, loads=1)) == "LDG.E.128 CALL.REL.NOINC EXIT"
    assert opcodes(path(listing, 2, loads=1)) == "LDG.E.128 CALL.REL.NOINC BRA LDG.E.128 CALL.REL.NOINC EXIT"


def test_every_turn_takes_the_same_way_and_a_loop_inside_is_part_of_it() -> None:
    listing = kernel(
        "LDG.E.128 R4, [R2.64]",
        "STG.E.128 [R2.64], R4",
        "BRA.U !UP0, 0x50",
        *["STG.E.128 [R2.64], R4", "@P0 BRA 0x30"],
        *["BRA.U UP0, 0x0", "EXIT"],
    )
    one, two = path(listing, 3, loads=1, stores=1), path(listing, 3, loads=1, stores=2)
    assert opcodes(one) == " ".join([*["LDG.E.128", "STG.E.128", "BRA.U", "BRA.U"] * 3, "EXIT"])
    assert opcodes(two) == " ".join([*["LDG.E.128", "STG.E.128", "BRA.U", "STG.E.128", "BRA", "BRA.U"] * 3, "EXIT"])


def test_a_loop_without_vector_accesses_is_passed_once_and_counted() -> None:
    listing = kernel("LDG.E.128 R4, [R2.64]", "IMAD.WIDE.U32 R4, R4, R5, RZ", "@P0 BRA 0x10", "EXIT")
    found = path(listing, 4, loads=1)
    assert opcodes(found) == "LDG.E.128 IMAD.WIDE.U32 BRA EXIT" and found.loops == 1


def test_a_loop_that_a_branch_avoids_is_not_on_the_path() -> None:
    listing = kernel("STG.E.128 [R2.64], R4", "@P1 BRA 0x40", "FADD R0, R1, R2", "@P0 BRA 0x20", "EXIT")
    found = path(listing, stores=1)
    assert opcodes(found) == "STG.E.128 BRA EXIT" and found.loops == 0


def test_what_a_case_wants_decides_whether_a_guard_is_true() -> None:
    listing = kernel("LDG.E.128 R4, [R2.64]", "@P0 LDG.E.128 R8, [R2.64]", "@P0 FFMA R4, R4, R5, R8", "EXIT")
    for count in (1, 2):
        found = measure(listing, RESOURCES, Tally(loads=count, fma=count - 1))
        assert (found.loads, found.fma, found.instructions) == ({"128": count}, count - 1, 4)


def test_threads_of_a_warp_stand_together() -> None:
    listing = kernel("BRA.DIV UR4, 0x30", "STG.E.128 [R2.64], R4", "EXIT", "MOV R0, R1", "BRA 0x10")
    assert opcodes(path(listing, stores=1)) == "BRA.DIV STG.E.128 EXIT"


def test_a_guard_that_is_constant() -> None:
    assert opcodes(path(kernel("@!PT BRA 0x30", "MOV R0, R1", "EXIT", "EXIT"))) == "BRA MOV EXIT"
    assert opcodes(path(kernel("@PT BRA 0x30", "MOV R0, R1", "EXIT", "EXIT"))) == "BRA EXIT"


def test_a_kernel_without_an_end_is_refused() -> None:
    with pytest.raises(ValueError, match="no way through"):
        path(kernel("MOV R0, R1", "BRA 0x10"))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("LDG.E R2, desc[UR6][R2.64+0x4]", ("load", 32)),
        ("@P0 LDG.E.EF.128.CONSTANT R4, [R2.64]", ("load", 128)),
        ("LDG.E.ENL2.256 R4, R8, [R2.64]", ("load", 256)),
        ("LDG.E.U16 R4, [R2.64]", ("load", 16)),
        ("STG.E.64 [R2.64], R4", ("store", 64)),
        ("STL.128 [R1], R4", ("local", 1)),
        ("LDS.128 R4, [UR5]", ("shared", 1)),
        ("SHFL.BFLY PT, R3, R0, 0x10, 0x1f", ("shuffle", 1)),
        ("BAR.SYNC.DEFER_BLOCKING 0x0", ("barrier", 1)),
        ("ATOMG.E.MIN.64 PT, R2, [R2.64], R4", ("atomic", 1)),
        ("IMAD.WIDE.U32 R4, R9, 0x10, R2", ("wide product", 1)),
        ("IMAD.HI.U32 R4, R9, R3, RZ", ("wide product", 1)),
        ("IMAD.U32 R27, R12.reuse, 0x10000, RZ", ("other", 1)),
        ("FFMA.FTZ R4, R4, R5, R6", ("fma", 1)),
        ("FFMA R4, R4, UR5, -RZ", ("other", 1)),
        ("FFMA R4, R4, UR5, RZ", ("fma", 1)),
        ("FFMA2 R4, R4.F32x2.HI_LO, R5, R6", ("fma", 2)),
        ("HFMA2.MMA R0, -RZ, RZ, 0, 0", ("other", 1)),
        ("HFMA2.BF16_V2 R0, R4, R5, R6", ("fma", 2)),
        ("MUFU.RSQ R17, R12", ("special", 1)),
    ],
)
def test_what_an_instruction_of_nvidia_does(line: str, expected: tuple[str, int]) -> None:
    assert effect(kernel(line, "EXIT")[0]) == expected


AMD = """
\t.globl\tmade                               ; -- Begin function made
\t.type\tmade,@function
made:                                      ; @made
.Lfunc_begin0:
\t.cfi_startproc
\ts_load_dwordx4 s[4:7], s[0:1], 0x0
\tglobal_load_dwordx4 v[2:5], v[6:7], off
\ts_waitcnt vmcnt(0)
\tv_pk_fma_f32 v[2:3], v[2:3], s[4:5], v[4:5] op_sel_hi:[1,0,1]
\ts_and_saveexec_b64 s[0:1], vcc
\ts_cbranch_execz .LBB0_2
; %bb.1:                                ; %rare
\tglobal_atomic_smin_x2 v0, v[2:3], s[6:7]
.LBB0_2:
\ts_or_b64 exec, exec, s[0:1]
\tglobal_store_short_d16_hi v[6:7], v2, off
\tglobal_store_dwordx4 v[6:7], v[2:5], off sc0
\ts_endpgm
.Lfunc_end0:
\t.size\tmade, .Lfunc_end0-made
\tv_nop
"""


def test_a_kernel_of_amd() -> None:
    listing = amdgcn(AMD)["made"]
    assert len(listing) == 11
    found = measure(listing, RESOURCES, Tally(loads=1, stores=1, fma=2))
    assert (found.loads, found.stores, found.fma, found.atomics) == ({"128": 1}, {"128": 1, "16": 1}, 2, 0)
    assert found.instructions == 10


@pytest.mark.parametrize(
    ("opcode", "expected"),
    [
        ("global_load_dword", ("load", 32)),
        ("buffer_load_ushort", ("load", 16)),
        ("global_load_short_d16_hi", ("load", 16)),
        ("flat_store_dwordx2", ("store", 64)),
        ("s_load_dwordx8", ("other", 1)),
        ("scratch_store_dword", ("local", 1)),
        ("ds_bpermute_b32", ("shuffle", 1)),
        ("ds_write_b128", ("shared", 1)),
        ("v_fmac_f32_e32", ("fma", 1)),
        ("v_mad_u64_u32", ("wide product", 1)),
        ("v_sqrt_f32_e32", ("special", 1)),
    ],
)
def test_what_an_instruction_of_amd_does(opcode: str, expected: tuple[str, int]) -> None:
    assert effect(Instruction(opcode, "", ())) == expected
