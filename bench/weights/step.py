"""One step of many rows: distributions of the three models, and the curves of fusion between them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Curve", "Step", "divergence", "entropy", "jensen_shannon"]

COARSE = torch.cat([torch.tensor([0.0, 0.0015, 0.005, 0.015]), torch.linspace(0, 1, 25)[1:]])
FINE = torch.linspace(0, 1, 6)
ROUNDS = 3  # of the fine grid


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) of each row."""
    return (log_p.exp() * (log_p - log_q)).sum(-1).clamp_min(0)


def jensen_shannon(log_p: Tensor, log_q: Tensor) -> Tensor:
    """The Jensen-Shannon divergence of each row in bits, from 0 to 1."""
    middle = torch.logaddexp(log_p, log_q) - torch.log(torch.tensor(2.0))
    return (divergence(log_p, middle) + divergence(log_q, middle)) / 2 / torch.log(torch.tensor(2.0))


def entropy(log_p: Tensor) -> Tensor:
    return -(log_p.exp() * log_p).sum(-1).clamp_max(0)


class Curve(NamedTuple):
    """Divergences at some weights, [rows, weights] each. F is the fused distribution, P the large, E the expert."""

    alpha: Tensor
    f: Tensor  # KL(F || P)
    g: Tensor  # KL(P || F)
    from_expert: Tensor  # KL(E || F)
    to_expert: Tensor  # KL(F || E)
    entropy: Tensor  # H(F)
    peak: Tensor  # max F


class Step:
    """Logits of the large model, its base and its expert, [rows, vocab] each; `rows` says which texts they continue."""

    def __init__(self, large: Tensor, base: Tensor, expert: Tensor, rows: Tensor) -> None:
        self.rows = rows
        self.large, self.base, self.expert = (logits.log_softmax(-1) for logits in (large, base, expert))
        self.delta = self.expert - self.base
        self.a, self.b = divergence(self.expert, self.base), divergence(self.base, self.expert)

    @cached_property
    def large_entropy(self) -> Tensor:
        return entropy(self.large)

    @cached_property
    def expert_entropy(self) -> Tensor:
        return entropy(self.expert)

    def fused(self, alpha: Tensor) -> Tensor:
        """The log-probabilities at a weight for each row."""
        return (self.large + alpha[:, None] * self.delta).log_softmax(-1)

    def curve(self, alpha: Tensor) -> Curve:
        """The divergences at weights [rows, weights]."""
        points = [self._point(one) for one in alpha.unbind(1)]
        return Curve(alpha, *(torch.stack(column, 1) for column in zip(*points, strict=True)))

    def search(self, loss: Callable[[Curve], Tensor], most: float = 2.0) -> Tensor:
        """The weight in [0, most] with the least loss: a grid, then finer ones around its best point."""
        low, high = self._around(loss, (most * COARSE).expand(len(self.a), -1))
        for _ in range(ROUNDS):
            low, high = self._around(loss, low[:, None] + (high - low)[:, None] * FINE)
        return (low + high) / 2

    def _around(self, loss: Callable[[Curve], Tensor], alpha: Tensor) -> tuple[Tensor, Tensor]:
        best = loss(self.curve(alpha)).argmin(1, keepdim=True)
        last = alpha.shape[1] - 1
        return alpha.gather(1, (best - 1).clamp_min(0))[:, 0], alpha.gather(1, (best + 1).clamp_max(last))[:, 0]

    def _point(self, alpha: Tensor) -> tuple[Tensor, ...]:
        logits = self.large + alpha[:, None] * self.delta
        top = logits.amax(-1)
        mass = (logits - top[:, None]).exp()
        total = mass.sum(-1)
        log_total = top + total.log()

        def mean(values: Tensor) -> Tensor:
            return (mass * values).sum(-1) / total

        moved = alpha * mean(self.delta) - log_total
        return (
            moved.clamp_min(0),
            (log_total - alpha * (self.large.exp() * self.delta).sum(-1)).clamp_min(0),
            (
                divergence(self.expert, self.large) - alpha * (self.expert.exp() * self.delta).sum(-1) + log_total
            ).clamp_min(0),
            (mean(self.large - self.expert) + moved).clamp_min(0),
            log_total - mean(logits),
            1 / total,
        )
