"""The three models of a fusion in float32, which read texts side by side."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import DynamicCache, LlamaForCausalLM
from transformers.utils import logging

__all__ = ["Reading", "Trio"]


logging.disable_progress_bar()  # type: ignore[no-untyped-call]


@cache
def _load(folder: Path) -> Any:
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)  # without dropout, ready to read


class Trio:
    """Large model, base and expert, and their tokenizer."""

    def __init__(self, folder: Path, expert: str) -> None:
        names = ("large-base", "small-base", f"{expert}-expert")
        self.models = [_load(folder / name) for name in names]
        self.tokenizer = Tokenizer.from_file(str(folder / names[0] / "tokenizer.json"))
        self.vocab: int = self.models[0].config.vocab_size
        self.end: int = self.models[0].config.eos_token_id

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text).ids
        return ids

    def read(self, texts: Sequence[list[int]]) -> Tensor:
        """Logits after every token of some texts: [texts, models, tokens, vocab], padded at the end."""
        longest = max(map(len, texts))
        tokens = torch.tensor([text + [self.end] * (longest - len(text)) for text in texts])
        with torch.inference_mode():
            return torch.stack([model(tokens, use_cache=False).logits for model in self.models], 1)


class Reading:
    """Texts that the models read a token at a time, padded at the front."""

    def __init__(self, trio: Trio, texts: Sequence[list[int]]) -> None:
        longest = max(map(len, texts))
        self._models = trio.models
        self._caches = [DynamicCache(config=model.config) for model in trio.models]
        self._mask = torch.tensor([[0] * (longest - len(text)) + [1] * len(text) for text in texts])
        tokens = torch.tensor([[trio.end] * (longest - len(text)) + text for text in texts])
        self.logits = self._forward(tokens, (self._mask.cumsum(1) - 1).clamp_min(0))  # [texts, models, vocab]

    def keep(self, texts: Sequence[int]) -> None:
        """Leave out all other texts."""
        index = torch.tensor(texts)
        self._mask = self._mask[index]
        for one in self._caches:
            one.batch_select_indices(index)

    def feed(self, tokens: Sequence[int]) -> None:
        """Read one more token of each text."""
        self._mask = torch.cat([self._mask, torch.ones(len(tokens), 1, dtype=self._mask.dtype)], 1)
        self.logits = self._forward(torch.tensor(tokens)[:, None], self._mask.sum(1, keepdim=True) - 1)

    def _forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        with torch.inference_mode():
            found = [
                model(
                    tokens,
                    attention_mask=self._mask,
                    position_ids=positions,
                    past_key_values=cache,
                    logits_to_keep=1,
                ).logits[:, -1]
                for model, cache in zip(self._models, self._caches, strict=True)
            ]
        return torch.stack(found, 1)
