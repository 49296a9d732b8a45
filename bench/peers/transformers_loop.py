"""Fused decoding as the paper's authors ran it: a Python loop over three models of ``transformers`` with KV caches.

Each step tries 21 values of alpha and keeps the one whose fused distribution is as far from the large model, in both KL
divergences, as the expert is from its base (Fan et al., arXiv 2406.15480, section 3.3).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch.nn.functional import log_softmax
from transformers import AutoModelForCausalLM
from transformers.utils import logging


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


def decode(models: list[AutoModelForCausalLM], prompt: list[int], alpha: float | None = None) -> Iterator[int]:
    """Greedy tokens without end; one model decodes alone, three are large, expert and base (`alpha` None: solved)."""
    caches: list[object] = [None] * len(models)
    tokens = torch.tensor([prompt])
    while True:
        logits = []
        with torch.inference_mode():
            for i, model in enumerate(models):
                output = model(tokens, past_key_values=caches[i], use_cache=True, logits_to_keep=1)
                caches[i] = output.past_key_values
                logits.append(output.logits[0, -1])
        fused = logits[0]
        if len(models) == 3:
            weight = grid_alpha(*logits) if alpha is None else alpha
            fused = fused + weight * (logits[1] - logits[2])
        token = int(fused.argmax())
        yield token
        tokens = torch.tensor([[token]])


def load(folder: Path) -> AutoModelForCausalLM:
    """A checkpoint in its own dtype."""
    logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
