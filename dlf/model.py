"""A checkpoint as the engine runs it: config, weights and tokenizer."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import torch

from dlf import _C
from dlf.checkpoints.checkpoint import load_tensors
from dlf.checkpoints.config import ModelConfig
from dlf.checkpoints.huge_pages import leave, placement
from dlf.checkpoints.precision import TORCH_DTYPES, Precision
from dlf.checkpoints.quantized import always_read, formats_of, load_packed, load_quantized, stored_linears
from dlf.checkpoints.source import Source, open_checkpoint
from dlf.errors import out_of_memory_is_memory_error
from dlf.text.tokenizer import Tokenizer

__all__ = ["Model", "load_model"]


@dataclass(frozen=True)
class Model:
    """One loaded checkpoint; every lane that runs on it shares it."""

    name: str
    config: ModelConfig
    tokenizer: Tokenizer
    weights: _C.Weights

    @property
    def dtype(self) -> torch.dtype:
        """Type of the embedding, the activations on CUDA and the KV cache."""
        return TORCH_DTYPES[self.weights.dtype]


def load_model(
    name: str | os.PathLike[str],
    dtype: str = "auto",
    weights: str | None = None,
    cuda: bool = False,
    source: Source | None = None,
    tokenizer: Tokenizer | None = None,
) -> Model:
    """Load a checkpoint folder or hub id.

    Parameters
    ----------
    name
        Folder in Hugging Face format, or a hub id.
    dtype : {"auto", "float32", "bfloat16", "float16"}
        Type of the weights and the KV cache; ``"auto"`` keeps the file's (on the CPU float16 becomes float32, which
        can hold it).
    weights : {"fp32", "bf16", "fp16", "int8", "int4", "int4-g64"}, optional
        Type of the linear layers' weights, if it differs; see `dlf.EngineOptions`.
    cuda
        Whether the weights will be copied to a GPU; until then they stay in the mapped file.
    source
        Result of `open_checkpoint` for this name, if it was called already.
    tokenizer
        Its tokenizer, if it was read already.

    Raises
    ------
    ValueError
        If a type is unknown, or `dtype` and `weights` contradict each other.
    FileNotFoundError, CheckpointError, UnknownArchitectureError
        If the folder is no usable checkpoint; the message says what is wrong and what to do.
    MemoryError
        If memory or address space runs out.
    """
    precision = Precision.of(dtype, weights)
    with out_of_memory_is_memory_error(f"loading {os.fspath(name)}"):
        source = source or open_checkpoint(name)
        config, tokenizer = source.config, tokenizer or source.tokenizer()
        chosen = TORCH_DTYPES[precision.float_dtype(config.dtype, cuda)]
        formats = formats_of(config, precision)
        if precision.quantization is not None and formats != formats_of(config, Precision()):
            tensors = load_quantized(source, chosen, precision.quantization, huge_pages=not cuda)
        elif formats:
            tensors = load_packed(source, chosen, formats, huge_pages=not cuda)
        else:
            sizes = {name: math.prod(shape) * chosen.itemsize for name, shape in stored_linears(config).items()}
            by_row = set() if config.tie_word_embeddings else {config.embedding}
            place = leave if cuda else placement(always_read(config, sizes))
            tensors = load_tensors(source, chosen, place=place, by_row=by_row)
        return Model(os.fspath(name), config, tokenizer, _C.Weights(config.spec, config.by_slot(tensors)))
