"""The mathematics of fusion in float64 NumPy, as plainly as it can be written: slow but obviously right.

Section 2 of docs/design.md. One row at a time: `large` is [V], `bases` and `experts` are [T, V].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]
Bound = float | Vector  # one for all weights, or one for each

DENSE = 4001  # points of the dense search
WEIGHTS = {"symmetric": (1.0, 1.0), "forward": (1.0, 0.0), "reverse": (0.0, 1.0)}


def log_softmax(logits: Vector) -> Vector:
    peak = logits.max(-1, keepdims=True)
    return logits - peak - np.log(np.exp(logits - peak).sum(-1, keepdims=True))


def divergence(log_p: Vector, log_q: Vector) -> float:
    """KL(p || q) in nats."""
    return float(np.sum(np.exp(log_p) * (log_p - log_q)))


@dataclass
class Row:
    """Distributions of one row on the tokens that every model allows (the support)."""

    log_large: Vector  # log P, [support]
    delta: Vector  # [T, support]
    target_f: Vector  # KL(Q_t || Q), [T]
    target_g: Vector  # KL(Q || Q_t), [T]
    support: npt.NDArray[np.bool_]  # [V]


def prepare(large: Vector, bases: Vector, experts: Vector) -> Row:
    large, bases, experts = (np.asarray(logits, np.float64) for logits in (large, bases, experts))
    support = np.isfinite(large) & np.isfinite(bases).all(0) & np.isfinite(experts).all(0)
    log_bases, log_experts = log_softmax(bases[:, support]), log_softmax(experts[:, support])
    return Row(
        log_softmax(large[support]),
        experts[:, support] - bases[:, support],
        np.array([max(divergence(e, b), 0.0) for e, b in zip(log_experts, log_bases, strict=True)]),
        np.array([max(divergence(b, e), 0.0) for e, b in zip(log_experts, log_bases, strict=True)]),
        support,
    )


def fused_divergences(row: Row, alpha: Vector) -> tuple[float, float]:
    """Return f = KL(P~ || P) and g = KL(P || P~) under the weights [T]."""
    log_fused = log_softmax(row.log_large + np.asarray(alpha, np.float64) @ row.delta)
    return divergence(log_fused, row.log_large), divergence(row.log_large, log_fused)


def curve(row: Row, expert: int, alphas: Vector) -> tuple[Vector, Vector]:
    """Return f and g of one expert at many values of its weight."""
    f, g = np.empty(len(alphas)), np.empty(len(alphas))
    step = max(1, 2_000_000 // row.log_large.size)
    for start in range(0, len(alphas), step):
        some = alphas[start : start + step]
        log_fused = log_softmax(row.log_large + some[:, None] * row.delta[expert])
        change = log_fused - row.log_large
        f[start : start + step] = np.sum(np.exp(log_fused) * change, -1)
        g[start : start + step] = -np.sum(np.exp(row.log_large) * change, -1)
    return f, g


def losses(row: Row, expert: int, alphas: Vector, a: float, b: float, match: str) -> Vector:
    f_weight, g_weight = WEIGHTS[match]
    f, g = curve(row, expert, alphas)
    return f_weight * (f - a) ** 2 + g_weight * (g - b) ** 2


def solve_one(
    row: Row, expert: int, a: float, b: float, match: str = "symmetric", alpha_max: float = 2.0, dense: int = DENSE
) -> tuple[float, float]:
    """Return the global minimum over [0, alpha_max] as (alpha, loss), by a dense grid and finer ones in it."""
    f_weight, g_weight = WEIGHTS[match]
    if max(f_weight * a, g_weight * b) <= 1e-11:
        return 0.0, f_weight * a**2 + g_weight * b**2
    # Steep curves have their minimum near 0, so a logarithmic grid is added to the even one.
    alphas = np.unique(
        np.concatenate([np.linspace(0, alpha_max, dense), alpha_max * np.geomspace(1e-6, 1, dense // 8)])
    )
    values = losses(row, expert, alphas, a, b, match)
    best = (float(alphas[values.argmin()]), float(values.min()))
    inner = np.flatnonzero((values[1:-1] <= values[:-2]) & (values[1:-1] <= values[2:])) + 1
    for index in inner[np.argsort(values[inner])][:4]:
        low, high = alphas[index - 1], alphas[index + 1]
        for _ in range(6):
            fine = np.linspace(low, high, 21)
            at = losses(row, expert, fine, a, b, match)
            k = int(at.argmin())
            if at[k] < best[1]:
                best = (float(fine[k]), float(at[k]))
            low, high = fine[max(k - 1, 0)], fine[min(k + 1, 20)]
    return best


def bounds(row: Row, alpha_max: Bound) -> Vector:
    """Return the bound of every expert."""
    return np.broadcast_to(alpha_max, len(row.delta))


def select(row: Row, match: str = "symmetric", alpha_max: Bound = 2.0) -> Vector:
    a, b = row.target_f.mean(), row.target_g.mean()
    solved = [solve_one(row, t, a, b, match, bound) for t, bound in enumerate(bounds(row, alpha_max))]
    best, tie = 0, 1e-10 * sum(weight * target**2 for weight, target in zip(WEIGHTS[match], (a, b), strict=True))
    for t, (_, loss) in enumerate(solved):
        if loss < solved[best][1] - tie:
            best = t
    alpha = np.zeros(len(solved))
    alpha[best] = solved[best][0]
    return alpha


def grid(row: Row, match: str = "symmetric", alpha_max: Bound = 2.0) -> Vector:
    a, b = row.target_f.mean(), row.target_g.mean()
    alphas = np.arange(21) / 10
    table = np.array([losses(row, t, alphas, a, b, match) for t in range(len(row.delta))])
    table[alphas > bounds(row, alpha_max)[:, None]] = np.inf
    expert, index = np.unravel_index(table.argmin(), table.shape)
    alpha = np.zeros(len(table))
    alpha[expert] = alphas[index]
    return alpha


def alone(row: Row, match: str = "symmetric", alpha_max: Bound = 2.0) -> Vector:
    """Return every expert's weight, solved alone against its own targets."""
    return np.array(
        [
            solve_one(row, t, row.target_f[t], row.target_g[t], match, bound)[0]
            for t, bound in enumerate(bounds(row, alpha_max))
        ]
    )


