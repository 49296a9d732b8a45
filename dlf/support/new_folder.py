"""Writes a folder that appears whole or not at all.

Its files are written to a hidden folder beside it, which is locked meanwhile and renamed when all is on the disk. A
hidden folder that is not locked was left by a killed writer; the next writer removes it.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

__all__ = ["abandoned_folders", "check_new", "locked_folder", "new_folder"]


def check_new(path: str | os.PathLike[str]) -> Path:
    """Return the path of a new folder, links resolved.

    Raises
    ------
    FileExistsError
        If anything but an empty folder is there.
    """
    place = Path(os.path.realpath(os.path.expanduser(path)))
    if place.is_dir():
        if any(place.iterdir()):
            raise FileExistsError(f"{place} is a folder that is not empty; remove it or choose another")
    elif place.exists():
        raise FileExistsError(f"{place} is a file; choose a folder that is empty or not there yet")
    return place


@contextlib.contextmanager
def new_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a folder to write to, which becomes `path` if the block succeeds and is removed if it fails.

    Raises
    ------
    FileExistsError
        If anything but an empty folder is at `path`, before or after the block.
    OSError
        If the folder cannot be written.
    """
    place = check_new(path)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with locked_folder(place.parent, place.name) as temporary:
            yield temporary
            for file in temporary.rglob("*"):
                _sync(file)
            _sync(temporary)
            try:
                os.rename(temporary, place)  # allowed onto an empty folder, not onto any other
            except OSError:
                check_new(place)
                raise
            _sync(place.parent)
    except OSError as error:
        if error.errno is not None and error.filename is None:  # a full disk
            error.filename = os.fspath(place)
        raise


@contextlib.contextmanager
def locked_folder(parent: Path, name: str, mode: int = 0o777) -> Iterator[Path]:
    """Yield a hidden folder in `parent`, and remove it at the end unless it was renamed.

    Folders that killed writers of the same `name` left are removed first.
    """
    for path in abandoned_folders(parent, glob.escape(name)):
        shutil.rmtree(path, ignore_errors=True)
    path, lock = _claim(parent, name, mode)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def abandoned_folders(parent: Path, name: str) -> Iterator[Path]:
    """Yield the hidden folders for the pattern `name` whose writers are gone, each locked meanwhile."""
    for path in parent.glob(f".{name}-{'[0-9a-f]' * 16}.tmp"):
        with contextlib.suppress(OSError):
            lock = _lock(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                yield path
            finally:
                os.close(lock)


def _claim(parent: Path, name: str, mode: int) -> tuple[Path, int | None]:
    """Make a hidden folder and lock it."""
    while True:
        path = parent / f".{name}-{secrets.token_hex(8)}.tmp"
        path.mkdir(mode)
        try:
            lock = _lock(path, fcntl.LOCK_EX)
        except FileNotFoundError:
            continue
        except OSError:  # a file system without locks: no folder counts as abandoned there
            return path, None
        # Before it was locked, another process may have locked and removed it.
        if path.is_dir():
            return path, lock
        os.close(lock)


def _lock(path: Path, how: int) -> int:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, how)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
