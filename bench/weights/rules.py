"""The candidates: each gives log-probabilities for a step, from the three models' logits alone.

F is the fused distribution, P the large model's, B and E those of base and expert.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from bench.weights.step import Curve, Step, divergence, entropy, jensen_shannon

__all__ = ["FIXED", "Rule", "candidates", "solved"]

Rule: TypeAlias = Callable[[Step], Tensor]  # [rows, vocab]
Weight: TypeAlias = Callable[[Step], Tensor]  # [rows]
FIXED = (0.25, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5)
SURE = 1e-9  # keeps quotients of entropies finite
NO_MOVE = 1e-9  # targets below it mean that the expert equals its base


def _objective(step: Step, scale: Tensor | float = 1.0) -> Callable[[Curve], Tensor]:
    a, b = (scale * step.a)[:, None], (scale * step.b)[:, None]
    return lambda curve: (curve.f - a) ** 2 + (curve.g - b) ** 2


def solved(step: Step, scale: Tensor | float = 1.0, most: float = 2.0) -> Tensor:
    """The engine's solve, with both targets multiplied by `scale`."""
    alpha = step.search(_objective(step, scale), most)
    return torch.where(torch.maximum(step.a, step.b) <= NO_MOVE, 0.0, alpha)


def _fused(weight: Weight) -> Rule:
    return lambda step: step.fused(weight(step))


def _fixed(alpha: float) -> Rule:
    return _fused(lambda step: torch.full_like(step.a, alpha))


def _scaled(scale: Weight) -> Rule:
    return _fused(lambda step: solved(step, scale(step)))


def _least(loss: Callable[[Curve], Tensor]) -> Rule:
    return _fused(lambda step: step.search(loss))


def _matched(loss: Callable[[Step, Curve], Tensor]) -> Rule:
    return _fused(lambda step: step.search(lambda curve: loss(step, curve)))


def _trust(step: Step) -> Tensor:
    moved = step.a + step.b
    apart = divergence(step.large, step.base) + divergence(step.base, step.large)
    return moved / (moved + apart + SURE)


def _sureness(step: Step) -> Tensor:
    both = step.large_entropy + step.expert_entropy + SURE
    return (2 * step.large_entropy / both).clamp_max(1)


def _parallelogram(step: Step, curve: Curve) -> Tensor:
    to_base, from_base = divergence(step.large, step.base), divergence(step.base, step.large)
    other = (curve.to_expert - to_base[:, None]) ** 2 + (curve.from_expert - from_base[:, None]) ** 2
    return _objective(step)(curve) + other


def _bounded_peak(step: Step, curve: Curve) -> Tensor:
    most = torch.maximum(step.large.exp().amax(-1), step.expert.exp().amax(-1))[:, None]
    return _objective(step)(curve) + 1e3 * (curve.peak - most - 1e-4).clamp_min(0)


def _nucleus(step: Step, share: float = 0.95) -> Tensor:
    """Solve on the tokens of the three nuclei only."""
    kept = torch.zeros_like(step.large, dtype=torch.bool)
    for log_p in (step.large, step.base, step.expert):
        mass, order = log_p.exp().sort(-1, descending=True)
        kept |= torch.zeros_like(kept).scatter(1, order, mass.cumsum(-1) - mass < share)
    large, base, expert = (log_p.masked_fill(~kept, -30.0) for log_p in (step.large, step.base, step.expert))
    top = Step(large, base, expert, step.rows)
    return top.fused(solved(top))


def _remembered(keep: float) -> Rule:
    """The weight with the least loss over the text so far, whose older steps count less."""
    grid = torch.linspace(0, 2, 41)
    losses = torch.zeros(0, len(grid))

    def rule(step: Step) -> Tensor:
        nonlocal losses
        missing = int(step.rows.max()) + 1 - len(losses)
        if missing > 0:
            losses = torch.cat([losses, torch.zeros(missing, len(grid))])
        now = _objective(step)(step.curve(grid.expand(len(step.a), -1)))
        losses[step.rows] = keep * losses[step.rows] + now
        return step.fused(grid[losses[step.rows].argmin(1)])

    return rule