def centroid(row: Row, match: str = "symmetric", alpha_max: Bound = 2.0) -> Vector:
    return alone(row, match, alpha_max) / len(row.delta)


def fused_means(row: Row, alpha: Vector) -> Vector:
    """Return E[delta_t] under the fused distribution, [T]."""
    fused = np.exp(log_softmax(row.log_large + np.asarray(alpha, np.float64) @ row.delta))
    return row.delta @ fused


def joint_moments(row: Row, match: str = "symmetric", alpha_max: Bound = 2.0) -> Vector:
    """Return each expert's mean delta when it is solved alone: the constraints of the joint solution."""
    weights = alone(row, match, alpha_max)
    return np.array([fused_means(row, weight * np.eye(len(weights))[t])[t] for t, weight in enumerate(weights)])


def joint_dual(row: Row, alpha: Vector, moments: Vector) -> float:
    """Return the dual that the joint weights minimise."""
    logits = row.log_large + np.asarray(alpha, np.float64) @ row.delta
    peak = logits.max()
    return float(peak + np.log(np.exp(logits - peak).sum()) - np.dot(alpha, moments))


def jsd(row: Row, bases: Vector, experts: Vector, alpha_max: Bound = 2.0) -> Vector:
    """Jensen-Shannon divergence of every expert and its base, in nats, up to its bound."""
    found = np.empty(len(row.delta))
    for t, bound in enumerate(bounds(row, alpha_max)):
        q, p = log_softmax(bases[t, row.support]), log_softmax(experts[t, row.support])
        middle = np.log((np.exp(p) + np.exp(q)) / 2)
        found[t] = min((divergence(p, middle) + divergence(q, middle)) / 2, bound)
    return found


def is_open(large: Vector, experts: Vector, gate: str, threshold: float) -> bool:
    log_p = log_softmax(np.asarray(large, np.float64))
    if gate == "entropy":
        p = np.exp(log_p)
        return bool(-np.sum(p[p > 0] * log_p[p > 0]) >= threshold)
    if gate == "top_prob":
        return bool(np.exp(log_p.max()) <= threshold)
    return gate == "none" or any(expert.argmax() != log_p.argmax() for expert in experts)


def fused_log_probabilities(
    large: Vector, row: Row, experts: Vector, alpha: Vector, mix: Vector, plausibility: float
) -> tuple[Vector, float, float]:
    """Return the fused distribution, [V], and f and g before the mask; an expert with a share in `mix` is not added.

    `row` holds the large model as it is fused, with its coefficient; `large` [V] is as the model gave it.
    """
    added = log_softmax(row.log_large + np.where(mix > 0, 0.0, alpha) @ row.delta)
    parts = (1 - mix.sum()) * np.exp(added)
    for share, expert in zip(mix, experts, strict=True):
        parts = parts + share * np.exp(log_softmax(expert[row.support]))
    fused = np.log(parts) if mix.sum() > 0 else added
    f, g = divergence(fused, row.log_large), divergence(row.log_large, fused)
    found = np.full(len(large), -np.inf)
    found[row.support] = fused
    if plausibility > 0:
        found[large < large.max() + np.log(plausibility)] = -np.inf
    return found, f, g
