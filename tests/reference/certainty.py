"""Fusion with one expert by certainty, in float64 NumPy."""

from __future__ import annotations

import numpy as np
from reference.fusion import Vector, log_softmax, prepare, solve_one


def entropy(log_p: Vector) -> float:
    return float(-np.sum(np.exp(log_p) * log_p))


def certainty(large: Vector, base: Vector, expert: Vector) -> tuple[float, float, Vector]:
    """Return the weight, the expert's share and the log-probabilities [V] of the next token; every logit is finite.

    A large model that is surer than its expert moves less. An expert that is surer than the fused distribution is
    mixed in by the difference of their certainties, where the certainty of a distribution is one over its perplexity.
    """
    row, log_expert = prepare(large, base[None], expert[None]), log_softmax(expert.astype(np.float64))
    of_large, of_expert = entropy(row.log_large), entropy(log_expert)
    scale = min(1.0, 2 * of_large / (of_large + of_expert))
    alpha, _ = solve_one(row, 0, scale * row.target_f[0], scale * row.target_g[0])
    log_fused = log_softmax(row.log_large + alpha * row.delta[0])
    share = max(0.0, np.exp(-of_expert) - np.exp(-entropy(log_fused)))
    return alpha, share, np.log((1 - share) * np.exp(log_fused) + share * np.exp(log_expert))
