"""`fastdiff export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastdiff import checkpoint as checkpoints
from fastdiff.cli import values
from fastdiff.errors import lookup


def export(
    run: Annotated[str, typer.Argument(help="Run or checkpoint folder.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; it is replaced.")],
    dtype: Annotated[
        str, typer.Option(help="What the weights are stored in: float32, bfloat16 or float16.")
    ] = "float32",
) -> None:
    """Copy a run's newest checkpoint without what only training needs."""
    stored_as = lookup("dtype", dtype, values.DTYPES)
    folder = checkpoints.find(run)
    training = checkpoints.read_config(folder).get("training")
    loaded = checkpoints.load(folder)
    loaded.model.to(stored_as)
    checkpoints.save(out, loaded, training)
    typer.echo(f"wrote    {out}")
