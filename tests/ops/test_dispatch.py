"""Which backend runs, and what is said where it cannot."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import fastdiff as fd
from fastdiff.errors import BackendError, InputError
from fastdiff.ops import dispatch, native, reference
from tests.backends import needs_extension

CPU, META = torch.device("cpu"), torch.device("meta")


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
