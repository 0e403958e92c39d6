"""How kernels are launched: what they are compiled for, how often, and what a failing compilation says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    """What `tests.kernels.launches` prints, in a process that does not interpret its kernels."""
    command = [sys.executable, "-m", "tests.kernels.launches"]
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_what_is_compiled(report: dict[str, Any]) -> None:
    """Only what a call needs is an argument; what is not there, and how a sample is cut, are constants."""
    found = report["specialisation"]
    pointers = {"x": "*fp32", "out": "*bf16", "table": "*fp32", "row": "*i64", "key": "*i64"}
    assert found["types"] == {**pointers, "samples": "i32", "elements": "i32", "rows": "i32"}
    constants = found["constants"]
    assert constants["uncond"] is None and constants["x_stride"] is None
    assert constants["WIDTH"] == 8 and constants["EVEN"] is True and constants["row_per_sample"] is False


def test_what_sixteen_divides(report: dict[str, Any]) -> None:
    """The compiler is told where memory is aligned, and how long a sample is, or vectors would fall apart."""
    assert report["specialisation"]["divisible"] == ["x", "out", "table", "row", "key", "elements"]
    assert report["specialisation"]["divisible if odd"] == ["z", "key", "draw"]


def test_a_call_is_compiled_once(report: dict[str, Any]) -> None:
    """Other memory is no other kernel: neither is checked again, nor compiled again, and its addresses are passed."""
    calls = report["repeated"]
    assert calls["first"] == {"compilations": 1, "launches": 1, "right": True, "kept": 1}
    for name in ("again", "other memory"):
        assert calls[name] == {"compilations": 0, "launches": 1, "right": True, "kept": 1}


def test_what_changes_the_code_is_compiled_anew(report: dict[str, Any]) -> None:
    """Alignment, a row for each sample, and dtypes change it."""
    calls = report["repeated"]
    for name in ("misaligned", "other rows"):
        assert (calls[name]["compilations"], calls[name]["launches"], calls[name]["right"]) == (1, 1, True)


def test_memory_is_looked_at_in_every_call(report: dict[str, Any]) -> None:
    """A state that is the output is no launch to repeat for others, and a clash is refused in a call seen before."""
    calls = report["repeated"]
    assert calls["the state is the output"] == {"compilations": 1, "launches": 1, "right": True, "kept": 1}
    assert calls["float32"]["compilations"] == 0  # that one was compiled for it, and is kept from now on
    assert calls["clash"].startswith("x is written and shares memory with out other than element for element")
