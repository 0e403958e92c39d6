"""Which backend runs, and what is said where it cannot."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import fastdiff as fd
from fastdiff.errors import BackendError, InputError
from fastdiff.ops import dispatch, native, reference, triton
from tests.backends import needs_extension

CPU, META, GPU = torch.device("cpu"), torch.device("meta"), torch.device("cuda")


@needs_extension
def test_the_extension_is_here() -> None:
    """Where it was not asked to be left out, the extension was built and loads."""
    assert native.missing() is None
    assert fd.info().instruction_set in native.INSTRUCTION_SETS


@needs_extension
def test_auto_picks_the_kernels_where_they_can_run() -> None:
    """The C++ kernels for float32 states on the CPU, plain torch for the rest."""
    assert dispatch.resolve("auto", CPU) == "cpu"
    assert dispatch.resolve("auto", CPU, torch.float64) == "eager"
    assert dispatch.resolve("auto", META) == "eager"
    assert dispatch.backend("auto", CPU) is native.ops
    assert dispatch.backend("eager", CPU) is reference


def test_auto_without_the_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extension, "auto" is plain torch, and naming it is an error."""
    monkeypatch.setattr(native, "missing", lambda: "not built")
    monkeypatch.setitem(dispatch._REASONS, "cpu", lambda: "not built")
    assert dispatch.resolve("auto", CPU) == "eager"
    with pytest.raises(BackendError, match="backend 'cpu' is not available: not built"):
        dispatch.resolve("cpu", CPU)


@pytest.mark.parametrize(
    ("missing", "chosen"), [((), "triton"), (("triton",), "cuda"), (("triton", "cuda"), "eager"), (("cuda",), "triton")]
)
def test_auto_on_gpus(monkeypatch: pytest.MonkeyPatch, missing: tuple[str, ...], chosen: str) -> None:
    """Triton where it is, else CUDA C++, else plain torch; float64 states are plain torch's alone."""
    for name in ("triton", "cuda"):
        monkeypatch.setitem(dispatch._REASONS, name, lambda name=name: "not here" if name in missing else None)
    assert dispatch.resolve("auto", GPU) == chosen
    assert dispatch.resolve("auto", GPU, torch.float64) == "eager"
    assert all(callable(getattr(dispatch.backend("auto", GPU), name)) for name in vars(native.ops))


def test_triton_runs_on_the_cpu_where_it_is_interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernels need a GPU but for tests; it is never chosen by itself on a CPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert dispatch.resolve("triton", CPU) == "triton"
    assert dispatch.resolve("auto", CPU) != "triton"
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(BackendError, match="backend 'triton' is not available: torch sees no GPU"):
        dispatch.resolve("triton", CPU)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert dispatch.resolve("triton", GPU) == "triton"
    with pytest.raises(BackendError, match="it cannot run on cpu"):
        dispatch.resolve("triton", CPU)


def test_triton_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason says how to get it."""
    monkeypatch.setattr(triton, "_installed", lambda: False)
    with pytest.raises(BackendError, match="pip install 'fastdiff-sampler\\[triton\\]'"):
        dispatch.resolve("triton", GPU)


def test_op_of_a_backend_that_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The op that names Triton, called on the CPU where nothing interprets it, says so in one line."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    triton._function.cache_clear()
    with pytest.raises(BackendError, match="torch sees no GPU"):
        triton.ops.normal_(torch.zeros(1, 4), torch.zeros(2, 1, dtype=torch.int64), torch.zeros(1).long(), 0)


@needs_extension
@pytest.mark.parametrize(
    ("device", "dtype", "message"),
    [
        (CPU, torch.float64, "its state is float32, not float64; use backend='eager'"),
        (META, torch.float32, "it cannot run on meta; use backend='eager'"),
    ],
)
def test_kernels_that_do_not_fit_are_refused(device: torch.device, dtype: torch.dtype, message: str) -> None:
    """Naming the C++ kernels for what they cannot do is an error that says what can."""
    with pytest.raises(BackendError, match=message):
        dispatch.resolve("cpu", device, dtype)


def test_unknown_backend() -> None:
    """An unknown name is refused with the nearest known one."""
    with pytest.raises(InputError, match="did you mean 'eager'"):
        dispatch.resolve("eagre", CPU)


def test_backends_have_the_same_functions() -> None:
    """Every op has a reference of that name."""
    assert all(callable(getattr(reference, name)) for name in vars(native.ops))


def test_extension_that_was_not_built(tmp_path: Path) -> None:
    """The reason names the ways to be without it and how to get it; a wheel's other files are not taken for it."""
    (tmp_path / "_C.pyi").touch()
    assert native.find(tmp_path) is None
    reason = native.load(None)
    assert reason is not None and "FASTDIFF_NO_EXT" in reason and "compiler" in reason and "\n" not in reason


def test_extension_that_does_not_load(tmp_path: Path) -> None:
    """A damaged file is named with the loader's own reason, in one line."""
    (tmp_path / "_C.abi3.so").write_text("no ELF")
    path = native.find(tmp_path)
    assert path == tmp_path / "_C.abi3.so"
    reason = native.load(path)
    assert reason is not None and "_C.abi3.so" in reason and "\n" not in reason
