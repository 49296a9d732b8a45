"""The paper's search for the weights of one step (Fan et al., arXiv 2406.15480, section 3.3), in PyTorch."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import log_softmax

GRID = np.arange(21) / 10


def kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """KL divergence of log-probabilities ``[..., V]``, in nats."""
    return (p.exp() * (p - q)).sum(-1)


def torch_grid(large: torch.Tensor, base: torch.Tensor, experts: torch.Tensor) -> list[tuple[int, float]]:
    """The paper's search, row by row: the best of T experts and 21 weights. Takes logits as `fusion.solve` does."""
    alphas = torch.from_numpy(GRID).float().to(large.device)
    found = []
    for p, z, b, row in zip(log_softmax(large, -1), large, log_softmax(base, -1), experts, strict=True):
        tuned = log_softmax(row, -1)
        a, c = kl(tuned, b).mean(), kl(b, tuned).mean()
        losses = []
        for expert in tuned:
            fused = log_softmax(z + alphas[:, None] * (expert - b), -1)
            losses.append((kl(fused, p) - a) ** 2 + (kl(p, fused) - c) ** 2)
        best = int(torch.stack(losses).argmin())
        found.append((best // len(GRID), float(GRID[best % len(GRID)])))
    return found
