"""Reads what an adapter changes in the embedding and the head, as PEFT saves it.

PEFT saves a whole matrix (``modules_to_save``, or after the vocabulary was extended), rows of some tokens
(``trainable_token_indices``) or a low-rank update (``target_modules``). Rows beyond the base's vocabulary are left out:
their tokens have no logits in the base.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from dlf.adapters.config import CONFIG, AdapterConfig
from dlf.adapters.updates import LowRank, TableUpdate
from dlf.checkpoints.config import ModelConfig
from dlf.checkpoints.tensor_file import TensorFile
from dlf.errors import CheckpointError
from dlf.support.fields import MAX_VOCAB_SIZE

__all__ = ["EMBEDDING", "HEAD", "Tables", "table_modules"]

EMBEDDING, HEAD = "embedding", "head"
WHOLE = ("weight", "modules_to_save.weight")
ROWS = "token_adapter.trainable_tokens_delta"
# Copies of the base's own matrix, which training does not change.
COPIES = ("base_layer.weight", "original_module.weight", "token_adapter.base_layer.weight")
LOW_RANK = {EMBEDDING: ("lora_embedding_A", "lora_embedding_B"), HEAD: ("lora_A.weight", "lora_B.weight")}
FLOATS = ("F32", "F16", "BF16")


def table_modules(config: ModelConfig) -> dict[str, str]:
    """Return the slot of the embedding and of the head, by module."""
    return {config.embedding.removesuffix(".weight"): EMBEDDING, config.head.removesuffix(".weight"): HEAD}


@dataclass(frozen=True)
class Tables:
    """The tensors of an adapter's file that belong to the embedding and the head.

    Parameters
    ----------
    file
        The open file.
    keys
        Its tensors by module and the rest of their name.
    """

    file: TensorFile
    keys: Mapping[str, Mapping[str, str]]

    @classmethod
    def of(cls, file: TensorFile, config: ModelConfig, prefix: str) -> Tables:
        """Find the tensors of both, whose names begin with `prefix`."""
        keys: dict[str, dict[str, str]] = {}
        for module in table_modules(config):
            begins = tuple(f"{prefix}{one}." for one in config.family.all_spellings(module))
            found = {key.removeprefix(begin): key for begin in begins for key in file.layout if key.startswith(begin)}
            if found:
                keys[module] = found
        return cls(file, keys)

    def read(self, config: ModelConfig, adapter: AdapterConfig) -> dict[str, TableUpdate]:
        """Read the updates by slot.

        Raises
        ------
        CheckpointError
            If a tensor is unknown, missing or misshapen, or one module is changed in two ways.
        """
        found: dict[str, TableUpdate] = {}
        saved, shared = adapter.saved(table_modules(config)), False
        for module, slot in table_modules(config).items():
            tokens = adapter.trained_tokens(module, slot == EMBEDDING)
            parts = self.keys.get(module, {})
            update = self._update(module, slot, parts, config.spec.vocab_size, config.spec.hidden_size, adapter, tokens)
            if module in saved and (update is None or update.rows is None):
                raise CheckpointError(
                    f"{self.file.path} has no matrix of {module}, which modules_to_save names; fetch the adapter again"
                )
            if update is not None:
                found[slot] = update
                shared = shared or (slot == EMBEDDING and bool(tokens))
        # One matrix that is both has the trained rows in both.
        if shared and HEAD not in found and config.tie_word_embeddings:
            found[HEAD] = found[EMBEDDING]
        return found

    def _update(
        self,
        module: str,
        slot: str,
        parts: Mapping[str, str],
        vocab: int,
        hidden: int,
        adapter: AdapterConfig,
        tokens: list[int],
    ) -> TableUpdate | None:
        ways = {*WHOLE, ROWS, *LOW_RANK[slot]}
        for part, key in parts.items():
            if part not in ways and part not in COPIES:
                raise CheckpointError(
                    f"{self.file.path}: tensor {key!r:.120} is no update of {module} that dlf knows; train one with "
                    "modules_to_save, trainable_token_indices or target_modules"
                )
        whole = next((parts[part] for part in WHOLE if part in parts), None)
        low_rank = any(part in parts for part in LOW_RANK[slot])
        if (whole is not None) + low_rank + (ROWS in parts) > 1:
            raise CheckpointError(f"{self.file.path} changes {module} in two ways, which dlf does not add up")
        if tokens and ROWS not in parts:
            raise CheckpointError(
                f"{self.file.path} has no rows of {module}, whose trainable_token_indices {CONFIG} gives; fetch the "
                "adapter again"
            )
        if whole is not None:
            rows = self._tensor(whole, None, hidden)[:vocab]
            return TableUpdate(rows, torch.arange(len(rows)))
        if ROWS in parts:
            rows, numbers = self._tensor(parts[ROWS], len(tokens), hidden), torch.tensor(tokens)
            return TableUpdate(rows[numbers < vocab], numbers[numbers < vocab])
        if not low_rank:
            return None
        for part in LOW_RANK[slot]:
            if part not in parts:
                raise CheckpointError(f"{self.file.path} has no {part} of {module}; fetch the adapter again")
        ranks = adapter.ranks([module])
        rank, scale = ranks[module], adapter.scales(ranks)[module]
        first, second = (parts[part] for part in LOW_RANK[slot])
        if slot == EMBEDDING:  # A has a column for each token, and B makes an embedding of it
            b, a = self._tensor(first, rank, None).t(), self._tensor(second, hidden, rank).t()
        else:
            a, b = self._tensor(first, rank, hidden), self._tensor(second, None, rank)
        missing = max(0, vocab - len(b))
        return TableUpdate(low_rank=LowRank(a, torch.nn.functional.pad(b[:vocab], (0, 0, 0, missing)), scale))

    def _tensor(self, key: str, *wanted: int | None) -> torch.Tensor:
        """Read a matrix; None stands for the size of a vocabulary."""
        one = self.file.layout[key]
        fits = len(one.shape) == len(wanted) and all(
            1 <= size <= MAX_VOCAB_SIZE if want is None else size == want
            for size, want in zip(one.shape, wanted, strict=True)
        )
        if not fits or one.dtype not in FLOATS:
            shape = [want or "vocabulary" for want in wanted]
            raise CheckpointError(
                f"{self.file.path}: tensor '{key}' is {one.dtype} {list(one.shape)}; for this base and {CONFIG} it "
                f"must be floating-point {shape}"
            )
        return self.file.read(key, one.shape)
