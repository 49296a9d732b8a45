"""Reads a checkpoint's tensors from its safetensors files.

It reads only safetensors: a ``*.bin`` checkpoint is a pickle, and reading a pickle runs any code that its author put
there.
"""

from __future__ import annotations

import math
import os
import re
import sys
import warnings
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from dlf.checkpoints.config import ModelConfig, read_config
from dlf.checkpoints.hub import INDEX, SINGLE, index_of, resolve
from dlf.checkpoints.huge_pages import Place, leave
from dlf.checkpoints.precision import DTYPES, TensorLayout
from dlf.checkpoints.tensor_file import PORTION_BYTES, PORTIONS, TensorFile
from dlf.errors import CheckpointError
from dlf.support.terminal import printable

__all__ = [
    "check_finite",
    "checkpoint_config",
    "find_shards",
    "is_finite",
    "load_tensors",
    "open_checkpoint",
    "read_tensors",
]

PROGRESS_PARAMETERS = 1 << 29  # a GiB of bfloat16
SAFETENSORS_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# Buffers that older writers saved, and that follow from the configuration.
BUFFERS = re.compile(r"(?:.*\.)?(?:rotary_emb\.\w+|rope\.freqs|position_ids)")
COMPARED_BYTES = 8 << 20


def open_checkpoint(name: str | os.PathLike[str]) -> tuple[Path, ModelConfig]:
    """Return the folder of a checkpoint, fetched if it is on the hub, and its configuration.

    Raises
    ------
    FileNotFoundError, CheckpointError, MemoryError
        As `resolve` and `checkpoint_config`.
    """
    folder = resolve(name)
    return folder, checkpoint_config(folder)


def checkpoint_config(folder: Path) -> ModelConfig:
    """Read a checkpoint's configuration, and correct it where the weights say otherwise.

    A head in the files that differs from the embedding is used, whatever ``tie_word_embeddings`` says, and a missing
    ``dtype`` is that of the first floating-point tensor; ``transformers`` does both. Other tensors that the
    configuration does not ask for are a warning.

    Raises
    ------
    FileNotFoundError, CheckpointError
        As `read_config` and `find_shards`, and if the header of a file is damaged.
    MemoryError
        If there is too little memory to map a file.
    """
    config = read_config(folder)
    layouts = {}
    for path in _files(folder, config):
        with TensorFile(path) as file:
            layouts[path] = file.layout
    present = {name: path for path, layout in layouts.items() for name in layout}
    if config.dtype is None:
        config = replace(config, dtype=_first_dtype(layouts))
    if config.tie_word_embeddings and config.head in present and config.embedding in present:
        config = replace(config, tie_word_embeddings=_is_embedding(config, present))
    unused = [name for name in present.keys() - config.tensors().keys() if not BUFFERS.fullmatch(name)]
    unused = sorted(set(unused) - {config.head})
    if unused:
        some = ", ".join(f"{name!r:.80}" for name in unused[:3]) + (", ..." if len(unused) > 3 else "")
        warnings.warn(
            f"{folder} has {len(unused)} tensors that its config.json does not ask for and that are not used: {some}; "
            "check that config.json and weights are of one checkpoint",
            RuntimeWarning,
            stacklevel=2,
        )
    return config


def _files(folder: Path, config: ModelConfig) -> list[Path]:
    """Files with tensors that the configuration asks for, and further files that the index names."""
    needed = find_shards(folder, config.tensors())
    if folder / SINGLE in needed:
        return list(needed)
    index = index_of(folder)
    named = {folder / file for file in set(index.values())}
    return sorted({*needed, *(path for path in named if os.path.isfile(path) or path.name == index.get(config.head))})


def _first_dtype(layouts: Mapping[Path, Mapping[str, TensorLayout]]) -> str | None:
    dtypes = (SAFETENSORS_DTYPES.get(one.dtype) for layout in layouts.values() for one in layout.values())
    found = next((dtype for dtype in dtypes if dtype is not None), None)
    return found if found in DTYPES else None


