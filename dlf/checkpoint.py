"""Finds a checkpoint and reads its tensors from safetensors files.

Only safetensors: a ``*.bin`` checkpoint is a pickle, and reading a pickle runs whatever code its author put there.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from dlf.config import ModelConfig
from dlf.errors import CheckpointError
from dlf.fields import read_json
from dlf.huge_pages import Place, leave

__all__ = [
    "check_finite",
    "expected_tensors",
    "find_shards",
    "is_finite",
    "load_tensors",
    "read_tensor",
    "read_tensors",
    "resolve",
]

MAX_INDEX_BYTES = 64 << 20
PROGRESS_PARAMETERS = 1 << 29  # a GiB of bfloat16
PORTIONS = 16
FILE_DTYPES = ("F64", "F32", "F16", "BF16")
SMALL_FILES = ["*.json", "*.jinja"]
HUB_FILES = ["*.safetensors", *SMALL_FILES]
HUB_ID = re.compile(r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*", re.ASCII)


def resolve(name_or_path: str | os.PathLike[str], weights: bool = True) -> Path:
    """Return the folder of a checkpoint, fetching it where a hub id is given.

    Parameters
    ----------
    name_or_path
        An existing folder, or ``"organisation/name"`` on the Hugging Face hub, of which only safetensors, JSON and
        Jinja files are fetched, into the hub's own cache.
    weights
        Whether the weights are fetched too.

    Raises
    ------
    FileNotFoundError
        If there is neither such a folder nor such a checkpoint, or the hub cannot be reached.
    """
    path = Path(os.path.expanduser(name_or_path))  # which leaves a user that is not there as it is
    if path.is_dir():
        return path
    if path.is_file():
        raise FileNotFoundError(f"{path} is a file: give the folder it lies in")
    if not isinstance(name_or_path, str) or not HUB_ID.fullmatch(name_or_path):
        raise FileNotFoundError(f"no folder {str(path)!r}: give a checkpoint's folder or a hub id, 'organisation/name'")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name_or_path, allow_patterns=HUB_FILES if weights else SMALL_FILES))
    except Exception as error:  # the client has dozens of kinds, those of its HTTP library among them
        raise FileNotFoundError(
            f"no folder {name_or_path!r}, and fetching it from the hub failed ({type(error).__name__}: {error}); "
            "check the spelling, the connection and, for a gated checkpoint, HF_TOKEN"
        ) from error


def expected_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a checkpoint of this configuration must have.

    Weights of linear layers are ``[out, in]``. ``lm_head.weight`` is expected unless the embedding is tied to it.
    """
    hidden, inner = config.hidden_size, config.intermediate_size
    query = config.num_attention_heads * config.head_dim
    key_value = config.num_key_value_heads * config.head_dim
    linears = {  # name: (out, in, bias)
        "self_attn.q_proj": (query, hidden, config.attention_bias),
        "self_attn.k_proj": (key_value, hidden, config.attention_bias),
        "self_attn.v_proj": (key_value, hidden, config.attention_bias),
        "self_attn.o_proj": (hidden, query, config.output_bias),
        "mlp.gate_proj": (inner, hidden, config.mlp_bias),
        "mlp.up_proj": (inner, hidden, config.mlp_bias),
        "mlp.down_proj": (hidden, inner, config.mlp_bias),
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, hidden)}
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        shapes[prefix + "input_layernorm.weight"] = (hidden,)
        for name, (rows, columns, bias) in linears.items():
            shapes[f"{prefix}{name}.weight"] = (rows, columns)
            if bias:
                shapes[f"{prefix}{name}.bias"] = (rows,)
        if config.qk_norm:
            shapes[prefix + "self_attn.q_norm.weight"] = (config.head_dim,)
            shapes[prefix + "self_attn.k_norm.weight"] = (config.head_dim,)
        shapes[prefix + "post_attention_layernorm.weight"] = (hidden,)
    shapes["model.norm.weight"] = (hidden,)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    return shapes


def load_tensors(
    folder: Path,
    config: ModelConfig,
    dtype: torch.dtype,
    names: Collection[str] | None = None,
    place: Place = leave,
    by_row: Collection[str] = (),
) -> dict[str, torch.Tensor]:
    """Read a checkpoint's tensors as `dtype`.

    A tensor that has this dtype in the file, and that `place` leaves there, is a view of the mapped file: it costs no
    memory of its own and is shared by all processes that load it, and the file must not be changed while it is in use.
    Others are converted one by one.

    Parameters
    ----------
    folder, config
        The checkpoint.
    dtype
        ``torch.float32``, ``torch.float16`` or ``torch.bfloat16``.
    names
        Which of the tensors of `expected_tensors` to read; all of them if not given.
    place
        Where each of them is to stay.
    by_row
        Those of which only single rows will be read. Checking them has touched them whole; they are mapped anew, so
        that memory holds only the rows that are used.

    Returns
    -------
    dict
        The tensors asked for; where all are and the embedding is tied, ``lm_head.weight`` is that same tensor.

    Raises
    ------
    FileNotFoundError
        If the folder has no safetensors file, or a shard of it is missing.
    CheckpointError
        If a file is damaged, or a tensor is missing, misshapen, no floating-point numbers or not finite in `dtype`.
    """
    folder = Path(folder)
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"dtype must be torch.float32, torch.float16 or torch.bfloat16, not {dtype}")
    tensors: dict[str, torch.Tensor] = {}
    for path, name, tensor in read_tensors(folder, config, names, f"Loading {folder.name}"):
        tensors[name] = place(name, tensor.to(dtype))
        check_finite(tensors[name], name, path)
        if name in by_row and tensor.dtype == dtype:
            with _open(path) as file:
                tensors[name] = _read_tensor(file, name, tuple(tensor.shape), path)
    if config.tie_word_embeddings and names is None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    return tensors