def _mixed(log_fused: Tensor, log_expert: Tensor, share: Tensor) -> Tensor:
    share = share.clamp(1e-12, 1 - 1e-7)[:, None]
    return torch.logaddexp(log_fused + (1 - share).log(), log_expert + share.log())


def _mixed_by_entropy(weight: Weight) -> Rule:
    def rule(step: Step) -> Tensor:
        fused = step.fused(weight(step))
        unsure = entropy(fused)
        return _mixed(fused, step.expert, unsure / (unsure + step.expert_entropy + SURE))

    return rule


def _surplus(weight: Weight, measure: str) -> Rule:
    """Mix the expert in by how much surer it is than the fused distribution."""

    def sure(log_p: Tensor) -> Tensor:
        return (-entropy(log_p)).exp() if measure == "entropy" else log_p.exp().amax(-1)

    def rule(step: Step) -> Tensor:
        fused = step.fused(weight(step))
        return _mixed(fused, step.expert, sure(step.expert) - sure(fused))

    return rule


def _by_sureness(step: Step) -> Tensor:
    return solved(step, _sureness(step))


def _one(step: Step) -> Tensor:
    return torch.ones_like(step.a)


def candidates() -> dict[str, Rule]:
    """All rules by their names, made anew: some remember the texts of a run."""
    return {f"α = {alpha:g}": _fixed(alpha) for alpha in FIXED} | {
        "`select`": _fused(solved),
        "α at most 1": _fused(lambda step: solved(step, most=1.0)),
        "`forward`": _matched(lambda step, curve: (curve.f - step.a[:, None]) ** 2),
        "match f + g with a + b": _matched(lambda step, curve: (curve.f + curve.g - (step.a + step.b)[:, None]) ** 2),
        "targets × (1 − JSD(P, B))": _scaled(lambda step: 1 - jensen_shannon(step.large, step.base)),
        "targets × (1 − JSD(P, E))": _scaled(lambda step: 1 - jensen_shannon(step.large, step.expert)),
        "targets × (a + b) / (a + b + J(P, B))": _scaled(_trust),
        "targets × min(1, H(P) / a)": _scaled(lambda step: (step.large_entropy / (step.a + SURE)).clamp_max(1)),
        "targets × min(1, 2 H(P) / (H(P) + H(E)))": _scaled(_sureness),
        "α = JSD(P, E), AdaCAD's": _fused(lambda step: jensen_shannon(step.large, step.expert)),
        "α = 1 − JSD(P, B)": _fused(lambda step: 1 - jensen_shannon(step.large, step.base)),
        "α = (a + b) / (a + b + J(P, B))": _fused(_trust),
        "least KL(E ‖ F)": _least(lambda curve: curve.from_expert),
        "least J(F, E)": _least(lambda curve: curve.from_expert + curve.to_expert),
        "least KL(F ‖ P) + KL(F ‖ E)": _least(lambda curve: curve.f + curve.to_expert),
        "J(F, E) = J(P, B) too": _matched(_parallelogram),
        "H(F) = H(E)": _matched(lambda step, curve: (curve.entropy - step.expert_entropy[:, None]) ** 2),
        "max F ≤ max(P, E)": _matched(_bounded_peak),
        "loss + 0.05 (α − 1)²": _matched(lambda step, curve: _objective(step)(curve) + 0.05 * (curve.alpha - 1) ** 2),
        "solve on the nuclei of 0.95": _nucleus,
        "loss of the text so far, × 0.9": _remembered(0.9),
        "`select`, E mixed in by entropy": _mixed_by_entropy(solved),
        "`select`, E mixed in by max E − max F": _surplus(solved, "peak"),
        "`select`, E mixed in by e^−H(E) − e^−H(F)": _surplus(solved, "entropy"),
        "α = 1, E mixed in by e^−H(E) − e^−H(F)": _surplus(_one, "entropy"),
        "scaled targets, E mixed in by max E − max F": _surplus(_by_sureness, "peak"),
        "scaled targets, E mixed in by e^−H(E) − e^−H(F)": _surplus(_by_sureness, "entropy"),
    }
