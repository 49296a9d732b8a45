"""Fused decoding with transformers' models in a Python loop that reads the whole text again at every step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast


class IdMap:
    """Ids of a small model by token of the large one: as it is fed, and as its logit is read; None: it is not."""

    def __init__(self, large: Path, small: Path, vocab: int) -> None:
        ours, theirs = (PreTrainedTokenizerFast.from_pretrained(path) for path in (large, small))
        names, ids = ours.convert_ids_to_tokens(range(vocab)), theirs.get_vocab()
        self.read = [ids.get(name) for name in names]
        self.feed = [
            theirs.encode(ours.decode([token]), add_special_tokens=False)[0] if own is None else own
            for token, own in enumerate(self.read)
        ]


class Reference:
    """Greedy decoding by fused logits; `fuse(large, base, experts)` returns alpha [T] and logits [V].

    With `maps`, of the base and the experts, those models have ids of their own; their prompts are given in these.
    """

    def __init__(
        self,
        large: Path,
        base: Path,
        experts: list[Path],
        vocab: int,
        maps: list[IdMap] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.models = [
            AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval() for path in (large, base, *experts)
        ]
        self.vocab = vocab
        self.maps = [None, *(maps or [None] * (len(experts) + 1))]
        self.missing = [token for token in range(vocab) if any(m and m.read[token] is None for m in self.maps)]

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
                    self.logits(model, own, tokens, ids)
                    for model, own, ids in zip(self.models, prompts, self.maps, strict=True)
                )
            alpha, logits = fuse(large, base, np.stack(experts))
            weights.append(alpha)
            tokens.append(int(np.argmax(logits)))
        return tokens, np.array(weights)

    def logits(self, model: torch.nn.Module, prompt: list[int], tokens: list[int], ids: IdMap | None) -> np.ndarray:
        """Logits after a prompt and tokens of the large model, by the large model's ids."""
        if ids is None:
            return model(torch.tensor([prompt + tokens])).logits[0, -1, : self.vocab].numpy()
        row = model(torch.tensor([prompt + [ids.feed[token] for token in tokens]])).logits[0, -1].numpy()
        found = row[[0 if own is None else own for own in ids.read]]
        found[self.missing] = -1e30
        return found


class Contexts:
    """Models that read a prompt each; `fuse` makes the logits [V] of the next token, in double, from those of all."""

    def __init__(self, models: list[Path], vocab: int) -> None:
        loaded = {path: AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval() for path in set(models)}
        self.models = [loaded[path] for path in models]
        self.vocab = vocab

    def fused(self, prompts: list[list[int]], tokens: list[int], fuse: Callable[..., np.ndarray]) -> np.ndarray:
        """Log-probabilities [V] after `tokens`, which follow every prompt."""
        with torch.no_grad():
            logits = fuse(
                *(
                    model(torch.tensor([prompt + tokens])).logits[0, -1, : self.vocab].double().numpy()
                    for model, prompt in zip(self.models, prompts, strict=True)
                )
            )
        peak = logits.max()
        return logits - peak - np.log(np.exp(logits - peak).sum())

    def generate(self, prompts: list[list[int]], steps: int, fuse: Callable[..., np.ndarray]) -> list[int]:
        """Greedy tokens."""
        tokens: list[int] = []
        for _ in range(steps):
            tokens.append(int(np.argmax(self.fused(prompts, tokens, fuse))))
        return tokens

    def score(self, prompts: list[list[int]], tokens: list[int], fuse: Callable[..., np.ndarray]) -> list[float]:
        """Log-probability of each token."""
        return [float(self.fused(prompts, tokens[:i], fuse)[token]) for i, token in enumerate(tokens)]
