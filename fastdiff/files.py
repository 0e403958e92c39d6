"""Files and folders that appear whole or not at all: written under a temporary name, then renamed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fastdiff.errors import InputError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its name if the block succeeds and is deleted if not.

    The folder is made if it is missing. Raises OSError as the block or the file system does.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _publish(temporary)
        temporary.replace(path)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path` that takes its name if the block succeeds and is deleted if not.

    A folder that already has the name `path` is replaced. Raises OSError as the block or the file system does.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        yield temporary
        for file in temporary.iterdir():
            _publish(file)
        temporary.chmod(0o777 & ~_umask())
        with tempfile.TemporaryDirectory(prefix=f".{path.name}-old-", dir=path.parent) as aside:
            old = Path(aside, path.name)
            if path.exists():
                path.replace(old)
            try:
                temporary.replace(path)
            except OSError:
                if old.exists():
                    old.replace(path)
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_folder(path: Path) -> None:
    """Raise InputError if a folder cannot be made or written to, as far as can be told without making it."""
    nearest = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    if not nearest.is_dir():
        raise InputError(f"{path} cannot be a folder, {nearest} is a file: choose another place")
    if not os.access(nearest, os.W_OK):
        raise InputError(f"{path} cannot be written to, {nearest} is not yours to write: choose another place")


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text)


def _publish(file: Path) -> None:
    """Give a file its usual permissions, and make its bytes durable, so that a rename never outlives its content."""
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
    file.chmod(0o666 & ~_umask())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
