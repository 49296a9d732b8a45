"""Merges the experts of an engine, and keeps the merged models in the cache.

A merged model is an ordinary checkpoint: it is mapped, quantized and cached like any other. Its folder is named by the
hash of everything that it was made of. It is used only if every file still has the content that was written; otherwise
it is merged again.
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
from pathlib import Path

from dlf.adapters.adapter import AdapterFile
from dlf.checkpoints.content_hash import file_hash, sha256
from dlf.checkpoints.source import open_checkpoint
from dlf.checkpoints.weight_cache import MANIFEST, MERGED, NAME_DIGITS, cache_folder, make_cache
from dlf.errors import CheckpointError
from dlf.experts.expert import Expert
from dlf.experts.kinds import AnyExpert, WholeExpert
from dlf.experts.lora import Lora
from dlf.experts.task_arithmetic import TaskArithmetic
from dlf.merging.fold import Fold
from dlf.merging.merge import Merge
from dlf.support.fields import read_json
from dlf.support.new_folder import locked_folder, new_folder

__all__ = ["merged_experts"]

# Fields that an expert and its merged form share.
SAME = ("weights", "template", "base_template", "alpha", "alpha_max", "mix")
FORMAT = "1"  # raise it when the result of a merge changes


@contextlib.contextmanager
def merged_experts(experts: Sequence[AnyExpert]) -> Iterator[list[WholeExpert]]:
    """Yield the experts, with a merged model in place of each one that is to be merged.

    Models that are not kept in the cache are removed when the block ends; what was mapped from them stays usable.
    """
    with contextlib.ExitStack() as temporary:
        yield [_whole(expert, temporary) for expert in experts]


def _whole(expert: AnyExpert, temporary: contextlib.ExitStack) -> WholeExpert:
    merge: Merge | Fold
    if isinstance(expert, TaskArithmetic):
        merge = expert.open()
    elif isinstance(expert, Lora) and expert.merge:
        assert expert.base is not None
        merge = Fold(open_checkpoint(expert.base), AdapterFile(expert.adapter))
    else:
        return expert
    same = {name: getattr(expert, name) for name in SAME}
    return Expert(_merged(merge, expert.label, temporary), expert.base, expert.label, **same)


def _merged(merge: Merge | Fold, label: str, temporary: contextlib.ExitStack) -> Path:
    cache = cache_folder()
    if cache is None:
        merge.check()
    else:
        folder = cache / (MERGED + _key(merge, cache)[:NAME_DIGITS])
        if _is_whole(folder, cache):
            return folder
        merge.check()
        try:
            make_cache(cache)
            return _keep(merge, label, folder)
        except OSError as error:
            warnings.warn(
                f"the merged expert '{label}' cannot be kept in {cache} ({error.strerror or error}); going on "
                "without. Set DLF_CACHE to another folder, or to 'off'",
                RuntimeWarning,
                stacklevel=2,
            )
    folder = temporary.enter_context(locked_folder(Path(tempfile.gettempdir()), f"dlf-{os.getuid()}", 0o700))
    merge.write(folder)
    return folder


def _keep(merge: Merge | Fold, label: str, folder: Path) -> Path:
    try:
        with new_folder(folder) as temporary:
            merge.write(temporary)
            files = sorted(path for path in temporary.rglob("*") if path.is_file())
            hashes = {str(file.relative_to(temporary)): sha256(file) for file in files}
            (temporary / MANIFEST).write_text(json.dumps({"label": label, "files": hashes}), "utf-8")
    except FileExistsError:  # another process was faster
        if not _is_whole(folder, folder.parent):
            raise
    return folder


def _key(merge: Merge | Fold, cache: Path) -> str:
    """Hash of everything that the merged folder, or its validity, depends on."""
    text = json.dumps([FORMAT, *merge.identity(cache)])
    return hashlib.sha256(text.encode()).hexdigest()


def _is_whole(folder: Path, cache: Path) -> bool:
    """Whether a merged folder exists with all that was written; a damaged one is removed, with a warning."""
    if not os.path.exists(folder):  # does not raise if the cache may not be searched
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
