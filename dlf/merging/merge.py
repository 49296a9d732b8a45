"""Merges checkpoints tensor by tensor into a folder in Hugging Face format."""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from dlf.checkpoints.checkpoint import check_finite, is_finite
from dlf.checkpoints.config import ModelConfig
from dlf.checkpoints.precision import SAFETENSORS_DTYPES, TensorLayout
from dlf.checkpoints.source import Source
from dlf.checkpoints.write import copied_parts, write_config, write_weights
from dlf.errors import CheckpointError
from dlf.merging.methods import Recipe, merge_tensor
from dlf.support.fields import parse_json
from dlf.text.same_tokenizer import check_same_tokenizer, warn_of_added_tokens
from dlf.text.tokenizer import Tokenizer

__all__ = ["Merge", "identity", "read_finite", "write_checkpoint"]

CONFIGURATION = ("config.json", "generation_config.json")


def read_finite(source: Source, name: str) -> torch.Tensor:
    """Return a tensor as a view of its file, if its values are finite. A tied head is the embedding."""
    name = _stored(source, name)
    values = source.read(name)
    check_finite(values, name, source.path_of(name))
    return values


def identity(source: Source, cache: Path) -> list[Any]:
    """Hashes of everything that is read of a checkpoint."""
    side = {name: hashlib.sha256(content).hexdigest() for name, content in source.side_files().items()}
    return [source.content_hash(cache), side]


def _stored(source: Source, name: str) -> str:
    config = source.config
    return config.embedding if name == config.head and config.tie_word_embeddings else name


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

    def write(self, folder: Path, whole: bool = False) -> None:
        """Write the merged checkpoint into an empty folder: weights, configuration, and the base's tokenizer.

        If the base has no tokenizer, it is that of the first expert with one. Memory holds one tensor of each model at
        a time. Large models get a progress bar.

        Parameters
        ----------
        folder
            The folder.
        whole
            Whether to copy the parts of the base that a text needs not.

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
            whole=whole,
        )

    def identity(self, cache: Path) -> list[Any]:
        """Everything that the result depends on."""
        sources = [identity(source, cache) for source in (self.base, *self.experts)]
        return [sources, asdict(self.recipe), str(self.dtype)]

    def _tensors(self, names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
        for name in names:
            base = read_finite(self.base, name)
            spellings = self.base.config.family.all_spellings(name)
            experts = (read_finite(expert, _known(expert.config, spellings)) for expert in self.experts)
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
    tensors: Callable[[Iterable[str]], Iterator[tuple[str, torch.Tensor]]],
    task: str,
    dtype: torch.dtype | None = None,
    others: Sequence[Source] = (),
    own_head: bool = False,
    whole: bool = False,
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
    own_head
        Whether the result has a head of its own in any case.
    whole
        Whether to copy the parts of the base that a text needs not.

    Raises
    ------
    OSError
        If the folder cannot be written or the disk is full.
    MemoryError
        If memory runs out.
    """
    shapes, head = base.config.tensors(), base.config.head
    for other in others:
        theirs = other.config.tensors()
        shapes |= {head: theirs[other.config.head]} if other.config.head in theirs else {}
    if own_head:
        shapes[head] = (base.config.spec.vocab_size, base.config.spec.hidden_size)
    files = base.side_files()
    write_config(parse_json(files.pop("config.json"), base.path / "config.json"), folder, dtype, head not in shapes)
    if "tokenizer.json" not in files:
        given = next((one.side_files() for one in others if one.has_tokenizer), {})
        files |= {name: content for name, content in given.items() if name not in CONFIGURATION}
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    units = {
        name: {
            name: TensorLayout(SAFETENSORS_DTYPES[dtype] if dtype else base.layout(_stored(base, name)).dtype, shape)
        }
        for name, shape in shapes.items()
    }
    copied = copied_parts(base, dtype) if whole else {}

    def all_tensors(names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
        kept = [name for name in names if name in copied]
        yield from tensors(name for name in names if name not in copied)
        yield from ((name, base.read(name).to(dtype=dtype)) for name in kept)

    with contextlib.ExitStack() as sources:
        for one in (base, *others):
            sources.callback(one.close)
        write_weights(folder, units | copied, all_tensors, task)


def _known(config: ModelConfig, spellings: set[str]) -> str:
    """Return the spelling that a checkpoint of one architecture has."""
    return next(iter(spellings & (config.tensors().keys() | {config.head})))


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
        "experts": (spec.experts.count, spec.experts.size, [layer.experts for layer in spec.layers]),
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
        ("rms_norm_eps", a.spec.norm.epsilon == b.spec.norm.epsilon),
        ("rotary embedding", _ropes(a) == _ropes(b)),
        ("sliding_window", _windows(a) == _windows(b)),
        ("routing", _routing(a) == _routing(b)),
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


def _routing(config: ModelConfig) -> tuple[int, bool]:
    return config.spec.experts.chosen, config.spec.experts.normalise


def _tokenizer(source: Source) -> Tokenizer | None:
    return source.tokenizer() if source.has_tokenizer else None
