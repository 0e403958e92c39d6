"""The command line: a file for each command. A mistake costs one line, no traceback."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

import typer

from fastdiff import system
from fastdiff.cli.benchmark import bench
from fastdiff.cli.evaluation import evaluate
from fastdiff.cli.exporting import export
from fastdiff.cli.sampling import sample
from fastdiff.cli.training import train
from fastdiff.errors import FastdiffError

UsageError: Any = typer.BadParameter.__base__  # typer exports this subclass alone

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help="A fast diffusion sampler.")
app.command(epilog="Example: fastdiff sample --steps 10 --guidance 2 --out samples.png")(sample)
app.command(epilog="Example: fastdiff train --data digits --out runs/digits")(train)
app.command("eval", epilog="Example: fastdiff eval runs/digits --bpd --count 32")(evaluate)
app.command(epilog="Example: fastdiff export runs/digits my-checkpoint")(export)
app.command(epilog="Example: fastdiff bench --cases ddim,ddpm --shapes 16x3x64x64 --out speed.json")(bench)


@app.command(epilog="Example: fastdiff info")
def info() -> None:
    """Show versions, devices and backends, and why one is missing."""
    typer.echo(system.info())


def main() -> None:
    """Run the command line; end with one line on any error that a user can act on, status 2 for wrong usage, else 1."""
    try:
        sys.exit(app(sys.argv[1:] or ["--help"], standalone_mode=False))
    except UsageError as error:
        _fail(f"{error.format_message().rstrip('.')}; see --help", status=2)
    except (FastdiffError, OSError) as error:
        _fail(str(error))
    except typer.Abort:
        _fail("stopped")
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        _fail("not enough memory: ask for fewer samples, a smaller batch or fewer levels")


def _fail(message: str, status: int = 1) -> NoReturn:
    sys.stderr.write(f"error: {' '.join(message.split())}\n")
    sys.exit(status)
