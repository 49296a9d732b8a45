"""Merges checkpoints tensor by tensor into a folder in Hugging Face format."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from dlf.checkpoints.checkpoint import (
    PROGRESS_PARAMETERS,
    check_finite,
    find_shards,
    is_finite,
    open_checkpoint,
)
from dlf.checkpoints.config import ModelConfig
from dlf.checkpoints.content_hash import content_hash, sha256
from dlf.checkpoints.hub import TOKENIZER_FILES, additional_templates
from dlf.checkpoints.precision import TensorLayout
from dlf.checkpoints.safetensors_file import write_safetensors
from dlf.checkpoints.tensor_file import PORTION_BYTES, TensorFile
from dlf.errors import CheckpointError, out_of_memory_is_memory_error
from dlf.merging.methods import Recipe, merge_tensor
from dlf.support.fields import read_json
from dlf.support.terminal import printable
from dlf.text.same_tokenizer import check_same_tokenizer, warn_of_added_tokens
from dlf.text.tokenizer import MAX_TOKENIZER_BYTES, Tokenizer

__all__ = ["Merge", "Source", "write_checkpoint"]

MAX_SHARD_BYTES = 5 * 10**9  # the default of transformers for years
DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
CONFIGURATION = ("config.json", "generation_config.json")
SMALL_FILES = [*CONFIGURATION, *TOKENIZER_FILES]


class Source:
    """A checkpoint whose tensors are read in any order.

    Parameters
    ----------
    name
        Folder or hub id.

    Raises
    ------
    FileNotFoundError, CheckpointError
        If it is no usable checkpoint.
    """

    def __init__(self, name: str | os.PathLike[str]) -> None:
        self.name = os.fspath(name)
        self.folder, self.config = open_checkpoint(name)
        self.shapes = self.config.tensors()
        self.shards = find_shards(self.folder, self.shapes)
        self._path = {tensor: path for path, tensors in self.shards.items() for tensor in tensors}
        self._files: dict[Path, TensorFile] = {}
        self._read_bytes = 0

    def small_files(self) -> dict[str, Path]:
        """Files of `SMALL_FILES`, and additional templates, that the checkpoint has, by their path in it."""
        places = [*(self.folder / name for name in SMALL_FILES), *additional_templates(self.folder)]
        found = {str(path.relative_to(self.folder)): path for path in places if os.path.isfile(path)}
        for path in found.values():
            if os.path.getsize(path) > MAX_TOKENIZER_BYTES:
                raise CheckpointError(
                    f"{path} is larger than {MAX_TOKENIZER_BYTES >> 20} MiB, more than any valid file of its kind"
                )
        return found

    def identity(self, cache: Path) -> list[Any]:
        """Hashes of everything that is read of this checkpoint."""
        small = {name: sha256(path) for name, path in self.small_files().items()}
        return [content_hash(self.shards, cache), small]

    def dtype(self, tensor: str) -> str:
        """Type of one tensor in its file, as safetensors calls it."""
        name = self._own(tensor)
        return self._file(name).header(name, self.shapes[name]).dtype

    def read_finite(self, tensor: str) -> torch.Tensor:
        """Return a tensor as a view of its file, if its values are finite. A tied head is the embedding."""
        name = self._own(tensor)
        if self._read_bytes > PORTION_BYTES:
            self.close()
        values = self._file(name).read(name, self.shapes[name])
        self._read_bytes += values.nbytes
        check_finite(values, name, self._path[name])
        return values

    def close(self) -> None:
        """End the mappings of the files; they can be read again."""
        for file in self._files.values():
            file.close()
        self._read_bytes = 0

    def _own(self, tensor: str) -> str:
        return self.config.embedding if tensor == self.config.head and self.config.tie_word_embeddings else tensor

    def _file(self, tensor: str) -> TensorFile:
        path = self._path[tensor]
        if path not in self._files:
            self._files[path] = TensorFile(path)
        return self._files[path]


@dataclass(frozen=True)
class Merge:
    """Models to merge, and how.

    Parameters
    ----------
    base, experts
        The models, the experts in the order of the recipe's weights.
    recipe
        Method and numbers of the merge.
    dtype
        Type of the result; that of the base's tensors if not given.
    """

    base: Source
    experts: Sequence[Source]
    recipe: Recipe
    dtype: torch.dtype | None = None

    def check(self) -> None:
        """Check that the models have the same shapes and tokens; no weights are read.

        Raises
        ------
        CheckpointError
            Naming the key of ``config.json`` that differs, and both values.
        TokenizerMismatchError
            If two models give one token id different meanings. Added tokens that only have another name are a warning:
            a merge adds up rows of embeddings by id, whatever their names, and keeps those of the base.
        """
        tokenizer = _tokenizer(self.base)
        differing = []
        for expert in self.experts:
            _check_same_shapes(self.base, expert)
            other = _tokenizer(expert)
            if tokenizer is not None and other is not None:
                size = self.base.config.vocab_size
                found = check_same_tokenizer(tokenizer, other, self.base.name, expert.name, size)
                differing.append((self.base.name, expert.name, found))
        warn_of_added_tokens(differing, "Rows of embeddings merge by id; the merged model has the base's names.")

    def write(self, folder: Path) -> None:
        """Write the merged checkpoint into an empty folder: weights, configuration, and the base's tokenizer.

        If the base has no tokenizer, it is that of the first expert with one. Memory holds one tensor of each model at
        a time. Large models get a progress bar.

        Raises
        ------
        CheckpointError
            If a model's file is damaged, or a tensor is missing, misshapen or not finite.
        ValueError
            If the result is not finite.
        OSError
            If the folder cannot be written or the disk is full.
        """
        count = len(self.experts)
        write_checkpoint(
            self.base,
            folder,
            self._tensors,
            f"Merging {count} expert{'s' if count > 1 else ''}",
            self.dtype,
            self.experts,
        )

    def identity(self, cache: Path) -> list[Any]:
        """Everything that the result depends on."""
        sources = [source.identity(cache) for source in (self.base, *self.experts)]
        return [sources, asdict(self.recipe), str(self.dtype)]

    def _tensors(self, names: list[str]) -> Iterator[tuple[str, torch.Tensor]]:
        for name in names:
            base = self.base.read_finite(name)
            experts = (expert.read_finite(name) for expert in self.experts)
            merged = merge_tensor(self.recipe, name, base, experts, self.dtype)
            if not is_finite(merged):
                raise ValueError(
                    f"merging makes values of tensor '{name}' that {str(merged.dtype).removeprefix('torch.')} cannot "
                    "hold; choose smaller weights, or dtype='float32'"
                )
            yield name, merged


def write_checkpoint(
    base: Source,
    folder: Path,
    tensors: Callable[[list[str]], Iterator[tuple[str, torch.Tensor]]],
    task: str,
    dtype: torch.dtype | None = None,
    others: Sequence[Source] = (),
) -> None:
    """Write a checkpoint that has a base's shapes into an empty folder: weights, configuration, tokenizer.

    Parameters
    ----------
    base
        Model that gives the configuration and the tokenizer.
    folder
        The empty folder.
    tensors
        Yields the tensors of these names, one after the other.
    task
        Text of the progress bar, which large models get.
    dtype
        Type of the tensors; the base's if not given.
    others
        Further models that go into it. If one has a head of its own, the result has one too, even if the base's is
        tied. If the base has no tokenizer, they give it.

    Raises
    ------
    OSError
        If the folder cannot be written or the disk is full.
    MemoryError
        If memory runs out.
    """
    shapes, head = dict(base.shapes), base.config.head
    for other in others:
        shapes |= {head: other.shapes[head]} if head in other.shapes else {}
    _write_config(base, folder, dtype, tied=head not in shapes)
    files = base.small_files()
    if "tokenizer.json" not in files:
        found = (one.small_files() for one in others)
        theirs = next((one for one in found if "tokenizer.json" in one), {})
        files |= {name: path for name, path in theirs.items() if name not in CONFIGURATION}
    for name in files.keys() - {"config.json"}:
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(files[name], folder / name)
    layout = {name: TensorLayout(DTYPES[dtype] if dtype else base.dtype(name), shape) for name, shape in shapes.items()}
    shards = _split(layout)
    total = sum(math.prod(shape) for shape in shapes.values())
    hidden = total < PROGRESS_PARAMETERS or not sys.stderr.isatty()
    with tqdm(total=total, desc=printable(task), unit="param", unit_scale=True, disable=hidden) as progress:

        def counted(names: list[str]) -> Iterator[tuple[str, torch.Tensor]]:
            for name, tensor in tensors(names):
                yield name, tensor
                progress.update(tensor.numel())

        with contextlib.ExitStack() as sources, out_of_memory_is_memory_error(task[0].lower() + task[1:]):
            for one in (base, *others):
                sources.callback(one.close)
            for file_name, members in shards.items():
                with open(folder / file_name, "wb") as file:
                    write_safetensors(file, members, {"format": "pt"}, counted(list(members)))
    if len(shards) > 1:
        weight_map = {name: file_name for file_name, members in shards.items() for name in members}
        index = {"metadata": {"total_size": sum(one.nbytes for one in layout.values())}, "weight_map": weight_map}
        _write_json(folder / "model.safetensors.index.json", index)


def _write_config(base: Source, folder: Path, dtype: torch.dtype | None, tied: bool) -> None:
    values = read_json(base.folder / "config.json")
    if values.get("tie_word_embeddings", False) is not tied:
        values["tie_word_embeddings"] = tied
    if dtype is not None:
        key = "dtype" if "dtype" in values else "torch_dtype"  # versions 5 and 4 of transformers
        values[key] = str(dtype).removeprefix("torch.")
    # The code that auto_map names is not copied, and dlf's architectures need none.
    for key in ("auto_map", "_name_or_path"):
        values.pop(key, None)
    _write_json(folder / "config.json", values)


def _shape(config: ModelConfig) -> dict[str, object]:
    """Values that all models of a merge must share, since the shapes of their tensors follow from them.

    A head that is tied in only some models becomes a tensor of its own.
    """
    spec = config.spec
    return {
        "architecture": config.family.architecture,
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.feed_forward.size,
        "num_hidden_layers": len(spec.layers),
        "num_attention_heads": spec.attention.heads,
        "num_key_value_heads": spec.attention.kv_heads,
        "head_dim": spec.attention.head_dim,
        "attention_bias": (spec.attention.bias, spec.attention.output_bias),
        "mlp_bias": spec.feed_forward.bias,
    }


def _check_same_shapes(base: Source, expert: Source) -> None:
    a, b = base.config, expert.config
    theirs = _shape(b)
    for key, ours in _shape(a).items():
        if ours != theirs[key]:
            raise CheckpointError(
                f"'{key}' is {ours} in {base.name} and {theirs[key]} in {expert.name}; merge models that were "
                "fine-tuned from one base and kept its shape"
            )
    for keys, same in (
        ("rms_norm_eps", a.spec.norm_epsilon == b.spec.norm_epsilon),
        ("rotary embedding", _ropes(a) == _ropes(b)),
        ("sliding_window", _windows(a) == _windows(b)),
    ):
        if not same:
            warnings.warn(
                f"{base.name} and {expert.name} differ in their {keys}; the merged model has the base's",
                RuntimeWarning,
                stacklevel=2,
            )


def _ropes(config: ModelConfig) -> list[object]:
    return [(rope.scaling, rope.inv_freq, rope.long_inv_freq) for rope in config.spec.ropes]


def _windows(config: ModelConfig) -> list[int]:
    return [layer.window for layer in config.spec.layers]


def _tokenizer(source: Source) -> Tokenizer | None:
    return Tokenizer(source.folder) if os.path.isfile(source.folder / "tokenizer.json") else None


def _split(layout: dict[str, TensorLayout]) -> dict[str, dict[str, TensorLayout]]:
    """Split tensors into files of at most `MAX_SHARD_BYTES`; wide numbers come first, so that all are aligned."""
    parts: list[dict[str, TensorLayout]] = [{}]
    room = MAX_SHARD_BYTES
    for name, one in layout.items():
        if parts[-1] and one.nbytes > room:
            parts.append({})
            room = MAX_SHARD_BYTES
        parts[-1][name] = one
        room -= one.nbytes
    parts = [dict(sorted(part.items(), key=lambda item: -item[1].item_bytes)) for part in parts]
    if len(parts) == 1:
        return {"model.safetensors": parts[0]}
    return {f"model-{i:05}-of-{len(parts):05}.safetensors": part for i, part in enumerate(parts, 1)}


def _write_json(path: Path, values: dict[str, object]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", "utf-8")
