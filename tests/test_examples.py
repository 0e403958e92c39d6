"""Every example runs, and writes a picture."""

import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(example, tmp_path, monkeypatch, capsys):
    """As its first line says, with a picture that is not of one colour."""
    out = tmp_path / "picture.png"
    monkeypatch.setattr(sys, "argv", [str(example), "--out", str(out)])
    runpy.run_path(str(example), run_name="__main__")
    assert capsys.readouterr().out.startswith(f"wrote {out}")
    with Image.open(out) as picture:
        assert picture.format == "PNG" and picture.convert("L").getextrema() == (0, 255)
