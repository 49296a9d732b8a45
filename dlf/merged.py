"""Merges the experts of an engine, and keeps the merged models in the cache.

A merged model is an ordinary checkpoint, so mapping it, quantizing it and keeping what was quantized is what it is for
any other. Its folder has the name of all that it was made of. It is believed only if every file still has the content
that was written; anything else is merged again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from dlf.content_hash import content_hash, file_hash, sha256
from dlf.errors import CheckpointError
from dlf.experts import Expert, InContext
from dlf.fields import read_json
from dlf.merge import Merge
from dlf.new_folder import locked_folder, new_folder
from dlf.task_arithmetic import TaskArithmetic
from dlf.weight_cache import MANIFEST, MERGED, NAME_DIGITS, cache_folder

__all__ = ["merged_experts"]

FORMAT = "1"  # to be raised when the result of a merge changes


@contextlib.contextmanager
def merged_experts(
    experts: Sequence[Expert | InContext | TaskArithmetic],
) -> Iterator[list[Expert | InContext]]:
    """Give the experts with a merged model in place of each recipe; models that are not kept go when the block ends.

    What has been mapped from them stays usable.
    """
    with contextlib.ExitStack() as temporary:
        yield [
            Expert(
                _merged(expert, temporary),
                expert.base,
                expert.label,
                expert.weights,
                expert.template,
                expert.base_template,
                expert.alpha,
                expert.alpha_max,
            )
            if isinstance(expert, TaskArithmetic)
            else expert
            for expert in experts
        ]


def _merged(expert: TaskArithmetic, temporary: contextlib.ExitStack) -> Path:
    merge = expert.open()
    cache = cache_folder()
    if cache is None:
        merge.check()
    else:
        folder = cache / (MERGED + _key(merge, cache)[:NAME_DIGITS])
        if _is_whole(folder, cache):
            return folder
        merge.check()
        try:
            cache.mkdir(mode=0o700, parents=True, exist_ok=True)
            return _keep(merge, expert.label, folder)
        except OSError as error:
            warnings.warn(
                f"the merged expert '{expert.label}' cannot be kept in {cache} ({error.strerror or error}); going on "
                "without. Set DLF_CACHE to another folder, or to 'off'",
                RuntimeWarning,
                stacklevel=2,
            )
    folder = temporary.enter_context(locked_folder(Path(tempfile.gettempdir()), f"dlf-{os.getuid()}", 0o700))
    merge.write(folder)
    return folder


def _keep(merge: Merge, label: str, folder: Path) -> Path:
    try:
        with new_folder(folder) as temporary:
            merge.write(temporary)
            hashes = {file.name: sha256(file) for file in sorted(temporary.iterdir())}
            (temporary / MANIFEST).write_text(json.dumps({"label": label, "files": hashes}), "utf-8")
    except FileExistsError:  # another process was faster
        if not _is_whole(folder, folder.parent):
            raise
    return folder


def _key(merge: Merge, cache: Path) -> str:
    """Hash of everything that the merged folder, or whether there may be one, depends on."""
    parts = []
    for source in (merge.base, *merge.experts):
        small = {name: sha256(path) for name, path in source.small_files().items()}
        parts.append([content_hash(source.shards, cache), small])
    text = json.dumps([FORMAT, parts, asdict(merge.recipe), str(merge.dtype)])
    return hashlib.sha256(text.encode()).hexdigest()


def _is_whole(folder: Path, cache: Path) -> bool:
    """Whether a merged folder is there with all that was written; one that is damaged is removed, with a warning."""
    if not os.path.exists(folder):  # which a cache that may not be searched doesn't make raise
        return False
    try:
        files = read_json(folder / MANIFEST).get("files")
        if isinstance(files, dict) and all(file_hash(folder / name, cache) == files[name] for name in files):
            return True
    except (OSError, CheckpointError):
        pass
    warnings.warn(f"{folder} is damaged; merging again", RuntimeWarning, stacklevel=2)
    shutil.rmtree(folder, ignore_errors=True)
    return False
