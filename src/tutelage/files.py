"""Writing files so that a reader finds the old content or the new, never a part: a temporary name in the same folder, fsync, rename."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, BinaryIO

from tutelage.errors import TutelageError


def atomic_write(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Write `data` (text as UTF-8) to `path`, making its folder where needed. On any failure the file keeps its old content.

    Raises `TutelageError`, naming the file, where the disk is full, the folder cannot be written, and the like.
    """
    with atomic_open(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


@contextmanager
def atomic_open(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A binary file to write into, which takes the name `path` once the block ends without an exception."""
    target = Path(path).resolve()  # a link keeps pointing to its file
    temporary = _temporary(target)
    with _honest(path):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
    _sync_folder(target.parent)


@contextmanager
def atomic_dir(path: str | os.PathLike[str]) -> Iterator[Path]:
    """An empty folder to fill, which takes the name `path` once the block ends without an exception.

    `path` must not exist yet, or be an empty folder: whole folders cannot be exchanged in one step, so nothing is ever overwritten.
    """
    target = Path(path).resolve()
    temporary = _temporary(target)
    with _honest(path):
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise TutelageError(f"{path} exists already and is not overwritten. Choose another name, or move it away.")
        try:
            temporary.mkdir(parents=True)
            yield temporary
            for folder, _, names in os.walk(temporary):
                for name in names:
                    _sync_file(os.path.join(folder, name))
                _sync_folder(Path(folder))
            os.replace(temporary, target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    _sync_folder(target.parent)


def open_lines(path: str | os.PathLike[str]) -> tuple[BinaryIO, int]:
    """A file of lines to append to, made where there is none, and how many bytes were cut off its end.

    A half line at the end, left by a run that was killed, would spoil the next one, and is cut off. Raises `OSError`.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    file = target.open("a+b")
    try:
        end = _end_of_last_line(file)
        cut = file.seek(0, os.SEEK_END) - end
        file.truncate(end)
    except BaseException:
        file.close()
        raise
    return file, cut


def _end_of_last_line(file: BinaryIO) -> int:
    """The size of a file without the half line at its end."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - 65536)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _temporary(target: Path) -> Path:
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")


@contextmanager
def _honest(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns an `OSError` into the library's error, which names the file and says what state it is in."""
    try:
        yield
    except OSError as error:
        cause = error.strerror or str(error)
        if error.filename is not None and ".tmp" not in str(error.filename):  # another file, such as one being copied from
            cause += f" ({error.filename})"
        hint = " Free some space and try again." if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise TutelageError(
            f"Cannot write {path}: {cause}.{hint} What stood there before is unchanged, and nothing half-written is left."
        ) from error


def _sync_file(path: str) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a power cut, where the system can sync folders; the rename itself is done."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
