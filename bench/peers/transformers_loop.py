"""Fused decoding as the paper's authors ran it: a Python loop over three models of ``transformers`` with KV caches.

Each step tries 21 values of alpha and keeps the one whose fused distribution is as far from the large model, in both KL
divergences, as the expert is from its base (Fan et al., arXiv 2406.15480, section 3.3).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch.nn.functional import log_softmax


def kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """KL divergence of log-probabilities ``[..., V]``, in nats."""
    return (p.exp() * (p - q)).sum(-1)


def grid_alpha(large: torch.Tensor, expert: torch.Tensor, base: torch.Tensor) -> float:
    """The paper's search for the weight of one step; logits ``[V]``."""
    p, e, b = (log_softmax(logits.float(), -1) for logits in (large, expert, base))
    alphas = torch.arange(21) * 0.1
    fused = log_softmax(large.float() + alphas[:, None] * (expert.float() - base.float()), -1)
    loss = (kl(fused, p) - kl(e, b)) ** 2 + (kl(p, fused) - kl(b, e)) ** 2
    return float(alphas[loss.argmin()])


def prepare(folder: Path, weights: str, scratch: Path) -> Path:
    """The checkpoint is read as it is."""
    return folder


class TransformersLoop:
    """Large model, expert and base; `alpha` None: solved at every step."""

    def __init__(self, paths: Sequence[Path], threads: int, alpha: float | None) -> None:
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        torch.set_num_threads(threads)
        logging.disable_progress_bar()
        self.models = [AutoModelForCausalLM.from_pretrained(path, dtype="auto").eval() for path in paths]
        self.alpha = alpha
        self.weight_bytes = sum(_read_bytes(model) for model in self.models)
        self.settings = {"alpha": "21 values" if alpha is None else alpha, "attention": "sdpa", "cache": "dynamic"}

    def tokens(self, prompt: Sequence[int]) -> Iterator[int]:
        caches: list[object] = [None] * len(self.models)
        tokens = torch.tensor([prompt])
        while True:
            logits = []
            with torch.inference_mode():
                for i, model in enumerate(self.models):
                    output = model(tokens, past_key_values=caches[i], use_cache=True, logits_to_keep=1)
                    caches[i] = output.past_key_values
                    logits.append(output.logits[0, -1])
            weight = grid_alpha(*logits) if self.alpha is None else self.alpha
            token = int((logits[0] + weight * (logits[1] - logits[2])).argmax())
            yield token
            tokens = torch.tensor([[token]])


def _read_bytes(model: torch.nn.Module) -> int:
    embedding = model.get_input_embeddings().weight
    return sum(weight.nbytes for weight in model.parameters() if weight is not embedding)


def load(
    paths: Sequence[Path], weights: str, threads: int, context: int, alpha: float | None = None
) -> TransformersLoop:
    return TransformersLoop(paths, threads, alpha)
