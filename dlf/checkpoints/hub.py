"""Finds a checkpoint or an adapter; fetches only the files that are read, from the Hugging Face hub or an address."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path

from dlf.checkpoints.remote import fetch_file, fetch_folder, is_url
from dlf.errors import CheckpointError
from dlf.support.fields import read_json
from dlf.text.chat_template import TEMPLATES

__all__ = [
    "GGUF",
    "HUB_ID",
    "INDEX",
    "SINGLE",
    "TOKENIZER_FILES",
    "index_of",
    "label_of",
    "resolve",
    "resolve_adapter",
]

HUB_ID = re.compile(r"([A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*)(?:@((?!\S*\.\.)[\w.-]+(?:/[\w.-]+)*))?", re.ASCII)
GGUF = ".gguf"
HUB_FILE = re.compile(rf"({HUB_ID.pattern}):([\w-][\w.-]*(?:/[\w-][\w.-]*)*\{GGUF})", re.ASCII)
SPLIT = re.compile(rf"(.+)-\d{{5}}-of-(\d{{5}})\{GGUF}")
MAX_INDEX_BYTES = 64 << 20
MAX_SHARDS = 4096
PATTERNS = 200  # given to the hub's client at once; with more it compiles each anew for every file
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZER_FILES = (
    "tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json vocab.json merges.txt "
    "tokenizer.model chat_template.jinja chat_template.json"
).split()
ADAPTER_FILES = ["adapter_config.json", "adapter_model.safetensors"]
SMALL_FILES = [
    "config.json",
    "generation_config.json",
    *TOKENIZER_FILES,
    f"{TEMPLATES}/*.jinja",
    ADAPTER_FILES[0],  # its presence shows that it is an adapter
]


def resolve(name_or_path: str | os.PathLike[str], weights: bool = True) -> Path:
    """Return the folder or the GGUF file of a checkpoint, fetching it if a hub id is given.

    Parameters
    ----------
    name_or_path
        An existing folder or file, or ``"organisation/name"`` or ``"organisation/name@revision"`` on the Hugging Face
        hub. Only the files that are read are fetched, into the hub's own cache: the configuration, the tokenizer, and
        ``model.safetensors`` or else the files that its index names. With ``":file.gguf"`` behind it, it is this file,
        or all parts of it. An address of fsspec, such as ``"s3://bucket/name"`` or ``"s3://bucket/name.gguf"``, is
        fetched into dlf's cache.
    weights
        Whether the weights are fetched too.

    Raises
    ------
    FileNotFoundError
        If there is neither such a folder or file nor such a checkpoint, or the hub cannot be reached.
    CheckpointError
        If the index of its weights is damaged.
    """
    if is_url(name_or_path):
        return _fetch_address(str(name_or_path), weights)
    path = Path(os.path.expanduser(name_or_path))
    if path.suffix == GGUF and os.path.isfile(path):
        return path
    match = HUB_FILE.fullmatch(name_or_path) if isinstance(name_or_path, str) else None
    if match:
        return _fetch_file(match[2], match[3], match[4])
    found = _folder(name_or_path)
    if isinstance(found, Path):
        return found
    folder = _fetch(*found, [*SMALL_FILES, SINGLE, INDEX] if weights else SMALL_FILES)
    if weights and not os.path.isfile(folder / SINGLE) and os.path.isfile(folder / INDEX):
        # The folder's name is the commit, so a push between the two fetches cannot mix two versions.
        files = sorted(set(index_of(folder).values()))
        for first in range(0, len(files), PATTERNS):
            _fetch(found[0], folder.name, files[first : first + PATTERNS])
    return folder


def resolve_adapter(name_or_path: str | os.PathLike[str]) -> Path:
    """Return the folder of an adapter, as `resolve` does for a checkpoint; fetches two files."""
    if is_url(name_or_path):
        return fetch_folder(str(name_or_path), ADAPTER_FILES)
    found = _folder(name_or_path)
    return found if isinstance(found, Path) else _fetch(*found, ADAPTER_FILES)


def index_of(folder: Path) -> dict[str, str]:
    """File of each tensor, from the index of a checkpoint in several files.

    Raises
    ------
    FileNotFoundError
        If the folder has no index.
    CheckpointError
        If it is damaged, names too many files, or one that is not in the folder itself.
    """
    path = folder / INDEX
    weight_map = read_json(path, MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{path} has no 'weight_map' object; fetch the checkpoint again")
    plain: set[str] = set()
    for name, shard in weight_map.items():
        if isinstance(shard, str) and shard in plain:
            continue
        # A plain name only: an index must not lead out of its folder.
        if not isinstance(shard, str) or not re.fullmatch(r"[\w.-]{1,243}\.safetensors", shard):
            raise CheckpointError(
                f"{path}: tensor {name!r:.120} is said to lie in {shard!r:.80}, which is no plain "
                "name of a safetensors file in the folder; fetch the checkpoint again"
            )
        plain.add(shard)
        if len(plain) > MAX_SHARDS:
            raise CheckpointError(f"{path} names over {MAX_SHARDS} files, more than any valid index; fetch it again")
    return weight_map


def label_of(name_or_path: str | os.PathLike[str]) -> str:
    """Name of a model for people: the last part of its path, or a hub id's name and revision."""
    name = os.fspath(name_or_path)
    if name.endswith(GGUF):
        file = HUB_FILE.fullmatch(name)
        return os.path.basename(file[4] if file else name).removesuffix(GGUF)
    match = HUB_ID.fullmatch(name)
    if match and match[2]:
        return name.split("/", 1)[1]
    return os.path.basename(os.path.normpath(name))


