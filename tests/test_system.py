"""What `fastdiff.info()` says of a machine."""

from __future__ import annotations

import importlib.metadata
import platform

import pytest
import torch

import fastdiff as fd
from fastdiff import system
from fastdiff.errors import BackendError
from fastdiff.ops import dispatch

BACKENDS = {"eager", "cpu", "triton", "cuda"}


def test_every_backend_is_listed_with_the_reason_why_it_is_missing() -> None:
    """The plain backend always runs; each other is available (None) or says in one line why not."""
    backends = fd.info().backends
    assert set(backends) == BACKENDS
    assert backends["eager"] is None
    for reason in backends.values():
        assert reason is None or (reason.strip() and "\n" not in reason)


@pytest.mark.parametrize("name", sorted(BACKENDS))
def test_info_and_the_ops_agree(name: str) -> None:
    """A backend that info lists as available can be named; a missing one is refused with the reason that info gives."""
    reason = fd.info().backends[name]
    on_gpu = name in ("triton", "cuda") and torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    if reason is None:
        assert dispatch.resolve(name, device) == name
        return
    with pytest.raises(BackendError) as raised:
        dispatch.resolve(name, device)
    assert reason in str(raised.value)


def test_info_prints_everything_it_holds(capsys: pytest.CaptureFixture[str]) -> None:
    """Versions, devices and backends each stand in the text with their value."""
    info = fd.info()
    print(info)
    lines = capsys.readouterr().out.splitlines()
    assert (info.versions["torch"], info.versions["python"]) == (torch.__version__, platform.python_version())
    for name, version in info.versions.items():
        assert f"  {name:<18}{version or 'not installed'}" in lines
    for name, reason in info.backends.items():
        available = f"available ({info.instruction_set})" if name == "cpu" else "available"
        assert f"  {name:<18}{reason or available}" in lines
    assert (info.instruction_set is None) == (info.backends["cpu"] is not None)
    for device in info.devices:
        assert f"  {device}" in lines
    assert info.devices[0].startswith("cpu")
    assert len(info.devices) == 1 + torch.cuda.device_count()
    assert repr(info) == str(info)


def test_library_that_is_not_installed_is_shown_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    """Missing libraries do not break `info`."""

    def version(name: str) -> str:
        if name == "diffusers":
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.2.3"

    monkeypatch.setattr(importlib.metadata, "version", version)
    info = system.info()
    assert (info.versions["diffusers"], info.versions["torch"]) == (None, "1.2.3")
    assert f"  {'diffusers':<18}not installed" in str(info).splitlines()
