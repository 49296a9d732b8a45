"""A model that reads a text, and its logits at each token."""

from __future__ import annotations

from pathlib import Path

import torch

from dlf import _C
from dlf.model import load_model

__all__ = ["Reader"]


class Reader:
    """One model on the CPU, without an engine."""

    def __init__(self, folder: Path, threads: int, weights: str | None = None) -> None:
        model = load_model(folder, weights=weights)
        self._tokenizer = model.tokenizer
        self._context = model.config.max_position_embeddings
        self._decoder = _C.Decoder(model.weights, slots=1, max_context=self._context, threads=threads)

    def continued(self, prompt: str, continuation: str) -> tuple[list[int], torch.Tensor]:
        """The tokens of a continuation that fit the context, and the logits for each: [tokens, vocab]."""
        first = max(1, len(self._tokenizer.encode(prompt)))
        tokens = self._tokenizer.encode(prompt + continuation)[: self._context]
        return tokens[first:], self._decoder.prefill(tokens, 0, 0)[first - 1 : -1].clone()
