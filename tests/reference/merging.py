"""Merging of models in float64 NumPy, as plainly as in the papers: slow but obviously right.

`base` is any array, `experts` are [T, ...] with its shape, `masks` are those that DARE drew.
"""

from __future__ import annotations

import math

import numpy as np


def trim(vector, density):
    """TIES, algorithm 1, step 1: keep the k largest magnitudes, the first ones of equals."""
    flat = vector.reshape(-1)
    keep = max(1, int(density * flat.size))
    order = sorted(range(flat.size), key=lambda i: (-abs(flat[i]), i))
    found = np.zeros_like(flat)
    for i in order[:keep]:
        found[i] = flat[i]
    return found.reshape(vector.shape)


def merge(method, base, experts, weights, densities, normalize, scale, masks=None):
    base = np.asarray(base, np.float64)
    experts = np.asarray(experts, np.float64)
    if method == "linear":
        total = sum(w * expert for w, expert in zip(weights, experts, strict=True))
        return total / sum(weights) if normalize else total
    if method == "slerp":
        return slerp(base, experts[0], weights[0])
    vectors = [expert - base for expert in experts]
    if method == "ties":
        vectors = [trim(vector, d) for vector, d in zip(vectors, densities, strict=True)]
    if method.startswith("dare"):
        vectors = [mask * vector / d for mask, vector, d in zip(masks, vectors, densities, strict=True)]
    merged = np.zeros_like(base)
    for i in np.ndindex(base.shape):
        values = [w * vector[i] for w, vector in zip(weights, vectors, strict=True)]
        sizes = [abs(w) for w in weights]
        if method.endswith("ties"):
            sign = 1 if sum(values) >= 0 else -1
            sizes = [size for size, value in zip(sizes, values, strict=True) if value * sign > 0]
            values = [value for value in values if value * sign > 0]
        merged[i] = sum(values) / (sum(sizes) or 1) if normalize else sum(values)
    return base + scale * merged


def slerp(start, end, t):
    cosine = np.sum(start * end) / (np.linalg.norm(start) * np.linalg.norm(end))
    if abs(cosine) > 0.9995:
        return (1 - t) * start + t * end
    angle = math.acos(cosine)
    return (math.sin((1 - t) * angle) * start + math.sin(t * angle) * end) / math.sin(angle)
