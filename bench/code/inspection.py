"""Compile, disassemble and measure the kernels of the cases."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Any

from fastdiff.bench.code import toolchain
from fastdiff.bench.code.cases import Case, cases
from fastdiff.bench.code.cuda_kernels import SOURCES, CudaKernel, flags, kernel_of
from fastdiff.bench.code.measure import measure
from fastdiff.bench.code.path import Tally
from fastdiff.bench.code.record import Entry, Record
from fastdiff.bench.code.toolchain import Kernel
from fastdiff.errors import BackendError, InputError, lookup
from fastdiff.ops.triton import FILES


def inspect(backends: Sequence[str], targets: Sequence[str], parts: Sequence[str]) -> Record:
    """Inspect the cases whose name holds one of `parts`, on these backends and targets; no targets are all of them.

    Raises:
        InputError: a name is unknown.
        BackendError: a compiler is missing.
    """
    for name in backends:
        lookup("backend", name, _BACKENDS)
    for target in targets:
        lookup("target", target, dict.fromkeys(toolchain.TARGETS["triton"]))
    chosen = [case for case in cases() if any(part in case.name for part in parts)]
    if not chosen:
        raise InputError(f"no case has one of {list(parts)} in its name; one is {cases()[0].name!r}")
    entries: list[Entry] = []
    for name in backends:
        entries += _BACKENDS[name](
            chosen, [known for known in toolchain.TARGETS[name] if known in (targets or [known])]
        )
    return Record({name: toolchain.version(name) for name in backends}, tuple(entries))


def triton(chosen: Sequence[Case], targets: Sequence[str]) -> Iterator[Entry]:
    """Yield an entry for each Triton kernel that a case launches and each target.

    Raises:
        BackendError: Triton is missing, or interprets.
    """
    toolchain.check_triton()
    for case in chosen:
        for target in targets:
            for k, launch in enumerate(launches(case, toolchain.threads_of_warp(target))):
                yield _triton_entry(case, launch, target, first=k == 0)


def launches(case: Case, lanes: int) -> list[Any]:
    """Return what the op of a case launches where a warp has so many threads.

    Each kernel comes once, as it is launched last, and nothing is executed.
    """
    module: Any = import_module(f"fastdiff.kernels.{FILES[case.op]}")
    recorded: list[Any] = []

    def call(make: Callable[..., Any], *arguments: Any) -> bool:
        recorded.append(make(*arguments))
        return True

    with ExitStack() as stack:
        stack.enter_context(_warps_of(lanes))
        for name, function in (("run", recorded.append), ("call", call)):
            if hasattr(module, name):
                stack.enter_context(_replaced(module, name, function))
        getattr(module, case.op)(*case.arguments())
    return list({launch.kernel: launch for launch in recorded}.values())


@contextmanager
def _warps_of(lanes: int) -> Iterator[None]:
    """Cut samples into blocks as where a warp has so many threads."""
    operands: Any = import_module("fastdiff.kernels.operands")
    cached = [function for function in vars(operands).values() if hasattr(function, "cache_clear")]
    with _replaced(operands, "LANES", lanes):
        for function in cached:
            function.cache_clear()
        yield
    for function in cached:
        function.cache_clear()


@contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    kept = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, kept)


def _triton_entry(case: Case, launch: Any, target: str, first: bool) -> Entry:
    kernel = toolchain.compile_triton(launch, target)
    threads = toolchain.threads_of_warp(target) * kernel.warps
    elements = max(launch.arguments.get("BLOCK", 0) // threads, 1)
    work = case.work if first else None
    wanted = work.tally(elements) if work else Tally()
    return Entry(
        case=case.name,
        backend="triton",
        target=target,
        kernel=launch.kernel.__name__,
        dtype=case.dtype,
        normals=case.normals,
        elements=elements,
        measure=measure(kernel.listing, kernel.resources, wanted),
        work=work,
    )


def cuda(chosen: Sequence[Case], targets: Sequence[str]) -> Iterator[Entry]:
    """Yield an entry for the first CUDA kernel that each case launches and each target.

    Raises:
        BackendError: nvcc is missing, or a kernel is.
    """
    for target in targets:
        compiled: dict[str, dict[str, Kernel]] = {}
        for case in chosen:
            wanted = kernel_of(case)
            if wanted.source not in compiled:
                path = SOURCES / "cuda" / wanted.source
                compiled[wanted.source] = toolchain.compile_cuda(path, target, flags())
            yield _cuda_entry(case, target, wanted, compiled[wanted.source])


def _cuda_entry(case: Case, target: str, wanted: CudaKernel, compiled: Mapping[str, Kernel]) -> Entry:
    names = [name for name in compiled if re.search(wanted.name, name)]
    if len(names) != 1:
        raise BackendError(f"{case.name}: {len(names)} kernels of {wanted.source} match {wanted.name}")
    kernel = compiled[names[0]]
    return Entry(
        case=case.name,
        backend="cuda",
        target=target,
        kernel=names[0],
        dtype=case.dtype,
        normals=case.normals,
        elements=wanted.vector * wanted.turns,
        measure=measure(kernel.listing, kernel.resources, case.work.tally(wanted.vector), wanted.turns),
        work=case.work,
    )


_BACKENDS: dict[str, Callable[[Sequence[Case], Sequence[str]], Iterator[Entry]]] = {"triton": triton, "cuda": cuda}