def _is_embedding(config: ModelConfig, present: Mapping[str, Path]) -> bool:
    """Whether the head in the files is bit-identical to the embedding."""
    rows, hidden = shape = (config.spec.vocab_size, config.spec.hidden_size)
    with TensorFile(present[config.head]) as head_file, TensorFile(present[config.embedding]) as embedding_file:
        head = head_file.read(config.head, shape)
        embedding = embedding_file.read(config.embedding, shape)
        step = max(1, COMPARED_BYTES // (hidden * head.element_size()))
        return head.dtype == embedding.dtype and all(
            torch.equal(head[i : i + step].view(torch.uint8), embedding[i : i + step].view(torch.uint8))
            for i in range(0, rows, step)
        )


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
        Which of `ModelConfig.tensors` to read; all of them if not given.
    place
        Decides where each of them stays.
    by_row
        Tensors of which only single rows will be read. Checking them reads them whole; then they are mapped anew, so
        that memory holds only the rows that are used.

    Returns
    -------
    dict
        The tensors asked for; if these are all and the embedding is tied, the head is the same tensor.

    Raises
    ------
    FileNotFoundError
        If the folder has no safetensors file, or a shard of it is missing.
    CheckpointError
        If a file is damaged, or a tensor is missing, misshapen, not floating-point or not finite in `dtype`.
    """
    folder = Path(folder)
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"dtype must be torch.float32, torch.float16 or torch.bfloat16, not {dtype}")
    tensors: dict[str, torch.Tensor] = {}
    for file, name, tensor in read_tensors(folder, config, names, f"Loading {folder.name}"):
        tensors[name] = place(name, tensor.to(dtype))
        check_finite(tensors[name], name, file.path)
        if name in by_row and tensor.dtype == dtype:
            tensors[name] = file.read(name, tuple(tensor.shape), alone=True)
    if config.tie_word_embeddings and names is None:
        tensors[config.head] = tensors[config.embedding]
    return tensors


def read_tensors(
    folder: Path, config: ModelConfig, names: Collection[str] | None, task: str, keep: bool = True
) -> Iterator[tuple[TensorFile, str, torch.Tensor]]:
    """Yield the file, the name and the values of each tensor; the values are a view of the mapped file.

    A caller that does not `keep` the views holds less memory meanwhile. Large checkpoints get a progress bar that says
    `task`. Errors are those of `load_tensors`.
    """
    shapes = {name: shape for name, shape in config.tensors().items() if names is None or name in names}
    shards = find_shards(folder, shapes)
    total = sum(math.prod(shape) for shape in shapes.values())
    hidden = total < PROGRESS_PARAMETERS or not sys.stderr.isatty()
    with tqdm(total=total, desc=printable(task), unit="param", unit_scale=True, disable=hidden) as progress:
        for path, members in shards.items():
            portion = os.path.getsize(path) // PORTIONS if keep else 0
            with TensorFile(path, max(portion, PORTION_BYTES)) as file:
                for name in members:
                    yield file, name, file.read(name, shapes[name])
                    progress.update(math.prod(shapes[name]))


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether a floating-point tensor holds neither a NaN nor an infinity.

    The extremes are finite exactly if all values are: ``aminmax`` passes a NaN on. Finding them takes one
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


def find_shards(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[Path, list[str]]:
    """Names of the wanted tensors in each file.

    Raises
    ------
    FileNotFoundError, CheckpointError
        If the folder has no safetensors files, one is missing, or the index lacks a tensor.
    """
    if os.path.isfile(folder / SINGLE):
        return {folder / SINGLE: list(shapes)}
    if not os.path.lexists(folder / INDEX):
        if any(folder.glob("*.bin")) or any(folder.glob("*.pt*")):
            raise CheckpointError(
                f"{folder} has only pickled weights, which dlf does not open because they can run "
                "code; convert them to safetensors (transformers: model.save_pretrained(folder))"
            )
        adapter = os.path.isfile(folder / "adapter_config.json")
        raise FileNotFoundError(
            f"{folder} has neither {SINGLE} nor {INDEX}: "
            + ("it is an adapter, give it as dlf.Lora(base, adapter)" if adapter else "fetch the checkpoint again")
        )
    weight_map = index_of(folder)
    shards: defaultdict[Path, list[str]] = defaultdict(list)
    for name in shapes:
        if name not in weight_map:
            raise CheckpointError(
                f"{folder / INDEX} lists no tensor '{name}'; the checkpoint is incomplete, fetch it again"
            )
        path = folder / weight_map[name]
        if path not in shards and not os.path.isfile(path):
            raise FileNotFoundError(f"{path} is missing, though {INDEX} lists it; fetch the checkpoint again")
        shards[path].append(name)
    return dict(shards)