def _folder(name_or_path: str | os.PathLike[str]) -> Path | tuple[str, str | None]:
    """An existing folder, or the repository and the revision of a hub id."""
    path = Path(os.path.expanduser(name_or_path))  # leaves the ~name of an unknown user as it is
    # Unlike the methods of Path, these two return False for what cannot be looked at, such as a name that is too long.
    if os.path.isdir(path):
        return path
    if os.path.isfile(path):
        raise FileNotFoundError(f"{path} is a file: give the folder it lies in, or a file in GGUF format")
    match = HUB_ID.fullmatch(name_or_path) if isinstance(name_or_path, str) else None
    if not match:
        raise FileNotFoundError(
            f"no folder {str(path)!r:.300}: give a checkpoint's folder, a GGUF file or a hub id, 'organisation/name', "
            "'organisation/name@revision' or 'organisation/name:file.gguf'"
        )
    return match[1], match[2]


def _fetch_address(url: str, weights: bool) -> Path:
    """Fetch a GGUF file with those that it continues in, or a folder."""
    if url.endswith(GGUF):
        folder, _, name = url.rpartition("/")
        split = SPLIT.fullmatch(name)
        if not split:
            return fetch_file(url)
        return fetch_folder(folder, [f"{glob.escape(split[1])}-?????-of-{split[2]}{GGUF}"]) / name
    found = fetch_folder(url, [*SMALL_FILES, SINGLE, INDEX] if weights else SMALL_FILES)
    if weights and not os.path.isfile(found / SINGLE) and os.path.isfile(found / INDEX):
        found = fetch_folder(url, [*SMALL_FILES, INDEX, *sorted(set(index_of(found).values()))])
    return found


def _fetch_file(repository: str, revision: str | None, file: str) -> Path:
    """Fetch a file, and those that it continues in."""
    split = SPLIT.fullmatch(file)
    folder = _fetch(repository, revision, [f"{split[1]}-?????-of-{split[2]}{GGUF}" if split else file])
    if not os.path.isfile(folder / file):
        raise FileNotFoundError(f"{repository} has no file {file!r} on the hub; check the spelling")
    return folder / file


def _fetch(repository: str, revision: str | None, files: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        # Names without a folder match at the top of the repository only.
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(files)))
    except Exception as error:  # the client raises dozens of kinds, among them its HTTP library's
        name = repository if revision is None else f"{repository}@{revision}"
        raise FileNotFoundError(
            f"no folder {name!r}, and fetching it from the hub failed ({type(error).__name__}: {error}); "
            "check the spelling, the connection and, for a gated checkpoint, HF_TOKEN"
        ) from error
