"""The cache folder, and the quantized weights in it: a model is quantized once and mapped from then on.

A file is ordinary safetensors whose metadata begins with a checksum over all its other bytes. It is used only if that
checksum, the format, the source and every name, type and shape are right; otherwise it is built again.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from dlf.checkpoints.content_hash import MEMORY
from dlf.checkpoints.huge_pages import Place, leave
from dlf.checkpoints.precision import TensorLayout
from dlf.checkpoints.safetensors_file import write_safetensors
from dlf.checkpoints.tensor_file import PORTION_BYTES, PORTIONS, TensorFile, is_utf8
from dlf.errors import CheckpointError
from dlf.support.fields import read_json
from dlf.support.new_folder import abandoned_folders

__all__ = ["CachedWeights", "cache_bytes", "cache_folder", "clear_cache", "make_cache", "merged_labels"]

FORMAT = "1"  # raise it when tiles, scales or the way that they are chosen change
# The header always begins with these bytes, so the checksum's place is known. Zeros fill it until it is computed.
PREFIX = b'{"__metadata__":{"checksum":"'
CHECKSUM_AT, CHECKSUM_SIZE = 8 + len(PREFIX), 64
BLOCK = 4 << 20  # bytes that a thread hashes at once
NAME_DIGITS = 40
HASH = "[0-9a-f]" * NAME_DIGITS
ABANDONED = ".dlf-*.tmp"
ABANDONED_SECONDS = 24 * 3600
REMOTE = "remote-"  # folders of files that were fetched
MERGED, MANIFEST = "merged-", "dlf.json"  # folders of merged models, and the file in each that lists its content


def cache_folder() -> Path | None:
    """Return the folder in which quantized weights and merged models are kept, or None if they are not kept.

    It is ``$DLF_CACHE``, ``$XDG_CACHE_HOME/dlf`` or ``~/.cache/dlf``; ``DLF_CACHE=off`` means none.
    """
    chosen = os.environ.get("DLF_CACHE")
    if chosen == "off":
        return None
    if chosen:
        return Path(os.path.expanduser(chosen))
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # the XDG specification ignores a relative path
        base = os.path.expanduser("~/.cache")
    return Path(base) / "dlf" if os.path.isabs(base) else None


def make_cache(folder: Path) -> None:
    """Make the cache's folder.

    Raises
    ------
    OSError
        If it cannot be made, or files in it could not be read again.
    """
    if not is_utf8(folder):
        raise OSError(errno.EILSEQ, "its name is not UTF-8", os.fspath(folder))
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def cache_bytes(folder: Path) -> int:
    """Bytes that the cache takes."""
    return sum(path.stat().st_size for path in _files(folder))


def clear_cache(folder: Path) -> int:
    """Remove everything in the cache and return its size in bytes; what is mapped stays usable."""
    if not os.path.isdir(folder):
        return 0
    taken = cache_bytes(folder)
    for path in _files(folder):
        path.unlink(missing_ok=True)
    for path in [*_merged_folders(folder), *abandoned_folders(folder, f"{MERGED}*")]:
        shutil.rmtree(path, ignore_errors=True)
    return taken


def _merged_folders(folder: Path) -> list[Path]:
    """Return the folders of merged models."""
    there = os.path.isdir(folder)  # False also for a name at which glob would fail
    return sorted(path for path in folder.glob(MERGED + HASH) if os.path.isdir(path)) if there else []


def merged_labels(folder: Path) -> dict[Path, str]:
    """Return the name of each merged model, by folder."""
    found = {}
    for path in _merged_folders(folder):
        with contextlib.suppress(OSError, CheckpointError):
            found[path] = str(read_json(path / MANIFEST).get("label"))
    return found


def _files(folder: Path) -> list[Path]:
    """Files that dlf wrote; the folder may hold other things too, so the names are matched closely."""
    if not os.path.isdir(folder):
        return []
    patterns = [f"{HASH}-*.safetensors", ABANDONED, f"{MEMORY}/" + "[0-9a-f]" * 64, f"{MERGED}{HASH}/*"]
    patterns += [f"{REMOTE}{HASH}/*", f"{REMOTE}{HASH}/*/*"]
    return [path for pattern in patterns for path in folder.glob(pattern) if os.path.isfile(path)]


@dataclass(frozen=True)
class CachedWeights:
    """The cached weights of one checkpoint, quantized in one way.

    Parameters
    ----------
    folder
        The cache.
    source
        Hash of the checkpoint's content.
    width
        Name of the quantization.
    layout
        Tensors that the file must hold, and no others.
    """

    folder: Path
    source: str
    width: str
    layout: Mapping[str, TensorLayout]

    @property
    def path(self) -> Path:
        """The file, which may not exist."""
        return self.folder / f"{self.source[:NAME_DIGITS]}-{self.width}.safetensors"

    def load(self, place: Place = leave) -> dict[str, torch.Tensor] | None:
        """Map and `place` the tensors, or return None if no valid file exists; an invalid file is a warning."""
        if not os.path.exists(self.path):  # does not raise if the folder may not be searched
            return None
        try:
            wrong = self._complaint()
            if not wrong:
                return _map(self.path, place)
        except (OSError, CheckpointError) as error:
            wrong = str(error)
        warnings.warn(f"{self.path} {wrong}; quantizing again", RuntimeWarning, stacklevel=2)
        return None

    def store(self, tensors: Iterator[tuple[str, torch.Tensor]], place: Place = leave) -> dict[str, torch.Tensor]:
        """Write the tensors one by one, and return them mapped from the file and placed.

        The file gets its name when it is whole and on the disk. If several processes write it, the last one's stays,
        and the others keep what they have mapped.

        Raises
        ------
        OSError
            If the folder cannot be written or the disk is full.
        """
        make_cache(self.folder)
        self._remove_abandoned()
        descriptor, temporary = tempfile.mkstemp(dir=self.folder, prefix=".dlf-", suffix=".tmp")
        try:
            with open(descriptor, "r+b") as file:
                metadata = {"checksum": "0" * CHECKSUM_SIZE, **self._metadata()}
                write_safetensors(file, self.layout, metadata, tensors)
                file.flush()
                file.seek(CHECKSUM_AT)
                file.write(_checksum(temporary)[1].encode())
                file.flush()
                os.fsync(descriptor)
            mapped = _map(temporary, place)
            os.replace(temporary, self.path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        return mapped

    def _metadata(self) -> dict[str, str]:
        return {"dlf": FORMAT, "source": self.source, "width": self.width}

    def _complaint(self) -> str:
        """Say what is wrong with the file; empty if nothing is."""
        if not self.path.is_file():
            return "is no file"
        said, found = _checksum(self.path)
        if said != found:
            return "is damaged"
        with TensorFile(self.path) as file:
            if file.metadata != {"checksum": said, **self._metadata()}:
                return "is of another version or source"
            return "" if file.layout == self.layout else "holds other tensors"

    def _remove_abandoned(self) -> None:
        """Remove files that killed writers left."""
        for path in self.folder.glob(ABANDONED):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                    path.unlink()


def _map(path: str | os.PathLike[str], place: Place) -> dict[str, torch.Tensor]:
    """Map all tensors of a file and place them, a few at a time."""
    with TensorFile(Path(path), max(PORTION_BYTES, os.path.getsize(path) // PORTIONS)) as file:
        return {name: place(name, file.take(name)) for name in file.layout}


def _checksum(path: str | os.PathLike[str]) -> tuple[str, str]:
    """The checksum that a file states, and the true one of its other bytes: a hash of the hashes of its blocks.

    The file is read rather than mapped, so that its pages do not count as this process's memory.
    """
    with open(path, "rb") as file, ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        total = hashlib.sha256(file.read(CHECKSUM_AT))
        said = file.read(CHECKSUM_SIZE).decode("ascii", "replace")
        begins = range(CHECKSUM_AT + CHECKSUM_SIZE, os.fstat(file.fileno()).st_size, BLOCK)
        digest = partial(_block_digest, file.fileno())
        try:
            digests: Iterable[bytes] = pool.map(digest, begins)
        except RuntimeError:  # the system allows no more threads
            digests = map(digest, begins)
        for one in digests:
            total.update(one)
    return said, total.hexdigest()


def _block_digest(descriptor: int, begin: int) -> bytes:
    return hashlib.sha256(os.pread(descriptor, BLOCK, begin)).digest()