def read_tensors(
    folder: Path, config: ModelConfig, names: Collection[str] | None, task: str, one_by_one: bool = False
) -> Iterator[tuple[Path, str, torch.Tensor]]:
    """Yield the file, the name and the values of each tensor, which are a view of the mapped file.

    Every file is opened several times, for some of its tensors each time, or for a single one with `one_by_one`:
    closing it gives back the pages of those tensors that nobody kept, so that loading in another type never holds a
    whole file beside its copy. Large checkpoints get a progress bar that says `task`. Errors are those of
    `load_tensors`.
    """
    shapes = {name: shape for name, shape in expected_tensors(config).items() if names is None or name in names}
    shards = find_shards(folder, shapes)
    total = sum(math.prod(shape) for shape in shapes.values())
    hidden = total < PROGRESS_PARAMETERS or not sys.stderr.isatty()
    with tqdm(total=total, desc=task, unit="param", unit_scale=True, disable=hidden) as progress:
        for path, members in shards.items():
            size = 1 if one_by_one else -(-len(members) // PORTIONS)
            for first in range(0, len(members), size):
                with _open(path) as file:
                    for name in members[first : first + size]:
                        yield path, name, _read_tensor(file, name, shapes[name], path)
                        progress.update(math.prod(shapes[name]))


def read_tensor(path: Path, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """One tensor of a file, as a view of it: its pages are given back with it. Errors are those of `load_tensors`."""
    with _open(path) as file:
        return _read_tensor(file, name, shape, path)


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether a floating-point tensor holds neither a NaN nor an infinity.

    The extremes are finite exactly where all values are, a NaN being passed on, and finding them takes one
    multi-threaded pass and no temporary, unlike ``torch.isfinite``.
    """
    low, high = torch.aminmax(tensor)
    return bool(torch.isfinite(low) & torch.isfinite(high))


def check_finite(tensor: torch.Tensor, name: str, path: Path) -> None:
    """Raise CheckpointError if a floating-point tensor holds a NaN or an infinity."""
    if not is_finite(tensor):
        raise CheckpointError(
            f"{path}: tensor '{name}' has values that are not finite in {tensor.dtype}; "
            "load it as bfloat16 or float32, or fetch it again"
        )


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError, RuntimeError) as error:
        raise CheckpointError(f"{path} is damaged or cannot be read ({error}); fetch it again") from error


def _read_tensor(file: Any, name: str, shape: tuple[int, ...], path: Path) -> torch.Tensor:
    """One tensor of an open file, its header checked before its values are touched."""
    if name not in file.keys():  # noqa: SIM118 (no mapping)
        raise CheckpointError(
            f"{path} has no tensor '{name}': the checkpoint is incomplete, or of another architecture than its "
            "config.json says; fetch it again"
        )
    header = file.get_slice(name)
    if header.get_dtype() not in FILE_DTYPES:
        raise CheckpointError(
            f"{path}: tensor '{name}' holds {header.get_dtype()}, not floating-point numbers of one "
            f"of {', '.join(FILE_DTYPES)}; use a checkpoint that is not quantized"
        )
    if tuple(header.get_shape()) != shape:
        raise CheckpointError(
            f"{path}: tensor '{name}' has shape {header.get_shape()}, but config.json asks for "
            f"{list(shape)}; config.json and weights are of different checkpoints"
        )
    try:
        tensor: torch.Tensor = file.get_tensor(name)
    except (SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"{path}: tensor '{name}' cannot be read ({error}); fetch it again") from error
    # Writers pad the header so that numbers lie on their natural borders, but the format doesn't ask for it.
    return tensor.clone() if tensor.data_ptr() % tensor.element_size() else tensor


def find_shards(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[Path, list[str]]:
    """Which file holds which of the wanted tensors."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return {single: list(shapes)}
    if not index.is_file():
        if any(folder.glob("*.bin")) or any(folder.glob("*.pt*")):
            raise CheckpointError(
                f"{folder} has only pickled weights, which dlf does not open because they can run "
                "code; convert them to safetensors (transformers: model.save_pretrained(folder))"
            )
        raise FileNotFoundError(f"{folder} has neither {single.name} nor {index.name}; fetch the checkpoint again")
    weight_map = read_json(index, MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{index} has no 'weight_map' object; fetch the checkpoint again")
    shards: defaultdict[Path, list[str]] = defaultdict(list)
    for name in shapes:
        shard = weight_map.get(name)
        if shard is None:
            raise CheckpointError(f"{index} lists no tensor '{name}'; the checkpoint is incomplete, fetch it again")
        # A plain name only: an index must not lead out of its folder.
        if not isinstance(shard, str) or not re.fullmatch(r"[\w.-]+\.safetensors", shard):
            raise CheckpointError(
                f"{index}: tensor '{name}' is said to lie in {shard!r:.80}, which is no plain "
                "name of a safetensors file in the folder"
            )
        path = folder / shard
        if path not in shards and not path.is_file():
            raise FileNotFoundError(f"{path} is missing, though {index.name} lists it; fetch the checkpoint again")
        shards[path].append(name)
    return dict(shards)
