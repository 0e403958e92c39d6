"""Files and folders that appear whole or not at all, whatever fails on the way."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdiff import files

FULL = OSError(errno.ENOSPC, "No space left on device")
Writer = Callable[[Path], AbstractContextManager[Path]]


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def fill(target: Path, text: str) -> None:
    """Write text into a temporary file, or into a file of a temporary folder."""
    (target / "content" if target.is_dir() else target).write_text(text)


def content(target: Path) -> str:
    return (target / "content" if target.is_dir() else target).read_text()


@pytest.fixture(params=[files.replacing, files.new_folder], ids=["file", "folder"])
def write(request: pytest.FixtureRequest) -> Writer:
    """Either way to write something whole."""
    writer: Writer = request.param
    return writer


@pytest.fixture
def umask() -> Iterator[None]:
    """A umask that is not the usual one."""
    before = os.umask(0o027)
    yield
    os.umask(before)


def test_content_appears_under_its_name_and_alone(write: Writer, tmp_path: Path) -> None:
    """The target has the content, folders above it are made, and nothing temporary stays."""
    target = tmp_path / "made" / "here" / "target.png"
    with write(target) as temporary:
        assert temporary.parent == target.parent
        assert not target.exists()
        fill(temporary, "new")
    assert content(target) == "new"
    assert [path.name for path in target.parent.iterdir()] == ["target.png"]


def test_what_was_there_is_replaced(write: Writer, tmp_path: Path) -> None:
    """The old content goes entirely; in a folder also the files that the new one does not have."""
    target = tmp_path / "target"
    with write(target) as temporary:
        fill(temporary, "old")
        if temporary.is_dir():
            (temporary / "other").touch()
    with write(target) as temporary:
        fill(temporary, "new")
        assert content(target) == "old"
    assert content(target) == "new"
    assert names(tmp_path) in (["target"], ["target", "target/content"])


@pytest.mark.parametrize("error", [FULL, ValueError("wrong"), KeyboardInterrupt()], ids=["full", "error", "interrupt"])
@pytest.mark.parametrize("existing", [False, True], ids=["new", "old"])
def test_failing_block_changes_nothing(write: Writer, tmp_path: Path, error: BaseException, existing: bool) -> None:
    """Half-written content is deleted, what was there stays, and the error is passed on."""
    target = tmp_path / "target"
    if existing:
        with write(target) as temporary:
            fill(temporary, "old")
    before = names(tmp_path)

    def interrupted() -> None:
        with write(target) as temporary:
            fill(temporary, "half of the n")
            raise error

    with pytest.raises(type(error)) as raised:
        interrupted()
    assert raised.value is error
    assert names(tmp_path) == before
    assert not existing or content(target) == "old"


def test_disk_that_is_full_when_flushed_changes_nothing(
    write: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A delayed write that fails only in fsync leaves the old content, because fsync comes before the rename."""
    target = tmp_path / "target"
    with write(target) as temporary:
        fill(temporary, "old")
    before = names(tmp_path)

    def full(handle: int) -> None:
        raise FULL

    def flushed() -> None:
        with write(target) as temporary:
            fill(temporary, "new")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        flushed()
    assert content(target) == "old"
    assert names(tmp_path) == before


def test_every_file_is_flushed_before_it_gets_its_name(
    write: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power cut the name cannot stand for bytes that never reached the disk."""
    target, flushed = tmp_path / "target", []

    def fsync(handle: int) -> None:
        flushed.append((os.fstat(handle).st_ino, target.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    with write(target) as temporary:
        fill(temporary, "new")
    file = target / "content" if target.is_dir() else target
    assert (file.stat().st_ino, False) in flushed


def test_folder_survives_when_the_new_one_cannot_take_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the last rename fails, the folder that was moved out of the way comes back."""
    target = tmp_path / "target"
    with files.new_folder(target) as temporary:
        fill(temporary, "old")
    rename = Path.replace

    def replace(self: Path, to: Path) -> Path:
        if Path(to) == target and content(self) == "new":
            raise FULL
        return rename(self, to)

    def written() -> None:
        with files.new_folder(target) as temporary:
            fill(temporary, "new")

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(OSError, match="No space"):
        written()
    assert names(tmp_path) == ["target", "target/content"]
    assert content(target) == "old"


@pytest.mark.usefixtures("umask")
def test_permissions_follow_the_umask(write: Writer, tmp_path: Path) -> None:
    """A temporary file is private (0600); the finished one has what open() or mkdir() would have given it."""
    for _ in range(2):  # also where something is replaced
        with write(tmp_path / "target") as temporary:
            fill(temporary, "text")
            for path in temporary.rglob("*"):
                path.chmod(0o600)  # as some libraries write them
    modes = [oct(stat.S_IMODE(path.stat().st_mode)) for path in sorted(tmp_path.rglob("*"))]
    assert modes in ([oct(0o640)], [oct(0o750), oct(0o640)])
    asked = os.umask(0o027)
    assert asked == 0o027, "reading the umask must not change it"


def test_folder_that_cannot_be_made_is_an_os_error(write: Writer, tmp_path: Path) -> None:
    """A file where a folder should be is reported, and stays."""
    (tmp_path / "file").write_text("mine")

    def written() -> None:
        with write(tmp_path / "file" / "target"):
            pytest.fail("there is nowhere to write")

    with pytest.raises(OSError, match="file"):
        written()
    assert (tmp_path / "file").read_text() == "mine"
    assert names(tmp_path) == ["file"]


@settings(deadline=None, max_examples=10)
@given(texts=st.lists(st.text(max_size=50), min_size=1, max_size=2))
def test_write_text_keeps_every_character(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    """Any text, empty or with newlines of any kind, is what the file then holds, and the last write wins."""
    file = tmp_path_factory.mktemp("text") / "file.json"
    for text in texts:
        files.write_text(file, text)
    assert file.read_bytes() == texts[-1].encode()
    assert names(file.parent) == ["file.json"]
