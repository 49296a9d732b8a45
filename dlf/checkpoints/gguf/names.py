"""Finds a checkpoint's tensors in a GGUF file, and undoes what the conversion to GGUF did to them.

Names come from the ``gguf`` package. Source of the rest: ``modify_tensors`` of llama.cpp's ``conversion/*.py``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import torch
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map

from dlf.checkpoints.config import ModelConfig
from dlf.checkpoints.gguf.file import GgufFile, GgufTensor
from dlf.errors import CheckpointError
from dlf.families.parts import stored

__all__ = ["SPLIT", "Stored", "find_tensors"]

# Whose rows of q and k are in another order than in the checkpoint: pairs that rotate together are neighbours.
ROPE_IN_PAIRS = ("llama", "granite", "granitemoe", "smollm3", "mistral3")
ONE_ADDED = ("gemma2", "gemma3")  # to the weights of norms
EXPERTS = "model.layers.{layer}.block_sparse_moe.experts.{expert}"
# Modules under names that `gguf` knows, by architecture, where a file splits what a folder has in one.
SPLIT = {
    "granitemoe": stored(
        expert_gate=f"{EXPERTS}.w1",
        expert_up=f"{EXPERTS}.w3",
        expert_down=f"{EXPERTS}.w2",
        shared_gate="model.layers.{layer}.mlp.shared_expert.gate_proj",
        shared_up="model.layers.{layer}.mlp.shared_expert.up_proj",
    )
}
QUERY_OR_KEY = re.compile(r"blk\.\d+\.attn_([qk])\.(?:weight|bias)")
FUSED = re.compile(r"blk\.\d+\.attn_qkv\.(?:weight|bias)")
TRANSPOSED = re.compile(r"blk\.\d+\.(?:attn_qkv|attn_output|ffn_up|ffn_down)\.weight")
EXPERT = re.compile(r"(.+\.experts)\.(\d+)(\..+)")


@dataclass(frozen=True)
class Stored:
    """A checkpoint's tensor in a GGUF file.

    Attributes
    ----------
    tensor
        Where it lies.
    order
        Sizes of the first three axes of its rows, of which the file swaps the last two; None if it keeps them.
    transposed
        Whether the file has rows and columns swapped.
    added
        Number that the file adds to every value.
    """

    tensor: GgufTensor
    order: tuple[int, int, int] | None = None
    transposed: bool = False
    added: float = 0.0

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the checkpoint's tensor."""
        return self.tensor.shape[::-1] if self.transposed else self.tensor.shape

    @property
    def unchanged(self) -> bool:
        """Whether the file has the values of the checkpoint."""
        return self.order is None and not self.transposed and not self.added

    @property
    def by_row(self) -> bool:
        """Whether some rows of the file are those rows of the checkpoint, so that `undo` may have them alone."""
        return self.order is None and not self.transposed

    def undo(self, values: torch.Tensor) -> torch.Tensor:
        """Return the checkpoint's values for those of the file."""
        if self.order is not None:
            a, b, c = self.order
            values = values.view(a, c, b, -1, *values.shape[1:]).transpose(1, 2).reshape(values.shape)
        if self.transposed:
            values = values.t().contiguous()
        return values - self.added if self.added else values


def find_tensors(file: GgufFile, architecture: str, config: ModelConfig) -> dict[str, Stored]:
    """Find the tensors that a configuration asks for.

    Raises
    ------
    CheckpointError
        If one is missing or misshapen.
    """
    kind = next(key for key, value in MODEL_ARCH_NAMES.items() if value == architecture)
    names = get_tensor_name_map(MODEL_ARCH(kind), len(config.spec.layers))
    found = {}
    for name, shape in config.tensors().items():
        expert = EXPERT.fullmatch(name)
        own = names.get_name(expert[1] + expert[3] if expert else name, try_suffixes=(".weight", ".bias"))
        tensor = file.tensors.get(own or "")
        if own is None or tensor is None:
            raise CheckpointError(
                f"{file.path} has no tensor {own or name!r}: the model is incomplete, or of another architecture than "
                "it says; fetch it again"
            )
        if expert:
            tensor = _slice(tensor, int(expert[2]))
        if len(tensor.shape) == 1 and len(shape) == 2:
            tensor = replace(tensor, shape=(1, *tensor.shape))  # a matrix of one row
        place = _stored(tensor, own, architecture, config)
        if place is None or place.shape != shape:
            raise CheckpointError(
                f"{file.path}: tensor '{own}' has shape {list(tensor.shape)}, but the metadata asks for {list(shape)}; "
                "fetch the model again"
            )
        found[name] = place
    return found


def _stored(tensor: GgufTensor, own: str, architecture: str, config: ModelConfig) -> Stored | None:
    """Say how the file changes a tensor; None if its shape does not allow that."""
    attention, rows = config.spec.attention, tensor.shape[0]
    query_or_key = QUERY_OR_KEY.fullmatch(own)
    if architecture in ROPE_IN_PAIRS and query_or_key:
        heads = attention.heads if query_or_key[1] == "q" else attention.kv_heads
        return None if rows % (2 * heads) else Stored(tensor, (heads, 2, rows // heads // 2))
    if architecture == "gptneox" and FUSED.fullmatch(own):
        return None if rows % (3 * attention.heads) else Stored(tensor, (1, attention.heads, 3))
    if architecture == "gpt2" and TRANSPOSED.fullmatch(own):
        return Stored(tensor, transposed=True)
    return Stored(tensor, added=1.0 if architecture in ONE_ADDED and own.endswith("norm.weight") else 0.0)


def _slice(tensor: GgufTensor, number: int) -> GgufTensor:
    """Return one expert's matrix of a tensor that has those of all."""
    if len(tensor.shape) != 3 or number >= tensor.shape[0]:
        return tensor  # its shape is then wrong
    nbytes = tensor.nbytes // tensor.shape[0]
    return replace(tensor, shape=tensor.shape[1:], offset=tensor.offset + number * nbytes, nbytes=nbytes)
