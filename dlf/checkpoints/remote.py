"""Files at addresses of fsspec, such as s3://, gs:// and https://: fetched once for each machine, into the cache."""

from __future__ import annotations

import fcntl
import fnmatch
import glob
import hashlib
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dlf.checkpoints.weight_cache import REMOTE, cache_folder, make_cache
from dlf.errors import CheckpointError
from dlf.support.whole_file import whole_file

__all__ = ["fetch_file", "fetch_folder", "file_system", "is_url"]

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://.+", re.ASCII)
MAX_FILES = 1 << 16
AT_ONCE = 8 << 20  # bytes
LOCK = ".lock"


def is_url(name: object) -> bool:
    """Whether a name is an address of fsspec."""
    return isinstance(name, str) and URL.fullmatch(name) is not None


def file_system(url: str) -> tuple[Any, str]:
    """Return the file system of an address, and the path in it.

    Raises
    ------
    ImportError
        If a package for its kind is missing; the message names it.
    FileNotFoundError
        If there is no such kind.
    """
    import fsspec

    try:
        found, path = fsspec.core.url_to_fs(url)
    except ValueError as error:
        raise FileNotFoundError(f"{url:.300}: {error}") from error
    return found, str(path)


def fetch_file(url: str, most_bytes: int | None = None) -> Path:
    """Return a copy of a file on this machine; a file:// is itself.

    Parameters
    ----------
    url
        Its address.
    most_bytes
        Most bytes that it may have; None for as many as the disk has free.

    Raises
    ------
    FileNotFoundError
        If there is no such file, or it cannot be read.
    CheckpointError
        If it is too large.
    OSError
        If there is no cache, or no room in it.
    """
    folder, _, name = url.rpartition("/")
    return fetch_folder(folder, [glob.escape(name)], most_bytes, [name]) / name


def fetch_folder(url: str, patterns: Sequence[str], most_bytes: int | None = None, needed: Sequence[str] = ()) -> Path:
    """Return a folder on this machine with the files of a remote one whose names match patterns.

    The folder is that of the files' present versions. What it has already is not fetched again, and processes that want
    the same wait for each other.

    Parameters
    ----------
    url
        Address of the folder.
    patterns
        Names of files, which may have wildcards and a folder.
    most_bytes
        Most bytes of a file; None for as many as the disk has free.
    needed
        Names that must be there.

    Raises
    ------
    FileNotFoundError, CheckpointError, OSError
        As `fetch_file`.
    """
    url = url.rstrip("/")
    system, root = file_system(url)
    if "file" in (system.protocol if isinstance(system.protocol, tuple) else (system.protocol,)):
        return Path(root)
    files = _files(system, root, url, needed)
    wanted = {name: info for name, info in files.items() if any(fnmatch.fnmatchcase(name, one) for one in patterns)}
    for name, info in wanted.items():
        if most_bytes is not None and info["size"] > most_bytes:
            raise CheckpointError(f"{url}/{name} is larger than {most_bytes >> 20} MiB, more than any valid file")
    folder = _place(system, root, url, wanted if needed else files)
    with _locked(folder):
        missing = {name: info for name, info in wanted.items() if not (folder / name).exists()}
        size = sum(info["size"] for info in missing.values())
        if size > shutil.disk_usage(folder).free:
            raise OSError(f"{url} has {size >> 20} MiB, and the cache at {folder.parent} has less room; free some")
        for name, info in missing.items():
            _fetch(system, f"{root}/{name}", folder / name, info["size"], f"{url}/{name}")
    return folder


def _files(system: Any, root: str, url: str, needed: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """Files of a folder and those directly below, by path in it; only `needed` ones, if any."""
    try:
        if needed:
            return {name: system.info(f"{root}/{name}") for name in needed}
        found = system.find(root, maxdepth=2, detail=True)
    except Exception as error:  # clients raise errors of their own
        raise FileNotFoundError(f"{url} cannot be read ({type(error).__name__}: {error!s:.300})") from error
    if not found or len(found) > MAX_FILES:
        raise FileNotFoundError(f"{url} has {len(found)} files; give the folder of a checkpoint")
    prefix = system._strip_protocol(root).rstrip("/") + "/"
    names = {system._strip_protocol(path).removeprefix(prefix): info for path, info in found.items()}
    return {name: info for name, info in names.items() if ".." not in name.split("/") and not name.startswith("/")}


def _place(system: Any, root: str, url: str, files: Mapping[str, Any]) -> Path:
    """The folder in the cache of these versions of files."""
    cache = cache_folder()
    if cache is None:
        raise OSError(f"{url} is fetched into the cache, which DLF_CACHE turns off; set it to a folder")
    make_cache(cache)
    versions = [(name, str(system.ukey(f"{root}/{name}")), files[name]["size"]) for name in sorted(files)]
    found = cache / (REMOTE + hashlib.sha256(repr((url, versions)).encode()).hexdigest()[:40])
    found.mkdir(mode=0o700, exist_ok=True)
    return found


def _fetch(system: Any, path: str, place: Path, size: int, url: str) -> None:
    """Fetch a file of so many bytes, which appears whole or not at all."""
    place.parent.mkdir(exist_ok=True)
    left = size
    with system.open(path, "rb") as source, whole_file(place) as file:
        while chunk := source.read(min(AT_ONCE, left + 1)):
            left -= len(chunk)
            if left < 0:
                break
            file.write(chunk)
        if left:
            raise CheckpointError(f"{url} changed while it was fetched; try again")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with open(folder / LOCK, "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
