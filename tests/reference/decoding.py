"""Fused decoding with transformers' models in a Python loop that reads the whole text again at every step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM


class Reference:
    """Greedy decoding by fused logits; `fuse(large, base, experts)` returns alpha [T] and logits [V]."""

    def __init__(self, large: Path, base: Path, experts: list[Path], vocab: int) -> None:
        self.models = [
            AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval() for path in (large, base, *experts)
        ]
        self.vocab = vocab

    def generate(
        self,
        prompt: list[int],
        steps: int,
        fuse: Callable[..., tuple[np.ndarray, np.ndarray]],
        expert_prompts: list[list[int]] | None = None,
        base_prompt: list[int] | None = None,
    ) -> tuple[list[int], np.ndarray]:
        """Return tokens and weights; the experts and the base read `prompt` unless they have their own."""
        prompts = [prompt, base_prompt or prompt, *(expert_prompts or [prompt] * (len(self.models) - 2))]
        tokens: list[int] = []
        weights = []
        for _ in range(steps):
            with torch.no_grad():
                large, base, *experts = (
                    model(torch.tensor([own + tokens])).logits[0, -1, : self.vocab].numpy()
                    for model, own in zip(self.models, prompts, strict=True)
                )
            alpha, logits = fuse(large, base, np.stack(experts))
            weights.append(alpha)
            tokens.append(int(np.argmax(logits)))
        return tokens, np.array(weights)
