"""A checkpoint in a folder in Hugging Face format: ``config.json``, safetensors files and ``tokenizer.json``.

Only safetensors are read: a ``*.bin`` checkpoint is a pickle, and reading a pickle runs any code that its author put
there.
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch

from dlf.checkpoints.config import ModelConfig, read_config
from dlf.checkpoints.content_hash import content_hash
from dlf.checkpoints.hub import INDEX, SINGLE, TOKENIZER_FILES, index_of
from dlf.checkpoints.packed import PackedMatrix
from dlf.checkpoints.precision import SAFETENSORS_DTYPES, TILE_OUTPUTS, TORCH_DTYPES, MatrixFormat, TensorLayout
from dlf.checkpoints.published import Scheme, StoredLayer, StoredMatrix, read_scheme
from dlf.checkpoints.tensor_file import PORTION_BYTES, PORTIONS, TensorFile
from dlf.errors import CheckpointError
from dlf.support.fields import read_bytes
from dlf.text.chat_template import additional_templates
from dlf.text.tokenizer import Tokenizer
from dlf.text.tokenizer_parts import MAX_TOKENIZER_BYTES

__all__ = ["Folder", "find_shards"]

# Buffers that older writers saved, and that follow from the configuration.
BUFFERS = re.compile(r"(?:.*\.)?(?:rotary_emb\.\w+|rope\.freqs|position_ids|(?:attn|attention)\.(?:masked_)?bias)")
COMPARED_BYTES = 8 << 20
STRETCH_BYTES = 8 << 20  # of a tensor that nobody keeps as a view
SIDE_FILES = ["config.json", "generation_config.json", *TOKENIZER_FILES]


class Folder:
    """The `Source` of a folder.

    The pages of a mapped file count as memory of this process from their first use until the mapping ends. So files are
    mapped anew after every few tensors, which frees the pages of those that nobody kept.

    Parameters
    ----------
    path
        The folder.
    name
        What the user called it, if that differs.
    """

    def __init__(self, path: Path, name: str | None = None) -> None:
        self.path = Path(path)
        self.name = os.fspath(path) if name is None else name
        self._files: dict[Path, TensorFile] = {}
        self._read_bytes = 0

    @property
    def files(self) -> list[Path]:
        """All files in the folder."""
        return [file for file in self.path.iterdir() if os.path.isfile(file)]

    @cached_property
    def declared(self) -> ModelConfig:
        """Configuration as the JSON files have it."""
        return read_config(self.path)

    @cached_property
    def config(self) -> ModelConfig:
        """Configuration, corrected where the weights say otherwise.

        A head in the files that differs from the embedding is used, whatever ``tie_word_embeddings`` says, and a
        missing ``dtype`` is that of the first floating-point tensor; ``transformers`` does both. Other tensors that the
        configuration does not ask for are a warning.
        """
        config, layouts = self._spelled, self._layouts
        present = {name: path for path, layout in layouts.items() for name in layout}
        if config.dtype is None:
            config = replace(config, dtype=_first_dtype(layouts))
        if config.tie_word_embeddings and config.head in present and config.embedding in present:
            config = replace(config, tie_word_embeddings=_is_embedding(config, present))
        present = {name: path for name, path in present.items() if name not in self.other_parts}
        used = {*config.tensors(), *(part for parts in self._parts.values() for part in parts), config.head}
        unused = sorted(name for name in present.keys() - used if not self._may_lie_unused(name, present[name]))
        if unused:
            some = ", ".join(f"{name!r:.80}" for name in unused[:3]) + (", ..." if len(unused) > 3 else "")
            warnings.warn(
                f"{self.path} has {len(unused)} tensors that its config.json does not ask for and that are not used: "
                f"{some}; check that config.json and weights are of one checkpoint",
                RuntimeWarning,
                stacklevel=3,  # cached_property calls this
            )
        return replace(config, packed=self._formats(present))

    @property
    def has_tokenizer(self) -> bool:
        """Whether the folder has a ``tokenizer.json``."""
        return os.path.isfile(self.path / "tokenizer.json")

    def tokenizer(self) -> Tokenizer:
        """Read the folder's tokenizer."""
        return Tokenizer(self.path)

    @property
    def layouts(self) -> Mapping[str, TensorLayout]:
        """Type and shape of each tensor in the files that the configuration needs, or that the index names."""
        return {name: one for layout in self._layouts.values() for name, one in layout.items()}

    @property
    def kinds(self) -> Mapping[str, str]:
        """The form of each quantized matrix."""
        return {name: stored.kind for name, stored in self.quantized.items()}

    def stored_bytes(self, name: str) -> int:
        """Bytes of the tensors that a quantized matrix is stored in."""
        return sum(self.layouts[part].nbytes for part in self._parts[name])

    @cached_property
    def other_parts(self) -> Mapping[str, TensorLayout]:
        """Type and shape of the tensors of parts that a text needs not."""
        family = self._spelled.family
        return {name: one for name, one in self.layouts.items() if family.is_other_part(name)}

    @property
    def names(self) -> list[str]:
        """Tensors of the configuration, file by file."""
        return [name for name in self._places if name in self._shapes]

    def path_of(self, name: str) -> Path:
        """Return the file that holds a tensor."""
        return self._places[name]

    def layout(self, name: str) -> TensorLayout:
        """Return the type and shape of a tensor of the configuration; that of a quantized one is float32."""
        if name in self.quantized:
            return TensorLayout("F32", self._shapes[name])
        if name in self.other_parts:
            return self.other_parts[name]
        return self._file(name).header(name, self._shapes[name])

    def read(self, name: str) -> torch.Tensor:
        """Return a tensor of the configuration: as a view of its mapped file, or dequantized."""
        [values] = self.rows(name, keep=True)
        return values

    def rows(self, name: str, keep: bool = False, dtype: torch.dtype | None = None) -> Iterator[torch.Tensor]:
        """Yield a tensor of the configuration: whole, or some rows of a large one after the others."""
        stored = self.quantized.get(name)
        if stored is None:
            layout = self.layout(name)  # checks it
            if keep or layout.nbytes <= STRETCH_BYTES:
                yield self._take(name, keep)
                return
            step = max(STRETCH_BYTES * layout.shape[0] // layout.nbytes // TILE_OUTPUTS, 1) * TILE_OUTPUTS
            for first in range(0, layout.shape[0], step):
                yield self._take(name)[first : first + step]
        else:
            matrix = stored.read(self._take, str(self.path_of(name)))
            values = matrix.dequantize() if isinstance(matrix, PackedMatrix) else matrix
            yield values.t().contiguous() if name in self._transposed else values

    def packed(self, name: str) -> Iterator[PackedMatrix]:
        """Yield a matrix whole, ``[out, in]`` as every quantizer writes it."""
        matrix = self.quantized[name].read(self._take, str(self.path_of(name)))
        if isinstance(matrix, PackedMatrix):
            yield matrix

    def _take(self, name: str, keep: bool = False) -> torch.Tensor:
        """Return a stored tensor as a view of its mapped file."""
        file = self._file(name)
        nbytes = file.layout[name].nbytes
        portion = max(PORTION_BYTES, os.path.getsize(file.path) // PORTIONS if keep else 0)
        if self._read_bytes and self._read_bytes + nbytes > portion:
            self.close()
        self._read_bytes += nbytes
        return file.take(name)

    def release(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor that was read with a mapping of its own, if it is a view."""
        viewed = name not in self.quantized and SAFETENSORS_DTYPES[tensor.dtype] == self.layout(name).dtype
        return self._file(name).take(name, alone=True) if viewed else tensor

    def close(self) -> None:
        """End the mappings of the files, except for tensors that are still in use."""
        for file in self._files.values():
            file.close()
        self._read_bytes = 0

    def content_hash(self, cache: Path) -> str:
        """Return one hash of the files, and of the names of the tensors taken from each."""
        return content_hash(self._shards, cache)

    def side_files(self) -> dict[str, bytes]:
        """Return the JSON files, the tokenizer's files and the chat templates that the folder has."""
        paths = [*(self.path / name for name in SIDE_FILES), *additional_templates(self.path)]
        return {
            str(path.relative_to(self.path)): read_bytes(path, MAX_TOKENIZER_BYTES)
            for path in paths
            if os.path.isfile(path)
        }

    @cached_property
    def _spelled(self) -> ModelConfig:
        """Configuration with the names that the files have."""
        config = self.declared
        if os.path.isfile(self.path / SINGLE):
            names: Collection[str] = self._open(self.path / SINGLE).layout
        elif os.path.lexists(self.path / INDEX):
            names = index_of(self.path)
        else:
            return config
        return replace(config, family=config.family.spelled(config.spec, names))

    @cached_property
    def _layouts(self) -> dict[Path, dict[str, TensorLayout]]:
        for path in _files(self.path, self._spelled):
            with self._open(path):
                pass  # ends the mapping
        return {path: file.layout for path, file in self._files.items()}

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return self.config.tensors()

    @cached_property
    def scheme(self) -> Scheme | None:
        """How matrices are quantized; None if none is."""
        config = self._spelled
        if config.quantization is None:
            return None
        return read_scheme(config.quantization, str(self.path / "config.json"), _modules(config))

    @cached_property
    def _transposed(self) -> set[str]:
        """Tensors that the family stores as ``[in, out]``."""
        return {part.tensor for part in self._spelled.parts.values() if part.transposed}

    @cached_property
    def quantized(self) -> dict[str, StoredMatrix]:
        """The quantized tensors of the configuration by name."""
        if self.scheme is None:
            return {}
        layouts, shapes, found = self.layouts, self._spelled.tensors(), {}
        for module in _modules(self._spelled):
            name = f"{module}.weight"
            out, columns = reversed(shapes[name]) if name in self._transposed else shapes[name]
            stored = self.scheme.matrix(StoredLayer(str(self.path), module, (out, columns), layouts))
            if stored is not None:
                found[name] = stored
        return found

    def _formats(self, present: Mapping[str, Path]) -> dict[str, MatrixFormat]:
        """Formats of the tiles that keep the integers of quantized tensors; those without become floats."""
        found = {}
        for name, stored in self.quantized.items():
            integers = stored.packs(lambda part: self._open(present[part]).take(part))
            if integers is not None:
                found[name] = MatrixFormat.of(
                    integers.bits,
                    integers.group,
                    integers.scale,
                    signed=integers.symmetric,
                    zero=not integers.symmetric,
                )
        return {name: one for name, one in found.items() if one is not None}

    @cached_property
    def _parts(self) -> dict[str, list[str]]:
        """Stored tensors of each tensor of the configuration."""
        names = self._spelled.tensors()
        return {name: list(self.quantized[name].names.values()) if name in self.quantized else [name] for name in names}

    @cached_property
    def _shards(self) -> dict[Path, list[str]]:
        names = self.config.tensors()
        return find_shards(self.path, [part for name in names for part in self._parts.get(name, [name])])

    @cached_property
    def _places(self) -> dict[str, Path]:
        """File of each stored tensor, and of each tensor of the configuration."""
        stored = {name: path for path, layout in self._layouts.items() for name in layout if name in self.other_parts}
        stored |= {name: path for path, names in self._shards.items() for name in names}
        return stored | {name: stored[self._parts[name][0]] for name in self.quantized}

    def _may_lie_unused(self, name: str, path: Path) -> bool:
        """Whether a tensor may be left out without a warning: buffers, and what quantized layers have besides."""
        module, _, last = name.rpartition(".")
        if self.scheme is None or f"{module}.weight" not in self.quantized:
            return BUFFERS.fullmatch(name) is not None
        # Some writers give each layer a bias, of zeros if the model has none.
        return last in self.scheme.companions or (last == "bias" and not self._open(path).take(name).any())

    def _file(self, name: str) -> TensorFile:
        return self._open(self._places[name])

    def _open(self, path: Path) -> TensorFile:
        if path not in self._files:
            self._files[path] = TensorFile(path, sys.maxsize)  # read() bounds what all files together keep mapped
        return self._files[path]


def find_shards(folder: Path, shapes: Collection[str]) -> dict[Path, list[str]]:
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


def _files(folder: Path, config: ModelConfig) -> list[Path]:
    """Files with tensors that the configuration asks for, and further files that the index names."""
    needed = find_shards(folder, config.tensors() if config.quantization is None else ())
    if folder / SINGLE in needed:
        return list(needed)
    index = index_of(folder)
    named = {folder / file for file in set(index.values())}
    if config.quantization is not None:  # their names are the scheme's
        return sorted(named)
    return sorted({*needed, *(path for path in named if os.path.isfile(path) or path.name == index.get(config.head))})


def _modules(config: ModelConfig) -> list[str]:
    """Names of the linear layers."""
    shapes = config.tensors()
    weights = (name for name, shape in shapes.items() if len(shape) == 2 and name.endswith(".weight"))
    return [name.removesuffix(".weight") for name in weights if name != config.embedding]


def _first_dtype(layouts: Mapping[Path, Mapping[str, TensorLayout]]) -> str | None:
    floats = {name: dtype for dtype, name in SAFETENSORS_DTYPES.items()}
    dtypes = (floats.get(one.dtype) for layout in layouts.values() for one in layout.values())
    found = next((dtype for dtype in dtypes if dtype is not None), None)
    return next((name for name, dtype in TORCH_DTYPES.items() if dtype == found), None)


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
